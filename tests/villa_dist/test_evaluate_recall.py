"""Recall at K and streamed R-Precision: by brute force, against another implementation, and against the dense form."""

from __future__ import annotations

import itertools
import math
import tracemalloc
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchmetrics.retrieval import RetrievalRecall, RetrievalRPrecision

from villa_dist.evaluate.errors import EvaluationError
from villa_dist.evaluate.recall import image_text_recall, recall_at, recall_by_chance
from villa_dist.evaluate.retrieval import Retrieval, r_precision, similarity
from villa_dist.evaluate.streaming import streamed_r_precision


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def cases(seed: int, queries: int, targets: int, width: int = 3) -> tuple[np.ndarray, np.ndarray, np.random.Generator]:
    """Embeddings on few directions: most scores tie."""
    r = np.random.default_rng(seed)
    pool = unit(r.normal(size=(4, width)))
    return pool[r.integers(0, 4, queries)], pool[r.integers(0, 4, targets)], r


def brute_chance(score: np.ndarray, right: np.ndarray, k: int) -> float:
    """Over every order in which equal scores could come."""
    hits = []
    for order in itertools.permutations(range(len(score))):
        ranked = sorted(order, key=lambda i: -score[i])
        hits.append(bool(right[ranked[:k]].any()))
    return float(np.mean(hits))


@given(seed=st.integers(0, 10**6), targets=st.integers(1, 6), k=st.integers(1, 7), chunk=st.integers(1, 7))
def test_recall_is_the_chance_over_the_orders_of_equal_scores(seed: int, targets: int, k: int, chunk: int) -> None:
    query, target, r = cases(seed, 3, targets)
    right = r.random((3, targets)) < 0.4
    found = recall_at(query, target, *np.nonzero(right), ks=(k,), chunk=chunk).by_query[:, 0]
    score = similarity(query, target)
    for q in range(3):
        if right[q].any():
            assert found[q] == pytest.approx(brute_chance(score[q], right[q], k))
        else:
            assert np.isnan(found[q])


@given(right=st.lists(st.integers(1, 5), min_size=1, max_size=4), more=st.integers(0, 4), k=st.integers(1, 12))
def test_chance_is_what_equal_scores_get(right: list[int], more: int, k: int) -> None:
    """By the metric itself, and by counting the ways to miss."""
    targets = max(right) + more
    pairs = np.array([(q, t) for q, n in enumerate(right) for t in range(n)]).T
    equal = recall_at(np.ones((len(right), 1)), np.ones((targets, 1)), *pairs, ks=(k,)).by_query[:, 0]
    found = recall_by_chance(np.array(right), targets, k)
    assert found == pytest.approx(equal)
    cut = min(k, targets)
    assert found == pytest.approx([1 - math.comb(targets - n, cut) / math.comb(targets, cut) for n in right])


@given(seed=st.integers(0, 10**6), chunk=st.integers(1, 40))
def test_chunks_change_nothing(seed: int, chunk: int) -> None:
    query, target, r = cases(seed, 17, 31)
    query = np.where(r.random((17, 1)) < 0.5, unit(r.normal(size=query.shape)), query)
    pairs = np.nonzero(r.random((17, 31)) < 0.1)
    whole = recall_at(query, target, *pairs, ks=(1, 3, 10, 31, 50), chunk=1000)
    parts = recall_at(query, target, *pairs, ks=(1, 3, 10, 31, 50), chunk=chunk)
    np.testing.assert_allclose(parts.by_query, whole.by_query, atol=1e-12)
    known = whole.by_query[~np.isnan(whole.by_query[:, 0])]
    if len(known):
        assert (known[:, 3:] == 1.0).all()  # all targets are among all targets
        assert (np.diff(known, axis=1) >= -1e-12).all()


def test_it_equals_torchmetrics_where_a_query_has_one_target() -> None:
    r = np.random.default_rng(2)
    image, text = unit(r.normal(size=(40, 6))), unit(r.normal(size=(40, 6)))
    found = image_text_recall(image, text, np.arange(40), ks=(1, 5, 10), chunk=7)
    score = torch.tensor(image @ text.T)
    index = torch.arange(40)[:, None].expand(40, 40)
    for k in (1, 5, 10):
        expected = RetrievalRecall(top_k=k)(
            score.reshape(-1), torch.eye(40, dtype=torch.bool).reshape(-1), index.reshape(-1)
        )
        assert found.image_to_text.at[k] == pytest.approx(float(expected), abs=1e-6)
        expected = RetrievalRecall(top_k=k)(
            score.T.reshape(-1), torch.eye(40, dtype=torch.bool).reshape(-1), index.reshape(-1)
        )
        assert found.text_to_image.at[k] == pytest.approx(float(expected), abs=1e-6)


def test_any_caption_of_an_image_counts() -> None:
    """Image 0 has captions 0 and 2, of which 2 is found; image 1 has none; image 2 is beaten by caption 2."""
    image, text = np.eye(3), np.array([[0.0, 1.0, 0.0], [0.6, 0.0, 0.8], [0.8, 0.0, 0.6]])
    found = image_text_recall(image, text, np.array([0, 2, 0]), ks=(1, 2))
    assert found.image_to_text.by_query[:, 0].tolist() == pytest.approx([1.0, np.nan, 1.0], nan_ok=True)
    assert found.image_to_text.at == {1: 1.0, 2: 1.0}
    assert found.text_to_image.by_query[:, 0].tolist() == [0.0, 1.0, 1.0]
    # caption 0 is orthogonal to images 0 and 2: one of two places is left for them
    assert found.text_to_image.by_query[0, 1] == pytest.approx(0.5)
    assert found.text_to_image.at[1] == pytest.approx(2 / 3)


def test_what_cannot_be_ranked_is_named() -> None:
    eye = np.eye(2)
    with pytest.raises(EvaluationError, match="NaN or infinity"):
        image_text_recall(eye, np.array([[np.nan, 0.0], [0.0, 1.0]]), np.arange(2))
    with pytest.raises(EvaluationError, match="names query 5"):
        image_text_recall(eye, eye, np.array([0, 5]))
    with pytest.raises(EvaluationError, match="as many image rows"):
        image_text_recall(eye, eye, np.array([0]))
    with pytest.raises(EvaluationError, match="at least 1"):
        image_text_recall(eye, eye, np.arange(2), ks=(0, 1))
    with pytest.raises(EvaluationError, match="width 3"):
        image_text_recall(eye, np.eye(3), np.array([0, 1, 1]))


def equal(found: Retrieval, expected: Retrieval) -> None:
    np.testing.assert_allclose(found.by_attribute, expected.by_attribute, atol=1e-12)
    assert found.a2r == pytest.approx(expected.a2r, nan_ok=True)
    assert found.r2a == pytest.approx(expected.r2a, nan_ok=True)


@pytest.mark.parametrize("attributes", [1, 5, 1030])  # three digits of 12 bits, and four of 9
@settings(max_examples=10)
@given(seed=st.integers(0, 10**6), chunk=st.integers(1, 60))
def test_streamed_r_precision_equals_the_dense(attributes: int, seed: int, chunk: int) -> None:
    region, attribute, r = cases(seed, 50, attributes)
    region = np.where(r.random((50, 1)) < 0.5, unit(r.normal(size=region.shape)), region)
    truth = r.random((50, attributes)) < 0.2
    found = streamed_r_precision(
        lambda: ((region[i : i + chunk], truth[i : i + chunk]) for i in range(0, 50, chunk)), attribute
    )
    equal(found, r_precision(region, attribute, truth))


def test_streamed_r_precision_equals_torchmetrics() -> None:
    r = np.random.default_rng(4)
    region, attribute, truth = unit(r.normal(size=(60, 9))), unit(r.normal(size=(7, 9))), r.random((60, 7)) < 0.3
    found = streamed_r_precision(lambda: [(region, truth)], attribute)
    score, index = torch.tensor(attribute @ region.T), torch.arange(7)[:, None].expand(7, 60)
    expected = RetrievalRPrecision()(score.reshape(-1), torch.tensor(truth.T.reshape(-1)), index.reshape(-1))
    assert found.a2r == pytest.approx(float(expected), abs=1e-6)


def test_equal_vectors_score_equally_wherever_they_stand() -> None:
    r = np.random.default_rng(0)
    one = unit(r.normal(size=(1, 513))).astype(np.float32)
    for count in (1, 7, 64, 129):
        assert len(np.unique(similarity(one, np.repeat(unit(r.normal(size=(1, 513))), count, 0)))) == 1
    half = unit(r.normal(size=(1, 513))).astype(np.float32)
    alone, among = similarity(one, half), similarity(np.repeat(one, 70, 0), np.repeat(half, 90, 0))
    assert (among == alone[0, 0]).all()


def test_streaming_holds_no_scores() -> None:
    """Three times the regions, no more memory; they are made anew for each pass."""
    attribute = unit(np.random.default_rng(9).normal(size=(100, 8)))

    def chunks() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        r = np.random.default_rng(1)
        for _ in range(4):
            yield unit(r.normal(size=(2000, 8))), r.random((2000, 100)) < 0.02

    def peak(copies: int) -> int:
        tracemalloc.start()
        streamed_r_precision(lambda: itertools.chain(*(chunks() for _ in range(copies))), attribute)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return peak

    assert peak(3) < 1.05 * peak(1)


def test_streams_that_cannot_be_trusted_are_refused() -> None:
    region, attribute, truth = np.eye(3), np.eye(3)[:2], np.ones((3, 2), bool)
    calls = []

    def shrinking() -> list[tuple[np.ndarray, np.ndarray]]:
        calls.append(1)
        return [(region[: 4 - len(calls)], truth[: 4 - len(calls)])]

    with pytest.raises(EvaluationError, match="one pass over the regions gave 3, another 2"):
        streamed_r_precision(shrinking, attribute)
    with pytest.raises(EvaluationError, match="unit length"):
        streamed_r_precision(lambda: [(region * 9, truth)], attribute)
    with pytest.raises(EvaluationError, match="NaN or infinity"):
        streamed_r_precision(lambda: [(region * np.nan, truth)], attribute)
    with pytest.raises(EvaluationError, match="truth of shape"):
        streamed_r_precision(lambda: [(region, truth[:2])], attribute)
    nothing = streamed_r_precision(list, attribute)
    assert np.isnan([nothing.a2r, nothing.r2a]).all()
