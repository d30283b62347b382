"""The simulation behind docs/scale.md: what must hold of any cluster, and cases that can be done by hand."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.scale_sim import Driver, Faults, Load, Pool, Storage, simulate

STORE = Storage(0.05, 5, 300e6, 3e9, 5500, 3500)
LOAD = Load(120, 60.0, bytes_in=1e8, bytes_out=1e6, gets=18, puts=4, spread=0.3)


def test_without_overheads_every_worker_works_all_the_time() -> None:
    found = simulate(Load(60, 10.0), Pool(6))
    assert found.seconds == 100.0 and found.efficiency == 1.0 and found.binds == "workers"


def test_a_round_that_is_not_full_is_lost() -> None:
    assert simulate(Load(61, 10.0), Pool(6)).seconds == 110.0


@given(st.integers(0, 99), st.integers(1, 20), st.integers(1, 4), st.sampled_from([0.0, 2.0, 10.0]), st.integers(0, 2))
def test_work_is_conserved_whatever_fails(seed: int, workers: int, per_node: int, an_hour: float, slow: int) -> None:
    faults = Faults(deaths=an_hour, losses=an_hour, slow_nodes=slow, slow_factor=3.0)
    found = simulate(LOAD, Pool(workers, per_node, start=5.0, attempts=10**6), STORE, Driver(0.002, 0.05), faults, seed)
    undisturbed = simulate(LOAD, Pool(workers), seed=seed)
    assert found.committed == LOAD.shards and found.given_up == 0
    assert math.isclose(found.useful, undisturbed.useful), "each shard's work counts once, whoever did it"
    assert found.worked >= found.useful * (1 - 1e-9) and found.efficiency <= 1.0
    assert found.seconds >= undisturbed.useful / workers
    assert found.gets >= LOAD.gets * LOAD.shards and found.bytes_out >= LOAD.bytes_out * LOAD.shards


@given(st.integers(1, 40), st.integers(1, 100))
def test_more_workers_never_take_longer(workers: int, shards: int) -> None:
    """But for one input: what a worker has read ahead may be given to the one that was added, which reads it again."""
    plain, far = Load(shards, 10.0), Load(shards, 10.0, bytes_in=1e8)
    pools = [Pool(n, start=3.0) for n in (workers, workers + 1)]
    fewer, more = (simulate(plain, pool) for pool in pools)
    assert more.seconds <= fewer.seconds + 1e-6
    fewer, more = (simulate(far, pool, Storage(0.05, 5, 300e6)) for pool in pools)
    assert more.seconds <= fewer.seconds + 0.05 + 1e8 / 300e6 + 1e-6


def test_the_same_seed_gives_the_same_run_and_another_one_another() -> None:
    one, same, other = (
        simulate(LOAD, Pool(7), STORE, Driver(0.002, 0.05), Faults(deaths=10.0), seed) for seed in (3, 3, 4)
    )
    assert one == same != other


def test_repeating_what_is_late_helps_where_a_node_is_slow() -> None:
    slow = Faults(slow_nodes=1, slow_factor=10.0)
    load = Load(40, 10.0)
    never = simulate(load, Pool(4, slow=math.inf), faults=slow)
    found = simulate(load, Pool(4), faults=slow)
    assert found.copies and never.copies == 0
    assert found.seconds < 0.8 * never.seconds
    assert found.committed == 40, "a copy that loses is not counted"


def test_a_worker_that_dies_costs_half_a_shard_and_a_start() -> None:
    found = simulate(Load(10, 10.0), Pool(1, start=4.0), faults=Faults(dies=frozenset({3})))
    assert found.seconds == 4.0 + 100.0 + 5.0 + 4.0 and found.retried == 1


def test_a_deadline_that_no_shard_keeps_gives_all_of_them_up() -> None:
    found = simulate(Load(3, 10.0), Pool(1, timeout=5.0, attempts=2))
    assert found.given_up == 3 and found.committed == 0 and found.seconds == 3 * 2 * 5.0


@pytest.mark.parametrize(
    ("storage", "driver", "what", "seconds"),
    [
        (Storage(gets_a_second=20.0), Driver(), "GET limit", 100.0),
        (Storage(gets_a_second=20.0, prefixes=4), Driver(), "GET limit", 25.0),
        (Storage(puts_a_second=10.0), Driver(), "PUT limit", 100.0),
        (Storage(node_bandwidth=1e6), Driver(), "bandwidth", 250.0),
        (Storage(), Driver(0.1, 0.9), "driver", 100.0),
    ],
)
def test_what_binds_is_named_and_sets_the_time(storage: Storage, driver: Driver, what: str, seconds: float) -> None:
    load = Load(400, 0.1, bytes_in=1e7, gets=20.0, puts=10.0)
    found = simulate(load, Pool(4, 1), storage, driver)
    assert found.binds == what and found.seconds == pytest.approx(4 * seconds, rel=0.1)
