"""regions: propose boxes, find the attributes each text mentions, and embed the regions where a frozen mapping
needs it; one read and one decode an image.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import torch

from shards import sidecar
from shards.commit import Marker, StageFolder
from shards.reader import BaseShard
from shards.sample import chosen
from villa_dist import models
from villa_dist.encoders.precision import best_device
from villa_dist.observe import Timers
from villa_dist.stages.base import StageRequest, write_sidecar
from villa_dist.stages.images import NO_BOXES, embed_regions
from villa_dist.stages.propose import Finder, Found
from villa_dist.stages.windows import ReadAhead, Sample, windows


class RegionsStage:
    """params: model, the folder of the one-to-one VLM, or an empty string where no embeddings are kept; keep, the bound of
    the shards whose embeddings are kept (`shards.sample`)."""

    def __init__(self, request: StageRequest) -> None:
        self.request, self.config = request, request.config
        torch.set_num_threads(self.config.regions.threads)
        self.ahead = ReadAhead(StageFolder(request.dataset, "base"))
        self.finder = Finder(request)
        place = request.params["model"]
        self.model = models.load_vlm(place, best_device()) if place else None

    def read_ahead(self, shard: str) -> None:
        self.ahead.begin(shard)

    def process(self, shard: str) -> Marker:
        timers = Timers()
        base = self.ahead.open(shard, timers)
        embedding = self.model is not None and chosen(shard, self.request.params["keep"])
        given = self.finder.given(shard, base)
        found: list[Found] = []
        sizes: list[tuple[int, int]] = []
        values: list[np.ndarray] = []
        pixels = self.finder.needs_pixels or embedding
        for window in windows(base, self.config, timers, pixels=pixels):
            here = self.finder.of(shard, window, given, timers)
            if embedding:
                with timers.time("embed"):
                    values.append(self._embed(window, [f.boxes for f in here], base.place))
            found += here
            sizes += [(s.width, s.height) for s in window]
        if embedding:
            self._write_embeddings(base, values, [len(f.boxes) for f in found])
        counts = {
            "regions": sum(len(f.boxes) for f in found),
            "mentions": sum(len(f.mentions.ids) for f in found),
            "images_without_regions": sum(not len(f.boxes) for f in found),
            "dropped_boxes": sum(f.kept.dropped for f in found),
            "decoded": len(sizes) if pixels else 0,
        }
        return write_sidecar(self.request, base, lambda: regions_table(base.keys, sizes, found), timers, counts)

    def _embed(self, window: Sequence[Sample], boxes: list[np.ndarray], place: str) -> np.ndarray:
        """Features of the frozen VLM before projection, fp16."""
        assert self.model is not None
        model, width = self.model, self.model.image.feature_dim
        features = embed_regions(model.region_features, model, window, boxes, self.config, width, place)
        return features.numpy().astype(np.float16)

    def _write_embeddings(self, base: BaseShard, values: list[np.ndarray], counts: list[int]) -> None:
        """Commit the embeddings sidecar."""
        assert self.model is not None
        schema = sidecar.embeddings_schema(self.model.image.feature_dim)
        regions = np.concatenate([np.zeros(0, np.int64), *[np.arange(c) for c in counts]]).astype(np.uint16)
        flat = pa.array(np.concatenate([np.zeros(0, np.float16), *[v.reshape(-1) for v in values]]), type=pa.float16())
        columns = {
            "row": np.repeat(np.arange(len(counts)), counts).astype(np.int32),
            "region": regions,
            "embedding": pa.FixedSizeListArray.from_arrays(flat, type=schema.field("embedding").type),
        }
        own = Timers()  # the other parts are in the regions' marker
        split, fingerprint = self.request.split, self.request.fingerprint
        request = StageRequest("embeddings", "embeddings", split, self.config, fingerprint)
        write_sidecar(request, base, lambda: sidecar.table(schema, columns), own, {"regions": len(regions)})


def regions_table(keys: list[str], sizes: list[tuple[int, int]], found: list[Found]) -> pa.Table:
    types = {f.name: f.type for f in sidecar.REGIONS_WRITTEN}
    regions = [len(f.boxes) for f in found]
    mentions = [len(f.mentions.ids) for f in found]
    boxes = np.concatenate([NO_BOXES, *[f.boxes for f in found]])
    objectness = np.concatenate([np.zeros(0, np.float32), *[f.kept.regions.objectness for f in found]])
    mentioned = np.concatenate([np.zeros(0, np.int32), *[f.mentions.ids for f in found]])
    spans = np.concatenate([np.zeros((0, 2), np.int32), *[f.mentions.spans for f in found]])
    columns = {
        "key": keys,
        "width": [w for w, _ in sizes],
        "height": [h for _, h in sizes],
        "boxes": sidecar.ragged(types["boxes"], boxes, regions),
        "objectness": sidecar.ragged(types["objectness"], objectness, regions),
        "attributes": sidecar.ragged(types["attributes"], mentioned, mentions),
        "span_start": sidecar.ragged(types["span_start"], spans[:, 0], mentions),
        "span_stop": sidecar.ragged(types["span_stop"], spans[:, 1], mentions),
    }
    return sidecar.table(sidecar.REGIONS_WRITTEN, columns)
