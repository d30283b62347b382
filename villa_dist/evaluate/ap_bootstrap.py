"""The paired bootstrap of average precision.

Which box a detection finds depends on its own image only. So detections are matched once, in numpy (a third
implementation, held equal to the engines), and a resample only reweighs their images: exact drawing with replacement,
without matching anything again.

Letters: N detections of a category, falling score; T IoU thresholds; B resamples; I images; C categories.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from villa_dist.evaluate.average_precision import IOUS, RECALLS
from villa_dist.evaluate.bootstrap import Difference, image_weights, interval
from villa_dist.evaluate.coco_engine import PER_CATEGORY
from villa_dist.evaluate.detection import Detections, Truth, prepared
from villa_dist.evaluate.errors import EvaluationError
from villa_dist.evaluate.lvis_engine import lvis_prepared

CELLS = 2**22  # of resamples x detections in memory at a time
METRICS = {"AP": slice(0, 10), "AP50": slice(0, 1), "AP75": slice(5, 6)}


@dataclass(frozen=True)
class Outcomes:
    """What became of a category's detections, area range `all`."""

    image: Int[np.ndarray, " N"]  # row of truth.images
    hit: Bool[np.ndarray, "T N"]
    wrong: Bool[np.ndarray, "T N"]  # neither hit nor to be ignored
    boxes: Int[np.ndarray, " I"]  # boxes to find in each image


def ap_difference(
    truth: Truth,
    first: Detections,
    second: Detections,
    *,
    metric: str = "AP50",
    categories: np.ndarray | None = None,
    lvis: bool = False,
    per_image: int | None = None,
    repetitions: int = 200,
    level: float = 0.95,
    seed: int = 0,
) -> Difference:
    """The difference of AP, AP50 or AP75 between two detectors on the same images, in [-1, 1].

    categories: mean over these (novel, base, rare) instead of all. lvis: LVIS' rules and its cap of 300 an image.
    Cost: about one fast evaluation, and `repetitions` x detections x thresholds.

    Raises: EvaluationError, see `detection.check` and `bootstrap.interval`.
    """
    if metric not in METRICS:
        raise EvaluationError(f"metric is {metric!r}; it must be one of {', '.join(METRICS)}")
    if not len(truth.images):
        raise EvaluationError("the truth has no images to draw from")
    weights = np.concatenate(
        [np.ones((1, len(truth.images)), np.int64), image_weights(len(truth.images), repetitions, seed)]
    )
    means = []
    for found in (first, second):
        if lvis:
            true, rows = lvis_prepared(truth, found, per_image or 300)
        else:
            true, rows = prepared(truth, found, per_image)
        if categories is not None:
            true, rows = true.only(categories), rows.take(np.isin(rows.category, categories))
        by_category = [
            weighted_precision(o, weights, IOUS[METRICS[metric]], METRICS[metric])
            for o in outcomes(true, rows, per_category=None if lvis else max(PER_CATEGORY, per_image or 0))
        ]
        means.append(_mean(by_category))
    return interval(float(means[0][0]), float(means[1][0]), means[1][1:] - means[0][1:], level)


def outcomes(truth: Truth, detections: Detections, *, per_category: int | None) -> list[Outcomes]:
    """Of each category of the truth; truth and detections as `prepared` (or `lvis_prepared`) returns them."""
    loose = np.zeros((0, 2), np.int64) if truth.not_exhaustive is None else truth.not_exhaustive
    ends = np.append(truth.categories, np.iinfo(np.int64).max)
    true_at, found_at = np.searchsorted(truth.category, ends), np.searchsorted(detections.category, ends)
    out = []
    for c, category in enumerate(truth.categories):
        true = truth.take(np.arange(true_at[c], true_at[c + 1]))
        found = detections.take(np.arange(found_at[c], found_at[c + 1]))
        out.append(_category(truth.images, true, found, loose[loose[:, 1] == category, 0], per_category))
    return out


def _category(
    images: np.ndarray, true: Truth, found: Detections, loose: np.ndarray, per_category: int | None
) -> Outcomes:
    at = np.searchsorted(found.image, np.append(images, np.iinfo(np.int64).max))
    if per_category is not None:
        rank = np.arange(len(found)) - np.repeat(at[:-1], np.diff(at))
        found = found.take(rank < per_category)
        at = np.searchsorted(found.image, np.append(images, np.iinfo(np.int64).max))
    hit, ignored = np.zeros((2, len(IOUS), len(found)), bool)
    true_at = np.searchsorted(true.image, np.append(images, np.iinfo(np.int64).max))
    for i in np.unique(np.searchsorted(images, true.image)):
        rows, boxes = slice(at[i], at[i + 1]), slice(true_at[i], true_at[i + 1])
        if rows.start < rows.stop:
            hit[:, rows], ignored[:, rows] = match(found.box[rows], true.box[boxes], true.crowd[boxes])
    ignored |= ~hit & np.isin(found.image, loose)
    order = np.argsort(-found.score, kind="stable")
    return Outcomes(
        np.searchsorted(images, found.image)[order],
        hit[:, order],
        (~hit & ~ignored)[:, order],
        np.bincount(np.searchsorted(images, true.image[~true.crowd]), minlength=len(images)),
    )


def match(
    found: Float[np.ndarray, "N 4"], true: Float[np.ndarray, "G 4"], crowd: Bool[np.ndarray, " G"]
) -> tuple[Bool[np.ndarray, "T N"], Bool[np.ndarray, "T N"]]:
    """COCO's greedy matching in one image, best detection first: (found a box, found only a crowd).

    A detection takes the free box it overlaps most, the later of equals; a crowd, of which any number may be found, only
    where no box is left for it.
    """
    overlap = _overlap(found, true, crowd)
    limit = np.minimum(IOUS, 1 - 1e-10)[:, None]
    hit, ignored = np.zeros((2, len(IOUS), len(found)), bool)
    free = np.ones((len(IOUS), len(true)), bool) & ~crowd
    t = np.arange(len(IOUS))
    for n in np.flatnonzero(overlap.max(1) >= limit[0]):
        open_ = np.where(free & (overlap[n] >= limit), overlap[n], -1.0)
        best = len(true) - 1 - np.argmax(open_[:, ::-1], axis=1)
        hit[:, n] = open_[t, best] >= 0
        free[t[hit[:, n]], best[hit[:, n]]] = False
        ignored[:, n] = ~hit[:, n] & (crowd & (overlap[n] >= limit)).any(1)
    return hit, ignored


def _overlap(found: np.ndarray, true: np.ndarray, crowd: np.ndarray) -> np.ndarray:
    """IoU; with a crowd, the share of the detection inside it."""
    low = np.maximum(found[:, None, :2], true[None, :, :2])
    high = np.minimum(found[:, None, :2] + found[:, None, 2:], true[None, :, :2] + true[None, :, 2:])
    inner = np.clip(high - low, 0, None).prod(2)
    area = found[:, 2:].prod(1)[:, None]
    union = np.where(crowd[None], area, area + true[:, 2:].prod(1)[None] - inner)
    return np.divide(inner, union, out=np.zeros_like(inner), where=(inner > 0) & (union > 0))


def weighted_precision(
    outcome: Outcomes, weights: Int[np.ndarray, "B I"], ious: Sequence[float] | np.ndarray, at: slice
) -> Float[np.ndarray, "B T"]:
    """AP of a category if image i counted weights[b, i] times; NaN where that leaves no box to find."""
    to_find = weights @ outcome.boxes
    out = np.full((len(weights), len(ious)), np.nan)
    step = max(1, CELLS // max(len(outcome.image), 1))
    for start in range(0, len(weights), step):
        w = weights[start : start + step][:, outcome.image]
        for column, (hit, wrong) in enumerate(zip(outcome.hit[at], outcome.wrong[at], strict=True)):
            right = (w * hit).cumsum(1)
            precision = right / (right + (w * wrong).cumsum(1) + np.spacing(1))
            best = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
            for b in np.flatnonzero(to_find[start : start + step] > 0):
                where = np.searchsorted(right[b] / to_find[start + b], RECALLS, side="left")
                reached = where[where < len(hit)]
                out[start + b, column] = best[b, reached].sum() / len(RECALLS)
    return out


def _mean(by_category: list[np.ndarray]) -> Float[np.ndarray, " B"]:
    """Mean over categories that have something to find and over thresholds; NaN where none has."""
    stacked = np.stack(by_category)
    known = ~np.isnan(stacked)
    total = np.where(known, stacked, 0.0).sum((0, 2))
    count = known.sum((0, 2))
    return np.divide(total, count, out=np.full(len(total), np.nan), where=count > 0)
