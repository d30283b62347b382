"""Precision, recall and F1 of region-attribute pairs against known ones."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from villa_dist.regions.boxes import area, iou
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


def meets(pairs: RegionAttributePairs, truth: RegionAttributePairs) -> Bool[np.ndarray, "P T"]:
    """Which of P pairs has the attribute of which of T true pairs, and a box that overlaps its box enough."""
    if not len(pairs.region) or not len(truth.region):
        return np.zeros((len(pairs.region), len(truth.region)), bool)
    overlap = iou(pairs.boxes.astype(np.float64), truth.boxes.astype(np.float64))
    same = np.equal.outer(pairs.attribute, truth.attribute)
    met: np.ndarray = same & (overlap[np.ix_(pairs.region, truth.region)] >= MATCH_IOU)
    return met


def matched(pairs: RegionAttributePairs, truth: RegionAttributePairs) -> Int[np.ndarray, " P"]:
    """The true region each of P pairs found, -1 for a wrong pair.

    A pair is right when its box meets a true box (IoU >= 0.5) that has the attribute. A true pair is found once; a
    second pair that finds it again is wrong.
    """
    found = np.full(len(pairs.region), -1)
    possible = np.any(meets(pairs, truth), axis=1)
    if not possible.any():
        return found
    overlap = iou(pairs.boxes.astype(np.float64), truth.boxes.astype(np.float64))
    true = {(int(r), int(a)) for r, a in zip(truth.region, truth.attribute, strict=True)}
    order = np.argsort(-np.asarray(pairs.score, np.float64), kind="stable")
    for p in order[possible[order]]:
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


# ---- truth from boxes with names, and rules to hold a mapping against


def of_mentioned(
    boxes: Float[np.ndarray, "T 4"], attribute: Int[np.ndarray, " T"], mentions: Int[np.ndarray, " A"]
) -> RegionAttributePairs:
    """The true pairs of an image whose boxes have these attributes: those that its text mentions."""
    region = np.flatnonzero(np.isin(attribute, mentions))
    return RegionAttributePairs(boxes, region, attribute[region], np.ones(len(region), np.float32))


def pairs_of(
    boxes: Float[np.ndarray, "R 4"],
    mentions: Int[np.ndarray, " A"],
    score: Float[np.ndarray, "R A"],
    kept: Bool[np.ndarray, "R A"],
) -> RegionAttributePairs:
    """The pairs that are kept, of all regions of an image."""
    region, column = np.nonzero(kept)
    return RegionAttributePairs(boxes, region, mentions[column], score[region, column])


def highest(value: Float[np.ndarray, " R"]) -> Bool[np.ndarray, " R"]:
    """The regions of the highest value; several where they are equal."""
    best: np.ndarray = value == value.max(initial=-np.inf)
    return best


def largest(boxes: Float[np.ndarray, "R 4"]) -> Bool[np.ndarray, " R"]:
    return highest(area(boxes))


def by_rule(
    boxes: Float[np.ndarray, "R 4"], mentions: Int[np.ndarray, " A"], chosen: Bool[np.ndarray, " R"]
) -> RegionAttributePairs:
    """Every attribute given to the chosen regions."""
    score = np.ones((len(boxes), len(mentions)), np.float32)
    return pairs_of(boxes, mentions, score, chosen[:, None] & (score > 0))
