"""embed: a model's embeddings of a split's true regions, for evaluation (float32, one row a region)."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import torch

from shards import sidecar
from shards.commit import Marker, StageFolder
from shards.reader import BaseShard, read_sidecar
from villa_dist import models
from villa_dist.encoders.precision import best_device
from villa_dist.observe import Timers
from villa_dist.stages.base import StageRequest, commit_sidecar
from villa_dist.stages.images import embed_regions


class EmbedStage:
    """params: model, the folder of the VLM."""

    def __init__(self, request: StageRequest) -> None:
        self.request, self.config = request, request.config
        torch.set_num_threads(self.config.regions.threads)
        self.base = StageFolder(request.dataset, "base")
        self.truth = StageFolder(request.dataset, "truth")
        self.model = models.load_vlm(request.params["model"], best_device())

    def process(self, shard: str) -> Marker:
        timers = Timers()
        base = BaseShard(self.base, shard)
        table = read_sidecar(self.truth, shard, sidecar.PAIRS)
        sidecar.check_aligned(table, base.keys, self.truth.store.path(shard))
        boxes, box_at = sidecar.list_column(table, "boxes")
        width = self.model.dim
        with timers.time("embed"):
            values = embed_regions(
                self.model.embed_regions, self.model, base, boxes, box_at, self.config, width
            ).numpy()
        image_of = np.repeat(np.arange(len(base)), np.diff(box_at)).astype(np.int32)
        kind = pa.list_(pa.float32(), width)
        flat = pa.array(values.reshape(-1), type=pa.float32())
        out = pa.table({"row": image_of, "embedding": pa.FixedSizeListArray.from_arrays(flat, type=kind)})
        with self.request.output().attempt(shard) as attempt:
            attempt.write(f"{shard}.parquet", sidecar.to_bytes(out))
            return commit_sidecar(
                self.request,
                attempt,
                shard,
                keys=base.keys,
                input_digest=base.marker.output(".tar").sha256,
                timers=timers,
                counts={"regions": len(values)},
            )
