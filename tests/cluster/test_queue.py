"""The queue under any order of events: nothing lost, nothing done twice, hints that never hold anyone up."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from cluster.queue import MOVES, Lease, LeaseQueue


def test_hints_are_kept_for_their_worker_until_nothing_else_waits() -> None:
    queue = LeaseQueue(["a", "b", "c", "d"], attempts=3)
    assert queue.lease(1, 0.0) == Lease("a", 0.0) and queue.hint(1) == "b"
    assert queue.lease(2, 0.0) == Lease("c", 0.0) and queue.hint(2) == "d"
    queue.done(1, 1.0)
    assert queue.lease(1, 1.0) == Lease("b", 1.0), "the one it has read ahead"
    queue.done(1, 2.0)
    assert queue.lease(1, 2.0) == Lease("d", 2.0), "another's hint, where nothing else waits"
    queue.done(2, 3.0)
    assert queue.lease(2, 3.0) is None


def test_a_straggler_is_repeated_once_and_only_when_it_is_late() -> None:
    queue = LeaseQueue(["a", "b", "c", "d"], attempts=3, slow_seconds=5.0)
    queue.lease("slow", 0.0)
    for n in range(3):
        queue.lease("fast", 10.0 * n)
        queue.done("fast", 10.0 * n + 10)
    queue.leases["slow"] = Lease("a", 15.0)
    assert queue.lease("fast", 30.0) is None, "15 s is no more than twice the median of 10"
    assert queue.lease("fast", 36.0) == Lease("a", 36.0, copy=True)
    assert queue.lease("third", 99.0) is None, "two are enough"
    assert queue.done("fast", 40.0) and not queue.left
    assert not queue.done("slow", 41.0), "told once"


def test_a_copy_that_fails_leaves_the_first_its_shard() -> None:
    queue = LeaseQueue(["a"], attempts=1)
    queue.lease("slow", 0.0)
    queue.leases["copy"] = Lease("a", 1.0, copy=True)
    assert queue.failed("copy") and queue.lease("copy", 2.0) is None
    assert queue.done("slow", 3.0)


def test_a_shard_is_given_up_after_its_own_failures_and_not_for_places_that_are_lost() -> None:
    queue = LeaseQueue(["a", "b"], attempts=2)
    for _ in range(2 * MOVES - 1):
        assert queue.lease(1, 0.0) == Lease("a", 0.0)
        assert queue.failed(1, blameless=True)
    queue.lease(1, 0.0)
    assert queue.failed(1) and queue.tries("a") == 1 and queue.left == {"a", "b"}
    queue.lease(1, 0.0)
    assert not queue.failed(1) and queue.left == {"b"} and queue.given_up == ["a"]
    assert queue.lease(1, 0.0) == Lease("b", 0.0), "the others go on"
    for _ in range(2 * MOVES - 1):
        assert queue.failed(1, blameless=True) and queue.lease(1, 0.0)
    assert not queue.failed(1, blameless=True) and not queue.left, (
        "a shard that takes its node along is not tried for ever"
    )


@given(st.integers(1, 12), st.integers(1, 4), st.lists(st.tuples(st.integers(0, 3), st.booleans()), max_size=200))
def test_every_shard_is_told_once_whatever_fails(shards: int, workers: int, events: list[tuple[int, bool]]) -> None:
    names = [str(n) for n in range(shards)]
    queue = LeaseQueue(names, attempts=10_000, slow_seconds=0.5)
    told: list[str] = []
    now = 0.0

    def step(worker: int, fails: bool) -> None:
        if worker not in queue.leases:
            if queue.lease(worker, now) is not None:
                queue.hint(worker)
        elif fails:
            assert queue.failed(worker)
        else:
            shard = queue.leases[worker].shard
            if queue.done(worker, now):
                told.append(shard)

    for worker, fails in events:
        now += 1.0
        step(worker % workers, fails)
        waiting = list(queue._waiting)
        assert len(waiting) == len(set(waiting)), "no shard waits twice"
        assert {*waiting, *(lease.shard for lease in queue.leases.values())} >= queue.left, "no shard is lost"
    for _ in range(2 * shards + 2):  # each worker ends its lease, then takes another
        for worker in range(workers):
            now += 1.0
            step(worker, False)
    assert sorted(told) == sorted(names) and not queue.left
