"""Non-maximum suppression against a scalar transcription of the greedy rule."""

from __future__ import annotations

import time
import tracemalloc
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from villa_dist.regions import nms as module
from villa_dist.regions.boxes import iou as box_iou
from villa_dist.regions.nms import blocked_nms, class_nms, nms, soft_nms

F32 = np.float32


def scalar_iou(a: np.ndarray, b: np.ndarray) -> F32:
    """In float32, operation by operation as a kernel does it."""
    width = max(min(a[2], b[2]) - max(a[0], b[0]), F32(0))
    height = max(min(a[3], b[3]) - max(a[1], b[1]), F32(0))
    inner = width * height

    def size(box: np.ndarray) -> F32:
        return max(box[2] - box[0], F32(0)) * max(box[3] - box[1], F32(0))

    union = size(a) + size(b) - inner
    return inner / union if union > 0 else F32(0)


def scalar_nms(boxes: np.ndarray, scores: np.ndarray, threshold: float) -> list[int]:
    kept: list[int] = []
    for i in sorted(range(len(boxes)), key=lambda i: (-float(scores[i]), i)):
        if all(float(scalar_iou(boxes[k], boxes[i])) <= threshold for k in kept):
            kept.append(i)
    return kept


def exact_iou(a: np.ndarray, b: np.ndarray) -> float:
    return box_iou(a[None].astype(np.float64), b[None].astype(np.float64)).item()


def scalar_soft_nms(boxes: np.ndarray, scores: np.ndarray, decay: float, threshold: float, limit: int) -> list[int]:
    """Scores anew from the start for each choice, over all chosen before."""
    kept: list[int] = []
    while len(kept) < limit:
        best, found = -1.0, None
        for i in set(range(len(boxes))) - set(kept):
            overlaps = [exact_iou(boxes[k], boxes[i]) for k in kept]
            score = float(scores[i])
            for overlap in overlaps:
                score *= 1 - overlap if overlap > decay else 1
            if all(o <= threshold for o in overlaps) and (score > best or (score == best and found and i < found)):
                best, found = score, i
        if found is None:
            break
        kept.append(found)
    return kept


COORDINATE = st.one_of(st.integers(0, 12).map(float), st.floats(0, 12, width=32))
BOX = st.tuples(COORDINATE, COORDINATE, COORDINATE, COORDINATE)  # inside out and empty ones among them
CROWD = st.lists(st.tuples(BOX, st.sampled_from([0.0, 0.25, 0.5, 0.5, 0.75, 1.0])), max_size=40)
THRESHOLD = st.sampled_from([0.0, 0.1, 1 / 3, 0.5, 0.7, 1.0])


def arrays(crowd: list) -> tuple[np.ndarray, np.ndarray]:
    return np.array([b for b, _ in crowd], F32).reshape(-1, 4), np.array([s for _, s in crowd], F32)


@given(crowd=CROWD, threshold=THRESHOLD, block=st.sampled_from([1, 2, 7, 256]))
def test_it_equals_the_scalar_rule_whatever_the_block(crowd: list, threshold: float, block: int) -> None:
    boxes, scores = arrays(crowd)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "BLOCK", block)
        assert blocked_nms(boxes, scores, threshold, len(boxes)).tolist() == scalar_nms(boxes, scores, threshold)


@given(crowd=CROWD, decay=THRESHOLD, threshold=THRESHOLD, limit=st.integers(0, 12))
def test_soft_suppression_equals_its_scalar_rule(crowd: list, decay: float, threshold: float, limit: int) -> None:
    boxes, scores = arrays(crowd)
    found = soft_nms(boxes, scores, decay, threshold, limit).tolist()
    assert found == scalar_soft_nms(boxes, scores, decay, threshold, limit)


def test_a_box_that_overlaps_a_better_one_is_ranked_lower_and_a_copy_of_it_is_dropped() -> None:
    boxes = np.array([[0, 0, 10, 10], [0, 0, 10, 6], [20, 0, 30, 10], [0, 0, 10, 9.9]], F32)
    assert soft_nms(boxes, np.array([0.9, 0.8, 0.5, 0.7], F32), 0.4, 0.7, 9).tolist() == [0, 2, 1]


@given(crowd=CROWD, threshold=THRESHOLD, limit=st.integers(0, 8))
def test_a_limit_keeps_the_best(crowd: list, threshold: float, limit: int) -> None:
    boxes, scores = arrays(crowd)
    assert nms(boxes, scores, threshold, limit).tolist() == nms(boxes, scores, threshold).tolist()[:limit]


@given(crowd=CROWD, threshold=THRESHOLD, data=st.data())
def test_classes_do_not_suppress_each_other(crowd: list, threshold: float, data: st.DataObject) -> None:
    boxes, scores = arrays(crowd)
    classes = np.array(data.draw(st.lists(st.integers(0, 2), min_size=len(boxes), max_size=len(boxes))), np.int64)
    expected = [
        int(np.flatnonzero(classes == c)[k])
        for c in range(3)
        for k in scalar_nms(boxes[classes == c], scores[classes == c], threshold)
    ]
    found = class_nms(boxes, scores, classes, threshold).tolist()
    assert found == sorted(expected, key=lambda i: (-float(scores[i]), i))


def test_an_overlap_of_exactly_the_threshold_is_kept() -> None:
    boxes = np.array([[0, 0, 2, 1], [1, 0, 3, 1], [0, 0, 2, 1.5]], F32)  # IoU with the first: 1/3 and 2/3
    scores = np.array([0.9, 0.8, 0.7], F32)
    third = float(F32(1) / F32(3))
    assert nms(boxes, scores, third).tolist() == [0, 1]
    assert nms(boxes, scores, np.nextafter(third, 0)).tolist() == [0]


def test_equal_scores_go_by_index() -> None:
    boxes = np.array([[0, 0, 4, 4]] * 3 + [[9, 9, 12, 12]], F32)
    assert nms(boxes, np.full(4, 0.5, F32), 0.5).tolist() == [0, 3]


def test_far_from_the_origin_classes_are_still_exact() -> None:
    """Offsets of 1e7 would round half pixels away and merge the two boxes of class 1."""
    boxes = np.array([[0, 0, 1e4, 1e4], [0.5, 0, 1.0, 1], [1.0, 0, 1.5, 1]], F32)
    assert class_nms(boxes, np.array([0.9, 0.8, 0.7], F32), np.array([1000, 1, 1]), 0.5).tolist() == [0, 1, 2]


def test_nothing_gives_nothing() -> None:
    assert nms(np.zeros((0, 4), F32), np.zeros(0, F32), 0.5).tolist() == []
    assert class_nms(np.zeros((0, 4), F32), np.zeros(0, F32), np.zeros(0, np.int64), 0.5).tolist() == []


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_numbers_that_are_none_are_refused(bad: float) -> None:
    boxes = np.array([[0, 0, 1, 1]], F32)
    with pytest.raises(ValueError, match="NaN"):
        nms(boxes, np.array([bad], F32), 0.5)
    with pytest.raises(ValueError, match="NaN"):
        nms(np.array([[0, 0, bad, 1]], F32), np.array([1], F32), 0.5)
    with pytest.raises(ValueError, match="2 scores"):
        nms(boxes, np.zeros(2, F32), 0.5)


def crowd_of(number: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    corner, side = rng.uniform(0, 800, (number, 2)), rng.uniform(8, 200, (number, 2))
    return np.concatenate([corner, corner + side], 1).astype(F32), rng.random(number).astype(F32)


def test_twelve_thousand_boxes_need_little_memory_and_are_right() -> None:
    boxes, scores = crowd_of(12_000)
    tracemalloc.start()
    kept = nms(boxes, scores, 0.7)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 16e6, "a full matrix takes 1,152 MB in float64"
    assert len(kept) > 3000 and (np.diff(scores[kept]) <= 0).all()
    rng = np.random.default_rng(1)
    alive = set(kept.tolist())
    for i in rng.choice(12_000, 8, replace=False):  # the rule, checked on some boxes against all that are kept
        better = [k for k in kept if (-scores[k], k) < (-scores[i], i)]
        assert (max((scalar_iou(boxes[k], boxes[i]) for k in better), default=0) > 0.7) == (int(i) not in alive)


def test_it_is_faster_than_the_scalar_form() -> None:
    boxes, scores = crowd_of(400)
    started = time.process_time()
    expected = scalar_nms(boxes, scores, 0.7)
    scalar = time.process_time() - started
    started = time.process_time()
    found = nms(boxes, scores, 0.7)
    assert found.tolist() == expected
    assert time.process_time() - started < scalar / 10


def test_torchvisions_op_is_used_where_it_imports(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def op(boxes: torch.Tensor, scores: torch.Tensor, threshold: float) -> torch.Tensor:
        asked.append((boxes.dtype, scores.dtype))
        return torch.tensor(scalar_nms(boxes.numpy(), scores.numpy(), threshold))

    monkeypatch.setattr(module, "torchvision_ops", lambda: SimpleNamespace(nms=op))
    boxes, scores = crowd_of(80)
    assert nms(boxes, scores.astype(np.float64), 0.5, 7).tolist() == scalar_nms(boxes, scores, 0.5)[:7]
    assert asked == [(torch.float32, torch.float32)]
