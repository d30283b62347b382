"""whole: a model's embeddings of a split's whole images and whole texts, for retrieval (float32, one row an image)."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from torch import Tensor

from shards.commit import Marker, StageFolder
from shards.decode import DecodeError, decode_json, sample_text
from shards.errors import ShardError
from villa_dist.evaluate.models_measured import encode_whole, for_worker
from villa_dist.evaluate.whole import text_number
from villa_dist.observe import Timers
from villa_dist.stages.base import StageRequest, write_sidecar
from villa_dist.stages.images import embed_regions
from villa_dist.stages.windows import ReadAhead, Sample, windows


class WholeStage:
    """params: model, a `Measured`; field, of a sample's .json, that names its class, or None."""

    def __init__(self, request: StageRequest) -> None:
        self.request, self.field = request, request.params["field"]
        self.config, self.model = for_worker(request.params["model"], request.config)
        self.ahead = ReadAhead(StageFolder(request.dataset, "base"))

    def read_ahead(self, shard: str) -> None:
        self.ahead.begin(shard)

    def process(self, shard: str) -> Marker:
        timers = Timers()
        base = self.ahead.open(shard, timers)
        images, texts, numbers, classes = [], [], [], []
        for window in windows(base, self.config, timers, pixels=True):
            said = [_text(shard, sample) for sample in window]
            edges = [np.array([[0, 0, s.width, s.height]], np.float32) for s in window]
            with timers.time("embed"):
                found = embed_regions(
                    self._whole, self.model, window, edges, self.config, self.model.dim, base.place, "image"
                )
                images.append(found.numpy())
                texts.append(encode_whole(self.model, said, self.config.model.dtype))
            if not np.isfinite(texts[-1]).all():
                raise ShardError(
                    f"shard {base.place}: text embeddings hold NaN or infinity; the model is damaged, train it again"
                )
            numbers += [text_number(t) for t in said]
            classes += [_class(shard, sample, self.field) for sample in window]
        columns = {"key": pa.array(base.keys, pa.string()), "class": pa.array(classes, pa.string())}
        columns["text_number"] = pa.array(numbers, pa.int64())
        for name, parts in (("image", images), ("text", texts)):
            columns[name] = _vectors(parts, self.model.dim)
        return write_sidecar(self.request, base, lambda: pa.table(columns), timers, {"decoded": len(base)})

    def _whole(self, pixels: Tensor, boxes: Tensor, image_of: Tensor, sizes: Tensor) -> Tensor:
        """Of each image its edges are the one box."""
        return self.model.embed_whole(pixels, sizes)


def _text(shard: str, sample: Sample) -> str:
    try:
        return sample_text(sample.members)
    except DecodeError as error:
        raise ShardError(f"shard {shard}: sample {sample.key!r}: {error}; redo the ingest stage") from error


def _class(shard: str, sample: Sample, field: str | None) -> str:
    """ "" where the sample's .json has no such field, or it holds nothing. Raises: ShardError naming the sample."""
    if field is None or "json" not in sample.members:
        return ""
    try:
        value = decode_json(sample.members["json"]).get(field)
    except DecodeError as error:
        raise ShardError(f"shard {shard}: sample {sample.key!r}: {error.detail}; mend its .json member") from error
    if value is None or isinstance(value, str | int):
        return "" if value is None else str(value).strip()
    raise ShardError(
        f"shard {shard}: sample {sample.key!r}: {field!r} of its .json is {str(value)[:80]}, which is no class; "
        "evaluate.classes.field must name a field that holds one text"
    )


def _vectors(parts: list[np.ndarray], width: int) -> pa.Array:
    values = np.concatenate([np.zeros((0, width), np.float32), *parts])
    kind = pa.list_(pa.float32(), width)
    return pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1), type=pa.float32()), type=kind)
