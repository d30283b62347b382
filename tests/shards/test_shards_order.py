"""The global sample order: a permutation in every epoch, the same however it is cut, and well mixed."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shards.order import GlobalOrder

SHARDS = st.lists(st.integers(0, 9), min_size=1, max_size=12).filter(lambda s: sum(s) > 0)


@given(samples=SHARDS, seed=st.integers(0, 2**40), window=st.integers(1, 40), epoch=st.integers(0, 1000))
def test_an_epoch_holds_every_sample_once(samples: list[int], seed: int, window: int, epoch: int) -> None:
    order = GlobalOrder(samples, seed, window)
    rows = order.locate(epoch * order.total, (epoch + 1) * order.total)
    assert (rows[:, 0] == epoch).all()
    expected = {(shard, row) for shard, count in enumerate(samples) for row in range(count)}
    assert sorted(map(tuple, rows[:, 1:].tolist())) == sorted(expected)


@given(
    samples=SHARDS, seed=st.integers(0, 99), window=st.integers(1, 40), cuts=st.lists(st.integers(0, 150), max_size=8)
)
def test_cutting_the_stream_changes_nothing(samples: list[int], seed: int, window: int, cuts: list[int]) -> None:
    whole = GlobalOrder(samples, seed, window).locate(0, 150)
    edges = sorted({0, 150, *cuts})
    backwards = list(itertools.pairwise(edges))[::-1]  # a rerun need not ask in order
    order = GlobalOrder(samples, seed, window)
    parts = [order.locate(start, stop) for start, stop in backwards][::-1]
    assert np.array_equal(np.concatenate(parts), whole)


@pytest.mark.parametrize("world", [1, 2, 3, 4, 6, 12])
def test_ranks_of_any_world_size_share_the_same_global_batches(world: int) -> None:
    samples, batch = [5, 0, 7, 11, 1], 12
    for step in range(6):
        part = batch // world
        ranks = [
            GlobalOrder(samples, 3, 8).locate(step * batch + r * part, step * batch + (r + 1) * part)
            for r in range(world)
        ]
        assert np.array_equal(
            np.concatenate(ranks), GlobalOrder(samples, 3, 8).locate(step * batch, (step + 1) * batch)
        )


def test_epochs_and_seeds_differ_and_shards_are_mixed() -> None:
    samples = [100] * 20
    order = GlobalOrder(samples, 0, 1000)
    first, second = order.locate(0, 2000)[:, 1:], order.locate(2000, 4000)[:, 1:]
    assert not np.array_equal(first, second)
    assert not np.array_equal(first, GlobalOrder(samples, 1, 1000).locate(0, 2000)[:, 1:])
    assert set(first[:1000, 0].tolist()) != set(range(10)), "the shards themselves are permuted"
    same_shard = (first[1:, 0] == first[:-1, 0]).mean()
    assert same_shard < 0.2, "neighbours of a window of ten shards rarely share a shard"
    ascending = (np.diff(first[:, 1]) == 1).mean()
    assert ascending < 0.05


def test_a_window_of_one_keeps_shards_whole() -> None:
    rows = GlobalOrder([3, 0, 2], 0, 1).locate(0, 5)[:, 1:].tolist()
    assert rows in ([[0, 0], [0, 1], [0, 2], [2, 0], [2, 1]], [[2, 0], [2, 1], [0, 0], [0, 1], [0, 2]])


def test_memory_is_of_the_window_not_of_the_data() -> None:
    order = GlobalOrder([10**9] * 50, 0, 4096)
    rows = order.locate(3 * 10**10, 3 * 10**10 + 10)
    assert rows.shape == (10, 3)
    assert ((rows[:, 1] < 50) & (rows[:, 2] < 10**9)).all()


@pytest.mark.parametrize(("samples", "window"), [([], 8), ([0, 0], 8), ([3], 0)])
def test_an_order_of_nothing_is_refused(samples: list[int], window: int) -> None:
    with pytest.raises(ValueError, match="at least"):
        GlobalOrder(samples, 0, window)
