"""R-Precision of any number of regions in bounded memory.

Letters: R regions, A attributes, B bins. The cut of an attribute's ranking is found digit by digit: a pass counts how many
scores fall into each of B bins, the next pass looks into the bin that holds the cut. Three passes of 12 bits find it
exactly, with A x B counters in memory and neither regions nor scores (1,000 attributes: 64 MB, at 10 million regions too).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import numpy as np
from jaxtyping import Bool, Float, Int

from villa_dist.evaluate.errors import EvaluationError
from villa_dist.evaluate.retrieval import STEPS, Retrieval, precision_at_relevant, similarity

Chunk = tuple[Float[np.ndarray, "R D"], Bool[np.ndarray, "R A"]]

KEY_BITS = 36  # a score in steps of 2^-33, moved up to be positive
OFFSET = 2**34
DIGITS = (12, 9, 6, 4)  # bits a pass; each divides KEY_BITS
COUNTERS = 2**22  # of all attributes together
CELLS = 2**20  # scores in memory at a time


def streamed_r_precision(chunks: Callable[[], Iterable[Chunk]], attribute: Float[np.ndarray, "A D"]) -> Retrieval:
    """`retrieval.r_precision` of regions that come in chunks.

    chunks: called once a pass (three for up to 1,024 attributes, then four, six, nine); gives the same regions with the
    same truth each time, in any cut. Embeddings are of unit length.

    Raises: EvaluationError for embeddings that are not finite, longer than 1, or do not fit the attributes or the truth,
    and for passes that differ.
    """
    count = len(attribute)
    bits = next((b for b in DIGITS if count << b <= COUNTERS), DIGITS[-1])
    prefix, hits = np.zeros(count, np.int64), np.zeros(count, np.int64)
    relevant, places = np.zeros(count, np.int64), np.zeros(count, np.int64)
    by_region, regions = float("nan"), 0
    tied = tied_hits = np.ones(count, np.int64)
    for shift in range(KEY_BITS - bits, -1, -bits):
        first = shift == KEY_BITS - bits
        bins, hit_bins = np.zeros((2, count, 1 << bits), np.int64)
        total = np.zeros(2)  # of region scores, and how many
        seen, true_seen = 0, np.zeros(count, np.int64)
        for region, truth in _pieces(chunks(), count):
            score = similarity(region, attribute)
            if first:
                known = precision_at_relevant(score, truth)
                total += np.nansum(known), (~np.isnan(known)).sum()
            _count(_keys(score), truth, prefix, shift, bits, bins, hit_bins)
            seen, true_seen = seen + len(region), true_seen + truth.sum(0)
        if first:
            regions, relevant, places = seen, true_seen, true_seen
            by_region = float(total[0] / total[1]) if total[1] else float("nan")
        elif seen != regions or (true_seen != relevant).any():
            raise EvaluationError(f"one pass over the regions gave {regions}, another {seen}, or another truth")
        digit, above, above_hits = _cut(bins, hit_bins, places)
        prefix, places, hits = (prefix << bits) | digit, places - above, hits + above_hits
        tied, tied_hits = bins[np.arange(count), digit], hit_bins[np.arange(count), digit]
    by_attribute = np.full(count, np.nan)
    np.divide(hits + places * tied_hits / np.maximum(tied, 1), relevant, out=by_attribute, where=relevant > 0)
    known = by_attribute[relevant > 0]
    return Retrieval(float(known.mean()) if len(known) else float("nan"), by_region, by_attribute)


def _pieces(chunks: Iterable[Chunk], attributes: int) -> Iterator[Chunk]:
    rows = max(1, CELLS // max(attributes, 1))
    for region, truth in chunks:
        if truth.shape != (len(region), attributes):
            raise EvaluationError(f"truth of shape {truth.shape} for {len(region)} regions, {attributes} attributes")
        for i in range(0, len(region), rows):
            yield region[i : i + rows], truth[i : i + rows]


def _keys(score: Float[np.ndarray, "R A"]) -> Int[np.ndarray, "R A"]:
    if len(score) and np.abs(score).max() > 1.5:
        raise EvaluationError(
            f"a cosine of {score.flat[np.abs(score).argmax()]:.3g}: embeddings must be of unit length"
        )
    return (score * STEPS).astype(np.int64) + OFFSET


def _count(
    key: Int[np.ndarray, "R A"],
    truth: Bool[np.ndarray, "R A"],
    prefix: Int[np.ndarray, " A"],
    shift: int,
    bits: int,
    bins: Int[np.ndarray, "A B"],
    hit_bins: Int[np.ndarray, "A B"],
) -> None:
    """Add the digits of the keys that begin with `prefix` to the bins."""
    row, column = np.nonzero(key >> (shift + bits) == prefix)
    bin_ = (column << bits) + ((key[row, column] >> shift) & ((1 << bits) - 1))
    np.add.at(bins.reshape(-1), bin_, 1)
    np.add.at(hit_bins.reshape(-1), bin_[truth[row, column]], 1)


def _cut(
    bins: Int[np.ndarray, "A B"], hit_bins: Int[np.ndarray, "A B"], places: Int[np.ndarray, " A"]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The digit at which the `places` best end, and how many scores and hits lie above it."""
    down, hits_down = (b[:, ::-1].cumsum(1) for b in (bins, hit_bins))
    at = np.argmax(down >= np.maximum(places, 1)[:, None], axis=1)  # counted from the greatest digit
    a = np.arange(len(bins))
    return (
        bins.shape[1] - 1 - at,
        np.where(at > 0, down[a, at - 1], 0),
        np.where(at > 0, hits_down[a, at - 1], 0),
    )
