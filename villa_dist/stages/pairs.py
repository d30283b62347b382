"""pairs: score each image's regions against the attributes its text mentions, and keep the pairs that hold.

What is there is used: boxes and mentions of a regions sidecar, features of an embeddings sidecar. What is not is made in
the same pass: propose, embed and map in one read and one decode an image, which writes nothing but pairs. Either way the
pairs are the same, byte for byte.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from shards import sidecar
from shards.commit import Marker, StageFolder
from shards.errors import ShardError
from shards.reader import BaseShard, embeddings_of, read_sidecar
from shards.store import Store
from villa_dist import models
from villa_dist.attributes import vocabulary
from villa_dist.encoders.precision import best_device
from villa_dist.mapping.assign import assign, weighed
from villa_dist.mapping.quality import Monitor
from villa_dist.observe import Timers
from villa_dist.stages.base import StageRequest, write_sidecar
from villa_dist.stages.images import NO_BOXES, embed_regions
from villa_dist.stages.propose import Finder
from villa_dist.stages.windows import ReadAhead, Sample, spans, windows
from villa_dist.types import RegionAttributePairs


@dataclass(frozen=True)
class Known:
    """What sidecars say of the N images of a shard."""

    boxes: list[np.ndarray]  # N times r x 4
    objectness: list[np.ndarray]  # N times r
    mentions: list[np.ndarray]  # N times a, int64
    pixels: list[int]  # N


@dataclass(frozen=True)
class Images:
    """A run of images on the way to pairs. N images, R regions of them all."""

    boxes: list[np.ndarray]  # N times r x 4
    objectness: list[np.ndarray]  # N times r
    mentions: list[np.ndarray]  # N times a, int64
    feature: Tensor  # R x E


class PairsStage:
    """params: model, the folder of the mapping model; vlm, that of the frozen VLM, else empty; regions, the fingerprint that
    region sidecars must have where pairs are fused, else None: every shard has one."""

    def __init__(self, request: StageRequest) -> None:
        self.request, self.config = request, request.config
        torch.set_num_threads(self.config.regions.threads)
        self.base = StageFolder(request.dataset, "base")
        self.regions = StageFolder(request.dataset, "regions")
        self.embeddings = StageFolder(request.dataset, "embeddings")
        self.ahead = ReadAhead(self.base)
        self.model = models.load_mapping(request.params["model"], best_device())
        place = request.params["vlm"]
        self.vlm = models.load_vlm(place, best_device()) if place else None
        self.groups = vocabulary.read(Store(self.config.run)).groups
        self.finder: Finder | None = None
        self.chances = self.config.mapping.loss != "contrastive"  # whether scores are probabilities

    def read_ahead(self, shard: str) -> None:
        if self.vlm is None or self.embeddings.find_marker(shard) is None:
            self.ahead.begin(shard)

    def process(self, shard: str) -> Marker:
        timers = Timers()
        base = self.ahead.open(shard, timers)
        with timers.time("read"):
            known = self._known(shard, base)
            feature = self._feature(shard, known)
        images: list[RegionAttributePairs] = []
        monitor = Monitor(len(base), self.chances)
        counts: dict[str, float] = {"regions": 0, "mentions": 0, "decoded": 0 if feature is not None else len(base)}
        if known is not None and feature is not None:
            runs = self._stored(known, feature)
        else:
            runs = self._looked_at(base, known, timers)
        for some in runs:
            with timers.time("map"):
                try:
                    images += self._mapped(some, monitor)
                except ValueError as error:  # scores that are not numbers
                    raise ShardError(f"shard {base.place}: {error}") from error
            counts["regions"] += sum(map(len, some.boxes))
            counts["mentions"] += sum(map(len, some.mentions))
        counts["pairs"] = sum(len(p.region) for p in images)
        counts["empty"] = counts["regions"] - sum(len(p.boxes) for p in images)
        with timers.time("map"):
            counts |= monitor.result(self.model, self.groups)
        return write_sidecar(self.request, base, lambda: pairs_table(base.keys, images), timers, counts)

    def _known(self, shard: str, base: BaseShard) -> Known | None:
        """Boxes and mentions of the regions sidecar; None where pairs are fused and there is none of this config."""
        wanted = self.request.params["regions"]
        if wanted is not None:
            marker = self.regions.find_marker(shard)
            if marker is None or marker.fingerprint != wanted:
                return None
        table = read_sidecar(self.regions, shard, sidecar.REGIONS)
        sidecar.check_aligned(table, base.keys, self.regions.store.path(shard))
        boxes, box_at = sidecar.list_column(table, "boxes")
        objectness = sidecar.list_column(table, "objectness")[0]
        mentioned, mentioned_at = sidecar.list_column(table, "attributes")
        rows = range(len(base))
        return Known(
            [boxes[box_at[i] : box_at[i + 1]] for i in rows],
            [objectness[box_at[i] : box_at[i + 1]] for i in rows],
            [mentioned[mentioned_at[i] : mentioned_at[i + 1]].astype(np.int64) for i in rows],
            (table["width"].to_numpy().astype(np.int64) * table["height"].to_numpy()).tolist(),
        )

    def _feature(self, shard: str, known: Known | None) -> Tensor | None:
        """Of the known regions of a shard, from the embeddings sidecar; None where it has none, or features are not frozen.

        Raises: ShardError when there are more or fewer than regions.
        """
        if known is None or self.vlm is None or self.embeddings.find_marker(shard) is None:
            return None
        values = embeddings_of(read_sidecar(self.embeddings, shard, None))[1]
        regions = sum(map(len, known.boxes))
        if len(values) != regions:
            raise ShardError(
                f"shard {shard}: {self.embeddings.store.path()} holds {len(values)} embeddings of {regions} regions; "
                "redo the regions stage with --force"
            )
        return torch.from_numpy(values.astype(np.float32))

    def _stored(self, known: Known, feature: Tensor) -> Iterator[Images]:
        """Run by run as they would be looked at, since what is mapped together may differ in the last bit."""
        first = 0
        for run in spans(known.pixels, self.config.regions.batch_images):
            rows = slice(run.start, run.stop)
            boxes = known.boxes[rows]
            regions = sum(map(len, boxes))
            yield Images(boxes, known.objectness[rows], known.mentions[rows], feature[first : first + regions])
            first += regions

    def _looked_at(self, base: BaseShard, known: Known | None, timers: Timers) -> Iterator[Images]:
        """Window by window; regions and mentions are found where they are not known."""
        if known is None and self.finder is None:
            self.finder = Finder(self.request)
        given = self.finder.given(base.shard, base) if known is None and self.finder else None
        for window in windows(base, self.config, timers, pixels=True):
            if known is not None:
                rows = slice(window[0].row, window[-1].row + 1)
                boxes, objectness, mentions = known.boxes[rows], known.objectness[rows], known.mentions[rows]
            else:
                assert self.finder is not None
                found = self.finder.of(base.shard, window, given, timers)
                boxes, objectness = [f.boxes for f in found], [f.objectness for f in found]
                mentions = [f.mentions.ids.astype(np.int64) for f in found]
            with timers.time("embed"):
                feature = self._embed(window, boxes, base.place)
            yield Images(boxes, objectness, mentions, feature)

    def _embed(self, window: Sequence[Sample], boxes: Sequence[np.ndarray], place: str) -> Tensor:
        """R x E by the mapping's own tower, or as the embeddings sidecar of the frozen VLM would hold them."""
        if self.vlm is not None:
            model, width = self.vlm, self.vlm.image.feature_dim
            return embed_regions(model.region_features, model, window, boxes, self.config, width, place).half().float()
        width = self.model.feature_dim
        return embed_regions(self.model.features, self.model, window, boxes, self.config, width, place)

    def _mapped(self, some: Images, monitor: Monitor) -> list[RegionAttributePairs]:
        counts = [len(b) for b in some.boxes]
        with torch.inference_mode():
            scores = self.model.score_images(some.feature, counts, some.mentions)
        monitor.see(some.feature.split(counts), some.mentions, scores)
        groups, thresholds, config = self.model.groups, self.model.thresholds, self.config.pairs
        if config.objectness:
            scores = [
                weighed(score_RA, objectness_R, config.objectness, chances=self.chances)
                for score_RA, objectness_R in zip(scores, some.objectness, strict=True)
            ]
        return [
            kept_pairs(boxes, ids, score_RA, assign(score_RA, config, thresholds[ids], groups[ids]))
            for boxes, ids, score_RA in zip(some.boxes, some.mentions, scores, strict=True)
        ]


def kept_pairs(boxes: np.ndarray, ids: np.ndarray, score_RA: np.ndarray, kept_RA: np.ndarray) -> RegionAttributePairs:
    """The pairs of one image; boxes without a pair are dropped and the others numbered anew."""
    region, column = np.nonzero(kept_RA)
    used_R = kept_RA.any(1)
    renumbered = (np.cumsum(used_R) - 1)[region]
    return RegionAttributePairs(boxes[used_R], renumbered, ids[column], score_RA[region, column])


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
