"""The paired bootstrap: its intervals cover as often as they say, pair by image, and weigh as drawing would."""

from __future__ import annotations

import numpy as np
import pytest

from villa_dist.evaluate.ap_bootstrap import ap_difference
from villa_dist.evaluate.bootstrap import f1, image_weights, mapping_sums, paired_difference, per_image, ratio
from villa_dist.evaluate.coco_engine import coco_average_precision
from villa_dist.evaluate.detection import Detections, Truth
from villa_dist.evaluate.detection_files import read_truth
from villa_dist.evaluate.errors import EvaluationError
from villa_dist.evaluate.mapping_quality import Counts


def world(r: np.random.Generator, images: int) -> tuple[np.ndarray, np.ndarray]:
    """Two models on the same images: difficulty is the image's, boxes an image vary, the second is better by about .05."""
    boxes = r.integers(1, 9, images)
    difficulty = r.beta(4, 4, images)
    first = r.binomial(boxes, difficulty)
    second = r.binomial(boxes, np.minimum(difficulty + 0.05, 1.0))
    return np.stack([first, boxes], 1), np.stack([second, boxes], 1)


def test_intervals_cover_the_true_difference_as_often_as_they_say() -> None:
    r = np.random.default_rng(0)
    a, b = world(r, 200_000)
    truth = float(ratio(b.sum(0)[None].astype(float))[0] - ratio(a.sum(0)[None].astype(float))[0])
    covered = 0
    for n in range(400):
        found = paired_difference(*world(r, 120), ratio, repetitions=300, seed=n)
        covered += found.low <= truth <= found.high
    assert 0.92 <= covered / 400 <= 0.98  # 95 % +- 2.8 standard errors


def test_pairing_by_image_is_what_narrows_the_interval() -> None:
    r = np.random.default_rng(1)
    first, second = world(r, 300)
    paired = paired_difference(first, second, ratio, repetitions=500)
    shuffled = paired_difference(first, second[r.permutation(300)], ratio, repetitions=500)
    assert paired.difference == pytest.approx(shuffled.difference)
    assert paired.high - paired.low < 0.9 * (shuffled.high - shuffled.low)


def test_weights_are_draws_with_replacement_and_seeded() -> None:
    weights = image_weights(50, 40, 7)
    assert weights.shape == (40, 50)
    assert (weights.sum(1) == 50).all()
    assert (weights == image_weights(50, 40, 7)).all()
    assert (weights != image_weights(50, 40, 8)).any()
    assert image_weights(200, 2000, 0).var() == pytest.approx(1.0, abs=0.02)  # about Poisson


def test_a_model_against_itself_and_one_that_is_surely_better() -> None:
    first, second = world(np.random.default_rng(3), 400)
    same = paired_difference(first, first, ratio)
    assert (same.difference, same.low, same.high, same.significant) == (0.0, 0.0, 0.0, False)
    better = second.copy()
    better[:, 0] = second[:, 1]
    found = paired_difference(first, better, ratio, level=0.99)
    assert found.significant
    assert found.low <= found.difference <= found.high
    assert found == paired_difference(first, better, ratio, level=0.99)


def test_sums_by_image() -> None:
    value = np.array([1.0, 0.0, np.nan, 0.5])
    assert per_image(value, np.array([0, 2, 2, 0]), 4).tolist() == [[1.5, 2], [0, 0], [0, 1], [0, 0]]
    counts = [Counts(np.array([1, 2]), np.array([3, 0]), np.array([0, 5])), Counts.zero(2)]
    assert mapping_sums(counts).tolist() == [[3, 3, 5], [0, 0, 0]]
    assert mapping_sums(counts, np.array([True, False])).tolist() == [[1, 3, 0], [0, 0, 0]]
    total = counts[0] + counts[1]
    assert f1(mapping_sums(counts).sum(0)[None])[0] == pytest.approx(total.over(np.ones(2, bool))["f1"])
    with pytest.raises(EvaluationError, match="names image 9"):
        per_image(value, np.array([0, 2, 9, 0]), 4)


def test_sums_that_cannot_be_compared_are_refused() -> None:
    sums = np.ones((3, 2))
    with pytest.raises(EvaluationError, match="same images"):
        paired_difference(sums, sums[:2], ratio)
    with pytest.raises(EvaluationError, match="same images, and some"):
        paired_difference(sums[:0], sums[:0], ratio)
    with pytest.raises(EvaluationError, match="NaN"):
        paired_difference(sums, sums * np.nan, ratio)
    with pytest.raises(EvaluationError, match="level is 95"):
        paired_difference(sums, sums, ratio, level=95)
    with pytest.raises(EvaluationError, match="undefined"):
        paired_difference(sums * 0, sums * 0, ratio)


def detector(truth: Truth, r: np.random.Generator, jitter: float) -> Detections:
    noise = r.normal(0, jitter, (len(truth.image), 4)) * [1, 1, 0.5, 0.5]
    return Detections(truth.image, truth.category, np.abs(truth.box + noise), r.random(len(truth.image)))


def test_average_precision_has_an_interval_too() -> None:
    r = np.random.default_rng(5)
    rows = [
        {"image_id": int(i), "category_id": int(r.integers(1, 4)), "bbox": [*r.integers(0, 60, 2).tolist(), 30, 30]}
        for i in r.integers(1, 61, 240)
    ]
    truth = read_truth(
        {"images": [{"id": i} for i in range(1, 61)], "categories": [{"id": c} for c in (1, 2, 3)], "annotations": rows}
    )
    sharp, rough = detector(truth, r, 1.0), detector(truth, r, 4.0)
    for metric in ("AP", "AP50", "AP75"):
        found = ap_difference(truth, rough, sharp, metric=metric, repetitions=100)
        assert found.first == pytest.approx(coco_average_precision(truth, rough).metrics[metric])
        assert found.second == pytest.approx(coco_average_precision(truth, sharp).metrics[metric])
        assert found.low <= found.difference <= found.high
    assert ap_difference(truth, rough, sharp, metric="AP75", repetitions=100).significant
    assert not ap_difference(truth, sharp, sharp, repetitions=20).significant
    one = ap_difference(truth, rough, sharp, categories=np.array([2]), repetitions=20)
    only = truth.only(np.array([2]))
    expected = coco_average_precision(only, sharp.take(sharp.category == 2)).metrics["AP50"]
    assert one.second == pytest.approx(expected)
    with pytest.raises(EvaluationError, match="metric is 'APs'"):
        ap_difference(truth, rough, sharp, metric="APs")
