"""Precision, recall and F1 of pairs, and the box arithmetic below them, by hand."""

from __future__ import annotations

import numpy as np
import pytest

from villa_dist.evaluate.mapping_quality import Counts, compare, matched
from villa_dist.regions.boxes import area, iou, problem
from villa_dist.types import RegionAttributePairs

LEFT, RIGHT, FAR = [0.0, 0.0, 10.0, 10.0], [20.0, 0.0, 30.0, 10.0], [50.0, 50.0, 60.0, 60.0]


def pairs(boxes: list[list[float]], said: list[tuple[int, int, float]]) -> RegionAttributePairs:
    region, attribute, score = ([s[i] for s in said] for i in range(3))
    return RegionAttributePairs(
        np.array(boxes, np.float32).reshape(-1, 4),
        np.array(region, np.int64),
        np.array(attribute, np.int64),
        np.array(score, np.float32),
    )


TRUTH = pairs([LEFT, RIGHT], [(0, 0, 1), (0, 1, 1), (1, 0, 1), (1, 2, 1)])


def test_pairs_by_hand() -> None:
    found = pairs([LEFT, RIGHT, FAR], [(0, 0, 0.9), (0, 2, 0.8), (1, 0, 0.7), (1, 2, 0.6), (2, 1, 0.5)])
    assert (matched(found, TRUTH) >= 0).tolist() == [True, False, True, True, False]
    counts = compare(found, TRUTH, 4)
    assert counts.right.tolist() == [2, 0, 1, 0]
    assert counts.wrong.tolist() == [0, 1, 1, 0]
    assert counts.missed.tolist() == [0, 1, 0, 0]
    every = counts.over(np.ones(4, bool))
    assert every == pytest.approx({"precision": 3 / 5, "recall": 3 / 4, "f1": 2 * 3 / (2 * 3 + 2 + 1)})
    assert counts.over(np.array([True, False, False, False])) == {"precision": 1.0, "recall": 1.0, "f1": 1.0}
    both = (counts + counts).over(np.ones(4, bool))
    assert both == pytest.approx(every)


def test_a_true_pair_is_found_once_and_by_the_better_score() -> None:
    shifted = [1.0, 0.0, 11.0, 10.0]
    found = pairs([shifted, LEFT], [(0, 1, 0.2), (1, 1, 0.9)])
    assert (matched(found, TRUTH) >= 0).tolist() == [False, True]


def test_a_box_must_overlap_by_half() -> None:
    near, off = [0.0, 0.0, 10.0, 5.0], [0.0, 0.0, 10.0, 4.9]  # IoU .5 and .49 with LEFT
    assert (matched(pairs([near], [(0, 0, 1.0)]), TRUTH) >= 0).tolist() == [True]
    assert (matched(pairs([off], [(0, 0, 1.0)]), TRUTH) >= 0).tolist() == [False]


def test_between_two_true_boxes_the_closer_counts() -> None:
    truth = pairs([[0.0, 0.0, 10.0, 10.0], [2.0, 0.0, 12.0, 10.0]], [(0, 0, 1), (1, 0, 1)])
    found = pairs([[2.0, 0.0, 12.0, 10.0], [1.0, 0.0, 11.0, 10.0]], [(0, 0, 0.9), (1, 0, 0.8)])
    assert (matched(found, truth) >= 0).tolist() == [True, True]


@pytest.mark.parametrize(("found", "truth"), [([], [(0, 0, 1.0)]), ([(0, 0, 1.0)], []), ([], [])])
def test_empty_sides_count_and_do_not_fail(found: list, truth: list) -> None:
    counts = compare(pairs([LEFT] if found else [], found), pairs([LEFT] if truth else [], truth), 2)
    assert (counts.right.sum(), counts.wrong.sum(), counts.missed.sum()) == (0, len(found), len(truth))
    assert Counts.zero(2).over(np.ones(2, bool)) == {"precision": 0.0, "recall": 0.0, "f1": 0.0}


def test_overlap_by_hand() -> None:
    boxes = np.array([LEFT, [5.0, 0.0, 15.0, 10.0], [3.0, 3.0, 3.0, 9.0]])
    assert area(boxes).tolist() == [100.0, 100.0, 0.0]
    assert iou(boxes, boxes).tolist() == [
        [1.0, pytest.approx(1 / 3), 0.0],
        [pytest.approx(1 / 3), 1.0, 0.0],
        [0.0, 0.0, 0.0],
    ]
    assert iou(boxes[:0], boxes).shape == (0, 3)


@pytest.mark.parametrize(
    ("box", "says"),
    [
        (LEFT, ""),
        ([0.0, 0.0, 64.0, 48.0], ""),
        ([np.nan, 0.0, 1.0, 1.0], "NaN"),
        ([0.0, 0.0, np.inf, 1.0], "NaN or infinity"),
        ([5.0, 5.0, 5.0, 9.0], "no area"),
        ([9.0, 5.0, 5.0, 9.0], "no area"),
        ([-1.0, 0.0, 5.0, 5.0], "outside the image of 64x48"),
        ([0.0, 0.0, 65.0, 5.0], "outside the image of 64x48"),
        ([0.0, 0.0, 5.0, 49.0], "outside the image of 64x48"),
    ],
)
def test_boxes_that_cannot_be_used_are_named(box: list[float], says: str) -> None:
    found = problem(np.array([LEFT, box], np.float32), 64, 48)
    assert (says in found) if says else found == ""
    assert problem(np.zeros((0, 4), np.float32), 64, 48) == ""
