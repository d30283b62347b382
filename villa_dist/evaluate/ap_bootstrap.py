"""The paired bootstrap of average precision.

Which box a detection finds depends on its own image only. So detections are matched once (`matching`), and a resample
only reweighs their images: exact drawing with replacement, without matching anything again.

Letters: N detections of a category, falling score; T IoU thresholds; B resamples; I images.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float, Int

from villa_dist.evaluate.average_precision import RECALLS
from villa_dist.evaluate.bootstrap import Difference, image_weights, interval
from villa_dist.evaluate.coco_engine import PER_CATEGORY
from villa_dist.evaluate.detection import Detections, Truth, prepared
from villa_dist.evaluate.errors import EvaluationError
from villa_dist.evaluate.lvis_engine import lvis_prepared
from villa_dist.evaluate.matching import Outcomes, outcomes

CELLS = 2**22  # of resamples x detections in memory at a time
METRICS = {"AP": range(10), "AP50": range(1), "AP75": range(5, 6)}  # rows of IOUS


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
    weights = drawn_weights(len(truth.images), repetitions, seed)
    first_B, second_B = (
        ap_draws(truth, found, weights, {"": categories}, metric=metric, lvis=lvis, per_image=per_image)[""]
        for found in (first, second)
    )
    return interval(float(first_B[0]), float(second_B[0]), second_B[1:] - first_B[1:], level)


def drawn_weights(images: int, repetitions: int, seed: int = 0) -> Int[np.ndarray, "B1 I"]:
    """Row 0 counts every image once, the others are resamples; the same for every model they are used on."""
    return np.concatenate([np.ones((1, images), np.int64), image_weights(images, repetitions, seed)])


def ap_draws(
    truth: Truth,
    found: Detections,
    weights: Int[np.ndarray, "B I"],
    groups: Mapping[str, np.ndarray | None],
    *,
    metric: str = "AP50",
    lvis: bool = False,
    per_image: int | None = None,
) -> dict[str, Float[np.ndarray, " B"]]:
    """The metric over the categories of each group (None: all) under each row of weights; NaN where it is undefined.

    Raises: EvaluationError, see `detection.check`.
    """
    if lvis:
        true, rows = lvis_prepared(truth, found, per_image or 300)
    else:
        true, rows = prepared(truth, found, per_image)
    for ids in groups.values():
        if ids is not None:
            true.only(ids)  # refuses what the truth does not have
    cap = None if lvis else max(PER_CATEGORY, per_image or 0)
    by_category = np.stack(
        [weighted_precision(o, weights, METRICS[metric]) for o in outcomes(true, rows, per_category=cap, lvis=lvis)]
    )
    return {
        name: _mean(by_category if ids is None else by_category[np.isin(true.categories, ids)])
        for name, ids in groups.items()
    }


def weighted_precision(
    outcome: Outcomes, weights: Int[np.ndarray, "B I"], thresholds: Sequence[int]
) -> Float[np.ndarray, "B T"]:
    """AP of a category, area range `all`, if image i counted weights[b, i] times; NaN where no box to find is left.

    thresholds: rows of IOUS.
    """
    to_find = weights @ outcome.boxes[0]
    out = np.full((len(weights), len(thresholds)), np.nan)
    step = max(1, CELLS // max(len(outcome.image), 1))
    for start in range(0, len(weights), step):
        w = weights[start : start + step][:, outcome.image]
        for column, t in enumerate(thresholds):
            hit, wrong = (bits >> np.uint64(t) & np.uint64(1) for bits in (outcome.hit, outcome.wrong))
            right = (w * hit.astype(np.int64)).cumsum(1)
            precision = right / (right + (w * wrong.astype(np.int64)).cumsum(1) + np.spacing(1))
            best = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
            for b in np.flatnonzero(to_find[start : start + step] > 0):
                where = np.searchsorted(right[b] / to_find[start + b], RECALLS, side="left")
                reached = where[where < len(hit)]
                out[start + b, column] = best[b, reached].sum() / len(RECALLS)
    return out


def _mean(stacked: Float[np.ndarray, "C B T"]) -> Float[np.ndarray, " B"]:
    """Mean over categories that have something to find and over thresholds; NaN where none has."""
    known = ~np.isnan(stacked)
    total = np.where(known, stacked, 0.0).sum((0, 2))
    count = known.sum((0, 2))
    return np.divide(total, count, out=np.full(len(total), np.nan), where=count > 0)
