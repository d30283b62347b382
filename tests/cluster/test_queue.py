"""The queue under any order of events: nothing lost, nothing done twice, hints that never hold anyone up."""

from __future__ import annotations

from collections.abc import Hashable
from statistics import median

from hypothesis import given
from hypothesis import strategies as st

from cluster.queue import ENOUGH, MOVES, Lease, LeaseQueue, Median


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
        waiting = queue.waiting()
        assert len(waiting) == len(set(waiting)), "no shard waits twice"
        assert {*waiting, *(lease.shard for lease in queue.leases.values())} >= queue.left, "no shard is lost"
    for _ in range(2 * shards + 2):  # each worker ends its lease, then takes another
        for worker in range(workers):
            now += 1.0
            step(worker, False)
    assert sorted(told) == sorted(names) and not queue.left


class PlainQueue(LeaseQueue):
    """The queue's rules in as few words as possible, looking through all shards each time."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._line, self._hint_of, self._all = list(self.shards), {}, []

    def waiting(self) -> list[str]:
        return self._line

    def lease(self, worker: Hashable, now: float) -> Lease | None:
        own = self._hint_of.pop(worker, None)
        shard = own if own in self._line else next(iter([*self._nobodys(), *self._line]), None)
        if shard is not None:
            self._line.remove(shard)
            self.leases[worker] = Lease(shard, now)
        elif len(self._all) >= ENOUGH:
            limit = max(self.slow_seconds, self.slow * median(self._all))
            held = [lease.shard for lease in self.leases.values()]
            late = [x for x in self.leases.values() if held.count(x.shard) == 1 and x.shard in self.left]
            late = [x for x in late if now - x.since > limit]
            if late:
                self.leases[worker] = Lease(min(late, key=lambda x: x.since).shard, now, copy=True)
        return self.leases.get(worker)

    def hint(self, worker: Hashable) -> str | None:
        if found := self._nobodys():
            self._hint_of[worker] = found[0]
        return found[0] if found else None

    def done(self, worker: Hashable, now: float) -> bool:
        lease = self.leases.pop(worker)
        first = lease.shard in self.left
        self.left.discard(lease.shard)
        if first:
            self._all.append(now - lease.since)
            self._line = [s for s in self._line if s != lease.shard]
        return first

    def failed(self, worker: Hashable, *, blameless: bool = False) -> bool:
        self._hint_of.pop(worker, None)
        lease = self.leases.get(worker)
        kept = super().failed(worker, blameless=blameless)
        if lease and kept and lease.shard in self.left and not self.held(lease.shard):
            self._line.insert(0, lease.shard)
        return kept

    def _nobodys(self) -> list[str]:
        return [s for s in self._line if s not in self._hint_of.values()]


@given(
    st.integers(1, 9),
    st.lists(st.tuples(st.integers(0, 4), st.sampled_from(["end", "end", "fail", "lost", "hint", "cut off"]))),
)
def test_the_queue_gives_what_looking_through_all_shards_would_give(shards: int, events: list[tuple[int, str]]) -> None:
    """cut off: a worker's shard goes back to the queue, and is finished by that worker all the same."""
    names = [str(n) for n in range(shards)]
    both = [kind(names, attempts=2, slow_seconds=3.0) for kind in (LeaseQueue, PlainQueue)]
    for now, (worker, what) in enumerate(events):
        told = []
        for queue in both:
            if what == "hint":
                told.append([queue.hint(worker)])
            elif worker not in queue.leases:
                told.append([queue.lease(worker, now), queue.hint(worker)])
            elif what == "end":
                told.append([queue.done(worker, now)])
            elif what == "cut off":
                lease = queue.leases[worker]
                kept = queue.failed(worker, blameless=True)
                queue.leases[worker] = lease
                told.append([kept, queue.done(worker, now)])
            else:
                told.append([queue.failed(worker, blameless=what == "lost")])
        fast, plain = both
        assert told[0] == told[1]
        assert fast.waiting() == plain.waiting() and fast.left == plain.left and fast.leases == plain.leases


def test_a_million_shards_cost_no_more_each_than_a_thousand() -> None:
    """Counted, not timed: no step of the queue looks through the names."""

    class Name(str):
        looks = 0

        def __eq__(self, other: object) -> bool:
            Name.looks += 1
            return str.__eq__(self, other)  # type: ignore[arg-type]

        __hash__ = str.__hash__

    queue = LeaseQueue([Name(n) for n in range(5000)], attempts=3)
    for at in range(3000):
        worker = at % 50
        if worker in queue.leases:
            queue.done(worker, float(at))
        queue.lease(worker, float(at))
        queue.hint(worker)
    assert Name.looks < 20 * 3000


@given(st.lists(st.floats(0, 1e6), min_size=1))
def test_the_median_is_that_of_all_numbers(numbers: list[float]) -> None:
    found = Median()
    for number in numbers:
        found.add(number)
    assert len(found) == len(numbers) and found.value() == median(numbers)
