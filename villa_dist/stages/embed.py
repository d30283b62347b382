"""embed: a model's embeddings of a split's true regions, for evaluation (float32, one row a region)."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import torch

from shards import sidecar
from shards.commit import Marker, StageFolder
from shards.reader import read_sidecar
from villa_dist import models
from villa_dist.encoders.precision import best_device
from villa_dist.observe import Timers
from villa_dist.stages.base import StageRequest, write_sidecar
from villa_dist.stages.images import embed_regions
from villa_dist.stages.windows import ReadAhead, windows


class EmbedStage:
    """params: model, the folder of the VLM."""

    def __init__(self, request: StageRequest) -> None:
        self.request, self.config = request, request.config
        torch.set_num_threads(self.config.regions.threads)
        self.ahead = ReadAhead(StageFolder(request.dataset, "base"))
        self.truth = StageFolder(request.dataset, "truth")
        self.model = models.load_vlm(request.params["model"], best_device())

    def read_ahead(self, shard: str) -> None:
        self.ahead.begin(shard)

    def process(self, shard: str) -> Marker:
        timers = Timers()
        base = self.ahead.open(shard, timers)
        table = read_sidecar(self.truth, shard, sidecar.PAIRS)
        sidecar.check_aligned(table, base.keys, self.truth.store.path(shard))
        boxes, box_at = sidecar.list_column(table, "boxes")
        width = self.model.dim
        values = np.zeros((len(boxes), width), np.float32)
        for window in windows(base, self.config, timers, pixels=True):
            rows = range(window[0].row, window[-1].row + 1)
            here = [boxes[box_at[i] : box_at[i + 1]] for i in rows]
            with timers.time("embed"):
                embed = self.model.embed_regions
                found = embed_regions(embed, self.model, window, here, self.config, width, base.place)
            values[box_at[rows.start] : box_at[rows.stop]] = found.numpy()
        image_of = np.repeat(np.arange(len(base)), np.diff(box_at)).astype(np.int32)
        counts = {"regions": len(values), "decoded": len(base)}
        return write_sidecar(self.request, base, lambda: _table(image_of, values), timers, counts)


def _table(image_of: np.ndarray, values: np.ndarray) -> pa.Table:
    kind = pa.list_(pa.float32(), values.shape[1])
    flat = pa.array(values.reshape(-1), type=pa.float32())
    return pa.table({"row": image_of, "embedding": pa.FixedSizeListArray.from_arrays(flat, type=kind)})
