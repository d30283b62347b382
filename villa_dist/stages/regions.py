"""regions: propose boxes, find the attributes each text mentions, and embed the regions where a frozen mapping
needs it; one decode an image.
"""

from __future__ import annotations

import io

import numpy as np
import pyarrow as pa
import torch
from PIL import Image

from shards import sidecar
from shards.commit import Marker, StageFolder
from shards.decode import image_member, sample_text
from shards.errors import ShardError
from shards.reader import BaseShard, read_sidecar
from shards.store import Store
from villa_dist import models
from villa_dist.attributes import vocabulary
from villa_dist.encoders.precision import best_device
from villa_dist.observe import Timers
from villa_dist.regions.boxes import problem
from villa_dist.regions.proposals import BACKENDS
from villa_dist.stages.base import StageRequest, commit_sidecar
from villa_dist.stages.images import embed_regions


class RegionsStage:
    """params: model, the folder of the one-to-one VLM, or an empty string where no embeddings are kept."""

    def __init__(self, request: StageRequest) -> None:
        self.request, self.config = request, request.config
        torch.set_num_threads(self.config.regions.threads)
        self.base = StageFolder(request.dataset, "base")
        self.truth = StageFolder(request.dataset, "truth")
        self.propose = BACKENDS[self.config.regions.proposals](self.config.regions)
        self.matcher = vocabulary.read(Store(request.run)).matcher(self.config.vocabulary.negation)
        place = request.params["model"]
        self.model = models.load_vlm(place, best_device()) if place else None

    def process(self, shard: str) -> Marker:
        timers = Timers()
        base = BaseShard(self.base, shard)
        given = self._given(shard, base) if self.config.regions.proposals == "annotations" else None
        sizes, proposed, attributes = [], [], []
        with timers.time("propose"):
            for row, (key, members) in enumerate(base.samples()):
                width, height = upright_size(image_member(members))
                found = self.propose(height, width, given[row] if given else None)
                trouble = problem(found.boxes, width, height)
                if trouble:
                    raise ShardError(f"shard {shard}: sample {key!r}: {trouble}; correct the boxes of this sample")
                sizes.append((width, height))
                proposed.append(found)
                attributes.append(self.matcher.attributes(sample_text(members)))
        counts = [len(p.boxes) for p in proposed]
        boxes = np.concatenate([p.boxes for p in proposed] or [np.zeros((0, 4), np.float32)])
        digest = base.marker.output(".tar").sha256
        if self.model is not None:
            self._embed(shard, base, boxes, counts, digest)
        types = {f.name: f.type for f in sidecar.REGIONS_WRITTEN}
        objectness = np.concatenate([p.objectness for p in proposed] or [np.zeros(0, np.float32)])
        mentions = [len(a.ids) for a in attributes]
        mentioned = np.concatenate([np.zeros(0, np.int32), *[a.ids for a in attributes]])
        spans = np.concatenate([np.zeros((0, 2), np.int32), *[a.spans for a in attributes]])
        columns = {
            "key": base.keys,
            "width": [w for w, _ in sizes],
            "height": [h for _, h in sizes],
            "boxes": sidecar.ragged(types["boxes"], boxes, counts),
            "objectness": sidecar.ragged(types["objectness"], objectness, counts),
            "attributes": sidecar.ragged(types["attributes"], mentioned, mentions),
            "span_start": sidecar.ragged(types["span_start"], spans[:, 0], mentions),
            "span_stop": sidecar.ragged(types["span_stop"], spans[:, 1], mentions),
        }
        with self.request.output().attempt(shard) as attempt:
            attempt.write(f"{shard}.parquet", sidecar.to_bytes(sidecar.table(sidecar.REGIONS_WRITTEN, columns)))
            return commit_sidecar(
                self.request,
                attempt,
                shard,
                keys=base.keys,
                input_digest=digest,
                timers=timers,
                counts={"regions": len(boxes), "mentions": len(mentioned)},
            )

    def _given(self, shard: str, base: BaseShard) -> list[np.ndarray]:
        table = read_sidecar(self.truth, shard, sidecar.PAIRS)
        sidecar.check_aligned(table, base.keys, self.truth.store.path(shard))
        boxes, at = sidecar.list_column(table, "boxes")
        return [boxes[at[i] : at[i + 1]] for i in range(len(base))]

    def _embed(self, shard: str, base: BaseShard, boxes: np.ndarray, counts: list[int], digest: str) -> None:
        """Commit the embeddings sidecar: features of the frozen VLM before projection, fp16."""
        assert self.model is not None
        timers = Timers()
        box_at = np.concatenate([[0], np.cumsum(counts)])
        width = self.model.image.feature_dim
        with timers.time("embed"):
            embedded = embed_regions(self.model.region_features, self.model, base, boxes, box_at, self.config, width)
        values = embedded.numpy().astype(np.float16)
        regions = np.concatenate([np.zeros(0, np.int64), *[np.arange(c) for c in counts]]).astype(np.uint16)
        schema = sidecar.embeddings_schema(width)
        flat = pa.array(values.reshape(-1), type=pa.float16())
        columns = {
            "row": np.repeat(np.arange(len(counts)), counts).astype(np.int32),
            "region": regions,
            "embedding": pa.FixedSizeListArray.from_arrays(flat, type=schema.field("embedding").type),
        }
        folder = StageFolder(self.request.dataset, "embeddings")
        with folder.attempt(shard) as attempt:
            attempt.write(f"{shard}.parquet", sidecar.to_bytes(sidecar.table(schema, columns)))
            request = StageRequest(
                "embeddings",
                "embeddings",
                self.request.split,
                self.config,
                self.request.fingerprint,
            )
            commit_sidecar(request, attempt, shard, keys=base.keys, input_digest=digest, timers=timers)


def upright_size(image: bytes) -> tuple[int, int]:
    """(width, height) as decoded, EXIF orientation applied, from the header alone."""
    with Image.open(io.BytesIO(image)) as opened:
        width, height = opened.size
        turned = opened.getexif().get(0x0112, 1) in (5, 6, 7, 8)
    return (height, width) if turned else (width, height)
