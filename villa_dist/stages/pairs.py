"""pairs: score each image's regions against the attributes its text mentions, and keep the pairs that hold."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import torch

from shards import sidecar
from shards.commit import Marker, StageFolder
from shards.reader import BaseShard, embeddings_of, read_sidecar
from villa_dist import models
from villa_dist.encoders.precision import best_device
from villa_dist.mapping.assign import assign
from villa_dist.observe import Timers
from villa_dist.stages.base import StageRequest, commit_sidecar
from villa_dist.stages.images import embed_regions
from villa_dist.types import RegionAttributePairs

NO_BOXES = np.zeros((0, 4), np.float32)


class PairsStage:
    """params: model, the folder of the mapping model."""

    def __init__(self, request: StageRequest) -> None:
        self.request, self.config = request, request.config
        torch.set_num_threads(self.config.regions.threads)
        self.base = StageFolder(request.dataset, "base")
        self.regions = StageFolder(request.dataset, "regions")
        self.model = models.load_mapping(request.params["model"], best_device())

    def process(self, shard: str) -> Marker:
        timers = Timers()
        base = BaseShard(self.base, shard)
        table = read_sidecar(self.regions, shard, sidecar.REGIONS)
        sidecar.check_aligned(table, base.keys, self.regions.store.path(shard))
        boxes, box_at = sidecar.list_column(table, "boxes")
        mentioned, mentioned_at = sidecar.list_column(table, "attributes")
        with timers.time("embed"):
            feature = self._features(shard, base, boxes, box_at)
        images: list[RegionAttributePairs] = []
        device = self.model.attribute.device
        with torch.inference_mode(), timers.time("map"):
            for i in range(len(base)):
                span = slice(int(box_at[i]), int(box_at[i + 1]))
                ids = mentioned[mentioned_at[i] : mentioned_at[i + 1]].astype(np.int64)
                score_RA = self.model.scores(feature[span].to(device), torch.from_numpy(ids).to(device)).cpu().numpy()
                images.append(kept_pairs(boxes[span], ids, score_RA, assign(score_RA, self.config.pairs)))
        with self.request.output().attempt(shard) as attempt:
            attempt.write(f"{shard}.parquet", sidecar.to_bytes(pairs_table(base.keys, images)))
            return commit_sidecar(
                self.request,
                attempt,
                shard,
                keys=base.keys,
                input_digest=base.marker.output(".tar").sha256,
                timers=timers,
                counts={"pairs": sum(len(p.region) for p in images), "regions": len(boxes), "mentions": len(mentioned)},
            )

    def _features(self, shard: str, base: BaseShard, boxes: np.ndarray, box_at: np.ndarray) -> torch.Tensor:
        """Region features: from the embeddings sidecar for a frozen encoder, else by the mapping's own tower."""
        if self.config.mapping.encoder == "frozen":
            table = read_sidecar(StageFolder(self.request.dataset, "embeddings"), shard, None)
            return torch.from_numpy(embeddings_of(table)[1].astype(np.float32))
        assert self.model.tower is not None
        width = self.model.tower.feature_dim
        return embed_regions(self.model.features, self.model, base, boxes, box_at, self.config, width)


def kept_pairs(boxes: np.ndarray, ids: np.ndarray, score_RA: np.ndarray, kept_RA: np.ndarray) -> RegionAttributePairs:
    """The pairs of one image; boxes without a pair are dropped and the others numbered anew."""
    region, column = np.nonzero(kept_RA)
    used, renumbered = np.unique(region, return_inverse=True)
    return RegionAttributePairs(
        boxes[used] if len(used) else NO_BOXES, renumbered, ids[column], score_RA[region, column]
    )


def pairs_table(keys: list[str], images: list[RegionAttributePairs]) -> pa.Table:
    types = {f.name: f.type for f in sidecar.PAIRS}
    pairs = [len(p.region) for p in images]

    def joined(parts: list[np.ndarray], kind: type) -> np.ndarray:
        return np.concatenate(parts).astype(kind) if parts else np.zeros(0, kind)

    boxes = np.concatenate([NO_BOXES, *[p.boxes for p in images]])
    columns = {
        "key": keys,
        "boxes": sidecar.ragged(types["boxes"], boxes, [len(p.boxes) for p in images]),
        "region": sidecar.ragged(types["region"], joined([p.region for p in images], np.uint16), pairs),
        "attribute": sidecar.ragged(types["attribute"], joined([p.attribute for p in images], np.int32), pairs),
        "score": sidecar.ragged(types["score"], joined([p.score for p in images], np.float16), pairs),
    }
    return sidecar.table(sidecar.PAIRS, columns)
