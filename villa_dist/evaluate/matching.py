"""COCO's and LVIS' matching of detections with boxes, and average precision from it, in numpy.

Ten IoU thresholds and four area ranges are forty separate matchings. They run at once: a set of them is an integer of
forty bits (bit 10 a + t: area range a, threshold t), a box carries the set in which it is still free, and a detection
takes from it. Only pairs that overlap by half are ever looked at.

Letters: G boxes and N detections of a category, K pairs of them, I images.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int, UInt64

from villa_dist.evaluate.average_precision import AREA_RANGES, IOUS, RECALLS, PrecisionTable
from villa_dist.evaluate.detection import Detections, Truth

LIMITS = np.minimum(IOUS, 1 - 1e-10)  # as the COCO tools have it
ONE_AREA = (1 << len(IOUS)) - 1
EVERY_AREA = sum(1 << len(IOUS) * a for a in range(len(AREA_RANGES)))
ALL = ONE_AREA * EVERY_AREA
LAST = np.iinfo(np.int64).max


@dataclass(frozen=True)
class Outcomes:
    """What became of a category's detections, falling score. A detection that is neither hit nor wrong is ignored."""

    image: Int[np.ndarray, " N"]  # row of truth.images
    hit: UInt64[np.ndarray, " N"]
    wrong: UInt64[np.ndarray, " N"]
    boxes: Int[np.ndarray, "4 I"]  # boxes to find in each image, by area range


def numpy_table(truth: Truth, detections: Detections, *, per_category: int | None, lvis: bool) -> PrecisionTable:
    """Average precision of every category; see `outcomes`."""
    shape = (len(truth.categories), len(AREA_RANGES), len(IOUS))
    precision, recall = np.full(shape, np.nan), np.full(shape, np.nan)
    for c, outcome in enumerate(outcomes(truth, detections, per_category=per_category, lvis=lvis)):
        for a, to_find in enumerate(outcome.boxes.sum(1).tolist()):
            for t in range(len(IOUS)) if to_find else ():
                bit = np.uint64(len(IOUS) * a + t)
                precision[c, a, t], recall[c, a, t] = _curve(outcome, bit, to_find)
    return PrecisionTable(truth.categories, precision, recall)


def _curve(outcome: Outcomes, bit: np.uint64, to_find: int) -> tuple[float, float]:
    """Mean precision over 101 recalls, and the greatest recall. Precision is greatest where something is hit."""
    at = np.flatnonzero(outcome.hit >> bit & np.uint64(1))
    if not len(at):
        return 0.0, 0.0
    right = np.arange(1, len(at) + 1)
    wrong = (outcome.wrong >> bit & np.uint64(1)).astype(np.int64).cumsum()[at]
    best = np.maximum.accumulate((right / (wrong + right + np.spacing(1)))[::-1])[::-1]
    where = np.searchsorted(right / to_find, RECALLS, side="left")
    return float(best[where[where < len(at)]].sum() / len(RECALLS)), len(at) / to_find


def outcomes(truth: Truth, detections: Detections, *, per_category: int | None, lvis: bool) -> Iterator[Outcomes]:
    """Of each category of the truth; truth and detections in the order of `detection.prepared`.

    per_category: the cap on detections of a category in an image. lvis: unmatched detections of not exhaustive pairs
    count for nothing.
    """
    ends = np.append(truth.categories, LAST)
    true_at, found_at = np.searchsorted(truth.category, ends), np.searchsorted(detections.category, ends)
    loose = truth.not_exhaustive if lvis and truth.not_exhaustive is not None else np.zeros((0, 2), np.int64)
    for c, category in enumerate(truth.categories):
        true = truth.take(np.arange(true_at[c], true_at[c + 1]))
        found = detections.take(np.arange(found_at[c], found_at[c + 1]))
        if per_category is not None:
            start = np.flatnonzero(np.diff(found.image, prepend=-1 if not len(found) else found.image[0] - 1))
            rank = np.arange(len(found)) - np.repeat(start, np.diff(start, append=len(found)))
            found = found.take(rank < per_category)
        yield _category(truth.images, true, found, loose[loose[:, 1] == category, 0])


def _category(images: np.ndarray, true: Truth, found: Detections, loose: np.ndarray) -> Outcomes:
    out = np.array([(true.area < low) | (true.area > high) for low, high in AREA_RANGES])
    ignored_boxes = _set(out | true.crowd)
    hit, ignored = match(true, found, ignored_boxes)
    area = found.box[:, 2] * found.box[:, 3]
    unjudged = _set(np.array([(area < low) | (area > high) for low, high in AREA_RANGES]))
    unjudged |= np.where(np.isin(found.image, loose), np.uint64(ALL), np.uint64(0))
    order = np.argsort(-found.score, kind="stable")
    at = np.searchsorted(images, true.image)
    boxes = [np.bincount(at[~(o | true.crowd)], minlength=len(images)) for o in out]
    wrong = ~(hit | ignored | unjudged) & np.uint64(ALL)
    return Outcomes(np.searchsorted(images, found.image)[order], hit[order], wrong[order], np.stack(boxes))


def _set(by_area: np.ndarray) -> UInt64[np.ndarray, " G"]:
    """The set of matchings of the area ranges in which a row is True."""
    bits = np.array([ONE_AREA << len(IOUS) * a for a in range(len(AREA_RANGES))], np.uint64)
    return (by_area * bits[:, None]).sum(0, dtype=np.uint64)


def match(
    true: Truth, found: Detections, ignored_boxes: UInt64[np.ndarray, " G"]
) -> tuple[UInt64[np.ndarray, " N"], UInt64[np.ndarray, " N"]]:
    """The sets of matchings in which each detection finds a box, and an ignored one.

    Greedy, best score first: a detection takes the free box it overlaps most, the later of equals; where no box is left
    to it, an ignored one in the same way. A crowd never ceases to be free.
    """
    n_K, g_K, overlap_K = _pairs(true, found)
    order = np.lexsort((-g_K, -overlap_K, n_K))
    n_K, g_K, overlap_K = n_K[order], g_K[order], overlap_K[order]
    passed = np.searchsorted(LIMITS, overlap_K, side="right")
    enough = [((1 << k) - 1) * EVERY_AREA for k in range(len(IOUS) + 1)]
    ok_K = [enough[k] for k in passed.tolist()]
    boxes = g_K.tolist()
    ignored_in, crowd = ignored_boxes.tolist(), true.crowd.tolist()
    free = [ALL] * len(ignored_in)
    hit, ignored = np.zeros((2, len(found)), np.uint64)
    detections, starts = np.unique(n_K, return_index=True)
    ends = np.append(starts, len(boxes))[1:]
    for n, start, end in zip(detections.tolist(), starts.tolist(), ends.tolist(), strict=True):
        need = ALL
        for k in range(start, end):
            taken = need & ok_K[k] & free[boxes[k]] & ~ignored_in[boxes[k]]
            need ^= taken
            free[boxes[k]] ^= taken
        hit[n] = ALL ^ need
        for k in range(start, end) if need else ():
            g = boxes[k]
            taken = need & ok_K[k] & ignored_in[g] & (ALL if crowd[g] else free[g])
            need ^= taken
            free[g] &= ~taken
            ignored[n] |= np.uint64(taken)
    return hit, ignored


def _pairs(
    true: Truth, found: Detections
) -> tuple[Int[np.ndarray, " K"], Int[np.ndarray, " K"], Float[np.ndarray, " K"]]:
    """Detection, box and overlap of every pair in one image that overlaps by half; with a crowd, the share inside it."""
    first = np.searchsorted(true.image, found.image, side="left")
    count = np.searchsorted(true.image, found.image, side="right") - first
    n = np.repeat(np.arange(len(found)), count)
    g = np.arange(len(n)) - np.repeat(count.cumsum() - count - first, count)
    a, b = found.box[n], true.box[g]
    width = np.minimum(a[:, 0] + a[:, 2], b[:, 0] + b[:, 2]) - np.maximum(a[:, 0], b[:, 0])
    height = np.minimum(a[:, 1] + a[:, 3], b[:, 1] + b[:, 3]) - np.maximum(a[:, 1], b[:, 1])
    inner = np.where((width > 0) & (height > 0), width * height, 0.0)
    area = a[:, 2] * a[:, 3]
    union = np.where(true.crowd[g], area, area + b[:, 2] * b[:, 3] - inner)
    overlap = np.divide(inner, union, out=np.zeros_like(inner), where=union > 0)
    near = overlap >= LIMITS[0]
    return n[near], g[near], overlap[near]
