"""R-Precision: by hand, by brute force over the orders of equal scores, and against another implementation."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchmetrics.retrieval import RetrievalRPrecision

from villa_dist.evaluate.retrieval import precision_at_relevant, r_precision


def brute_force(score: list[float], relevant: list[bool]) -> float:
    """Mean over all orders in which equal scores could come."""
    count = sum(relevant)
    found = []
    for order in itertools.permutations(range(len(score))):
        ranked = sorted(order, key=lambda i: -score[i])  # stable: ties stay in the permuted order
        found.append(sum(relevant[i] for i in ranked[:count]) / count)
    return sum(found) / len(found)


def test_by_hand() -> None:
    score = np.array([[0.9, 0.8, 0.7, 0.1], [0.9, 0.8, 0.7, 0.1], [0.1, 0.2, 0.3, 0.4], [1.0, 1.0, 1.0, 1.0]])
    relevant = np.array([[1, 0, 1, 0], [1, 1, 1, 0], [0, 0, 0, 1], [0, 0, 1, 0]], bool)
    assert precision_at_relevant(score, relevant).tolist() == [0.5, 1.0, 1.0, 0.25]


def test_a_query_without_a_relevant_item_has_no_score() -> None:
    found = precision_at_relevant(np.array([[0.1, 0.2], [0.3, 0.1]]), np.array([[False, False], [True, False]]))
    assert np.isnan(found[0])
    assert found[1] == 1.0
    assert np.isnan(precision_at_relevant(np.zeros((2, 3)), np.zeros((2, 3), bool))).all()


@given(
    row=st.lists(st.tuples(st.integers(0, 2), st.booleans()), min_size=1, max_size=6).filter(
        lambda r: any(x for _, x in r)
    )
)
def test_ties_count_by_expectation(row: list[tuple[int, bool]]) -> None:
    score, relevant = [float(s) for s, _ in row], [x for _, x in row]
    found = precision_at_relevant(np.array([score]), np.array([relevant]))[0]
    assert found == pytest.approx(brute_force(score, relevant))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_score_that_is_not_finite_is_an_error(bad: float) -> None:
    with pytest.raises(ValueError, match="NaN or infinity"):
        precision_at_relevant(np.array([[bad, 1.0]]), np.array([[True, False]]))


def test_both_directions_by_hand() -> None:
    """Regions on the axes; the third region is an even mix of the first two attributes."""
    region = np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.6, 0.6, 0.0], [0.0, 0.0, 1.0]])
    attribute = np.eye(3)[[0, 1, 2, 2]]
    truth = np.array([[1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0]], bool)
    found = r_precision(region, attribute, truth)
    # attribute 0 ranks regions 0, 2, then 1 and 3 tied, and has three; 1 ranks 1, 2; 2 ranks 3; 3 does not occur
    assert found.by_attribute[:3].tolist() == pytest.approx([2 / 3 + 1 / 6, 1.0, 1.0])
    assert np.isnan(found.by_attribute[3])
    assert found.a2r == pytest.approx((5 / 6 + 2) / 3)
    # region 1 has two: attribute 1 first, then 0, 2, 3 tied for one place; region 3 has one: 2 and 3 tied
    assert found.r2a == pytest.approx((1 + (1 + 1 / 3) / 2 + 1 + 0.5) / 4)


def test_a_perfect_model_scores_one_and_the_order_of_rows_does_not_matter() -> None:
    random = np.random.default_rng(0)
    truth = random.random((40, 6)) < 0.4
    truth[truth.sum(1) == 0, 0] = True
    region = truth / np.linalg.norm(truth, axis=1, keepdims=True)
    assert r_precision(region, np.eye(6), truth).r2a == 1.0
    noisy, order = region + random.normal(0, 0.4, region.shape), random.permutation(40)
    first, second = r_precision(noisy, np.eye(6), truth), r_precision(noisy[order], np.eye(6), truth[order])
    assert (first.a2r, first.r2a) == pytest.approx((second.a2r, second.r2a))
    assert first.a2r < 1.0


def test_it_equals_torchmetrics() -> None:
    random = np.random.default_rng(1)
    score, relevant = random.random((30, 12)), random.random((30, 12)) < 0.3
    relevant[:, 0] = True
    metric = RetrievalRPrecision()
    indexes = torch.arange(30)[:, None].expand(30, 12).reshape(-1)
    expected = metric(torch.tensor(score.reshape(-1)), torch.tensor(relevant.reshape(-1)), indexes=indexes)
    assert precision_at_relevant(score, relevant).mean() == pytest.approx(float(expected), abs=1e-6)
