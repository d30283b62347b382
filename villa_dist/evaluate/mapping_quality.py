"""Precision, recall and F1 of region-attribute pairs against known ones."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

from villa_dist.regions.boxes import iou
from villa_dist.types import RegionAttributePairs

MATCH_IOU = 0.5


@dataclass(frozen=True)
class Counts:
    """Right, wrong and missed pairs of each attribute."""

    right: np.ndarray
    wrong: np.ndarray
    missed: np.ndarray

    @classmethod
    def zero(cls, attributes: int) -> Counts:
        return cls(*(np.zeros(attributes, np.int64) for _ in range(3)))

    def __add__(self, other: Counts) -> Counts:
        return Counts(self.right + other.right, self.wrong + other.wrong, self.missed + other.missed)

    def over(self, chosen: np.ndarray) -> dict[str, float]:
        """Micro precision, recall and F1 over a boolean mask of attributes, as fractions."""
        right, wrong, missed = (int(c[chosen].sum()) for c in (self.right, self.wrong, self.missed))
        return {
            "precision": right / max(right + wrong, 1),
            "recall": right / max(right + missed, 1),
            "f1": 2 * right / max(2 * right + wrong + missed, 1),
        }


def matched(pairs: RegionAttributePairs, truth: RegionAttributePairs) -> Int[np.ndarray, " P"]:
    """The true region each of P pairs found, -1 for a wrong pair.

    A pair is right when its box meets a true box (IoU >= 0.5) that has the attribute. A true pair is found once; a
    second pair that finds it again is wrong.
    """
    found = np.full(len(pairs.region), -1)
    if not len(pairs.boxes) or not len(truth.boxes):
        return found
    overlap = iou(pairs.boxes.astype(np.float64), truth.boxes.astype(np.float64))
    true = {(int(r), int(a)) for r, a in zip(truth.region, truth.attribute, strict=True)}
    for p in np.argsort(-np.asarray(pairs.score, np.float64), kind="stable"):
        box, attribute = int(pairs.region[p]), int(pairs.attribute[p])
        for t in np.argsort(-overlap[box], kind="stable"):
            if overlap[box, t] < MATCH_IOU:
                break
            if (int(t), attribute) in true:
                true.remove((int(t), attribute))
                found[p] = t
                break
    return found


def compare(pairs: RegionAttributePairs, truth: RegionAttributePairs, attributes: int) -> Counts:
    """Counts for one image."""
    right = matched(pairs, truth) >= 0
    hit = np.bincount(pairs.attribute[right], minlength=attributes)
    return Counts(
        hit,
        np.bincount(pairs.attribute[~right], minlength=attributes),
        np.bincount(truth.attribute, minlength=attributes) - hit,
    )
