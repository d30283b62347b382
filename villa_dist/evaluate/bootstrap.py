"""Paired bootstrap: how far a difference between two models could be chance of the images drawn.

Letters: I images, B resamples, S sums. Images are drawn with replacement, the same images for both models; a metric is
computed from sums over the drawn images, so that a resample is one row of weights and one matrix product.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from villa_dist.evaluate.errors import EvaluationError
from villa_dist.evaluate.mapping_quality import Counts

REPETITIONS = 2000
CELLS = 2**24  # weights in memory at a time

Value = Callable[[Float[np.ndarray, "B S"]], Float[np.ndarray, " B"]]


@dataclass(frozen=True)
class Difference:
    """second - first, with its percentile interval: chance alone would leave it with probability 1 - level."""

    first: float
    second: float
    difference: float
    low: float
    high: float
    level: float
    repetitions: int

    @property
    def significant(self) -> bool:
        return self.low > 0 or self.high < 0


def image_weights(images: int, repetitions: int, seed: int) -> Int[np.ndarray, "B I"]:
    """How often each resample drew each image. Rows come from one stream: more repetitions only add rows."""
    draws = np.random.default_rng(seed).integers(0, images, (repetitions, images))
    flat = draws + images * np.arange(repetitions)[:, None]
    return np.bincount(flat.reshape(-1), minlength=repetitions * images).reshape(repetitions, images)


def ratio(sums: Float[np.ndarray, "B 2"]) -> Float[np.ndarray, " B"]:
    """Numerator over denominator: top-1, recall, region-to-attribute R-Precision, mean rank. NaN over nothing."""
    return np.divide(sums[:, 0], sums[:, 1], out=np.full(len(sums), np.nan), where=sums[:, 1] > 0)


def f1(sums: Float[np.ndarray, "B 3"]) -> Float[np.ndarray, " B"]:
    """Micro F1 of right, wrong and missed, as `mapping_quality.Counts.over`: 0 over nothing."""
    right, wrong, missed = sums.T
    return 2 * right / np.maximum(2 * right + wrong + missed, 1)


def per_image(value: Float[np.ndarray, " N"], image: Int[np.ndarray, " N"], images: int) -> Float[np.ndarray, "I 2"]:
    """Sums for `ratio` from a value a query: its sum and count by image; NaN values are left out.

    Raises: EvaluationError for an image out of range.
    """
    if len(image) and (image.min() < 0 or image.max() >= images):
        raise EvaluationError(f"a query names image {image.min() if image.min() < 0 else image.max()}, of {images}")
    known = ~np.isnan(value)
    weights = (value[known], np.ones(known.sum()))
    return np.stack([np.bincount(image[known], w, minlength=images) for w in weights], 1)


def mapping_sums(counts: Sequence[Counts], chosen: np.ndarray | None = None) -> Float[np.ndarray, "I 3"]:
    """Sums for `f1` from the counts of each image, over a mask of attributes or all of them."""
    rows = [[c[slice(None) if chosen is None else chosen].sum() for c in (n.right, n.wrong, n.missed)] for n in counts]
    return np.array(rows, np.float64).reshape(len(counts), 3)


def paired_difference(
    first: Float[np.ndarray, "I S"],
    second: Float[np.ndarray, "I S"],
    value: Value,
    *,
    level: float = 0.95,
    repetitions: int = REPETITIONS,
    seed: int = 0,
) -> Difference:
    """The difference of a metric between two models on the same images, row i of both being image i.

    Resamples on which the metric is not defined are left out.

    Raises: EvaluationError for no images, sums of other images or not finite, a level outside (0, 1), and a metric that
    is undefined on most resamples.
    """
    if first.shape != second.shape or not len(first):
        raise EvaluationError(
            f"sums of shape {first.shape} and {second.shape}: both models need the same images, and some"
        )
    if not (np.isfinite(first).all() and np.isfinite(second).all()):
        raise EvaluationError("sums of an image hold NaN or infinity")
    drawn = resampled(np.concatenate([first, second], 1), repetitions, seed)
    one, other = value(drawn[:, : first.shape[1]]), value(drawn[:, first.shape[1] :])
    return interval(float(one[0]), float(other[0]), other[1:] - one[1:], level)


def resampled(sums: Float[np.ndarray, "I S"], repetitions: int, seed: int = 0) -> Float[np.ndarray, "B1 S"]:
    """Sums over all images, then over the images that each resample drew."""
    random = np.random.default_rng(seed)
    step = max(1, CELLS // max(len(sums), 1))
    parts = [sums.sum(0, keepdims=True, dtype=np.float64)]
    for start in range(0, repetitions, step):
        rows = min(step, repetitions - start)
        parts.append(image_weights(len(sums), rows, int(random.integers(2**63))) @ sums)
    return np.concatenate(parts)


def interval(first: float, second: float, draws: Float[np.ndarray, " B"], level: float = 0.95) -> Difference:
    """The percentile interval of drawn differences. Raises: EvaluationError."""
    if not 0 < level < 1:
        raise EvaluationError(f"level is {level}; it must be between 0 and 1")
    known = draws[np.isfinite(draws)]
    if len(known) * 2 < len(draws) or not len(known):
        raise EvaluationError(f"the metric is undefined on {len(draws) - len(known)} of {len(draws)} resamples")
    low, high = np.quantile(known, [(1 - level) / 2, (1 + level) / 2])
    return Difference(first, second, second - first, float(low), float(high), level, len(known))
