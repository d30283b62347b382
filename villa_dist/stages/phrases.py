"""phrases: the rank of each box' right phrase among its hard negatives, by a model (FG-OVD).

Letters: R boxes of a window, P phrases of one box (the right one first), D embedding.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from jaxtyping import Float

from shards import sidecar
from shards.commit import Marker, StageFolder
from shards.decode import DecodeError
from shards.errors import ShardError
from shards.reader import BaseShard
from shards.store import Store
from villa_dist.evaluate.errors import EvaluationError
from villa_dist.evaluate.fine_grained import phrase_ranks, phrase_scores
from villa_dist.evaluate.models_measured import encode, for_worker
from villa_dist.evaluate.phrases import UNKNOWN, AskedBoxes, PhraseBox
from villa_dist.observe import Timers
from villa_dist.regions.boxes import clip, large_enough
from villa_dist.stages.base import StageRequest, write_sidecar
from villa_dist.stages.images import embed_regions
from villa_dist.stages.windows import ReadAhead, Sample, windows

FIGURES = ("rank", "top1", "worst_rank")  # of `PhraseRanks`
RANKS = pa.schema(
    [("key", pa.string()), ("asked", pa.list_(pa.int32())), *((n, pa.list_(pa.float64())) for n in FIGURES)]
)


class PhrasesStage:
    """params: model, a `Measured`; boxes, the file of the annotations in the run. A sidecar has one row an image: the rows
    of the annotations that are of it, and each one's figures."""

    def __init__(self, request: StageRequest) -> None:
        self.request = request
        self.config, self.model = for_worker(request.params["model"], request.config)
        self.ahead = ReadAhead(StageFolder(request.dataset, "base"))
        self.boxes = AskedBoxes(Store(request.run), request.params["boxes"])

    def read_ahead(self, shard: str) -> None:
        self.ahead.begin(shard)

    def process(self, shard: str) -> Marker:
        timers = Timers()
        base = self.ahead.open(shard, timers)
        asked: list[list[int]] = [[] for _ in base.keys]
        parts, decoded = [np.zeros((0, len(FIGURES)))], 0
        for window in windows(base, self.config, timers, pixels=True, only=self.boxes.asked):
            decoded += len(window)
            for sample in window:
                asked[sample.row] = self._of(base, sample)
            parts.append(self._figures(base, window, [asked[s.row] for s in window], timers))
        counts = {"regions": sum(map(len, asked)), "decoded": decoded}
        return write_sidecar(
            self.request, base, lambda: _table(base.keys, asked, np.concatenate(parts)), timers, counts
        )

    def _of(self, base: BaseShard, sample: Sample) -> list[int]:
        try:
            return self.boxes.of(sample.key, sample.members)
        except DecodeError as error:
            raise ShardError(
                f"shard {base.place}: sample {sample.key!r}: {error.detail}; mend its .json member"
            ) from error

    def _figures(
        self, base: BaseShard, window: Sequence[Sample], asked: Sequence[list[int]], timers: Timers
    ) -> Float[np.ndarray, "R 3"]:
        rows = [[self.boxes.rows[n] for n in here] for here in asked]
        boxes = [_corners(base, sample, here) for sample, here in zip(window, rows, strict=True)]
        with timers.time("embed"):
            embed, width = self.model.embed_regions, self.model.dim
            region_RD = embed_regions(embed, self.model, window, boxes, self.config, width, base.place).numpy()
            phrases = [row.phrases for here in rows for row in here]
            vectors = encode(self.model, [p for each in phrases for p in each], self.config.model.dtype)
        with timers.time("detect"):
            ends = np.cumsum([len(p) for p in phrases])
            found = []
            for n, end in enumerate(ends):
                phrase_PD = vectors[end - len(phrases[n]) : end]
                try:
                    ranks = phrase_ranks(phrase_scores(region_RD[n : n + 1], phrase_PD[None]))
                except EvaluationError as error:
                    raise ShardError(f"shard {base.place}: {error}; the model is damaged, train it again") from error
                found.append([getattr(ranks, name)[0] for name in FIGURES])
        return np.array(found, np.float64).reshape(-1, len(FIGURES))


def _corners(base: BaseShard, sample: Sample, rows: Sequence[PhraseBox]) -> Float[np.ndarray, "r 4"]:
    """Boxes as x1, y1, x2, y2 within the image. Raises: EvaluationError naming the row and the sample they are not of."""
    for row in rows:
        if row.width != UNKNOWN and (row.width, row.height) != (sample.width, sample.height):
            raise EvaluationError(
                f"{row.place}: its image {row.image} has {row.width}x{row.height} pixels there, and the sample "
                f"{sample.key!r} of {base.place} {sample.width}x{sample.height}: boxes would not fit; pack the images as "
                "the annotations know them"
            )
    made = np.array([row.box for row in rows], np.float64).reshape(-1, 4)
    made[:, 2:] += made[:, :2]
    boxes = clip(made.astype(np.float32), sample.width, sample.height)
    empty = np.flatnonzero(~large_enough(boxes, 0.0))
    if len(empty):
        row = rows[empty[0]]
        raise EvaluationError(
            f"{row.place}: box {row.box} lies outside the sample {sample.key!r} of {base.place}, which has "
            f"{sample.width}x{sample.height} pixels; correct the box, or take the row out"
        )
    return boxes


def _table(keys: list[str], asked: list[list[int]], figures: Float[np.ndarray, "R 3"]) -> pa.Table:
    lengths = [len(a) for a in asked]
    rows = np.array([n for a in asked for n in a], np.int32)
    columns = {"key": pa.array(keys, pa.string()), "asked": sidecar.ragged(RANKS.field("asked").type, rows, lengths)}
    for n, name in enumerate(FIGURES):
        columns[name] = sidecar.ragged(RANKS.field(name).type, figures[:, n].copy(), lengths)
    return pa.table(columns, schema=RANKS)
