"""Which shard a worker gets next. Nothing here knows Ray or reads a clock, so it is tested by itself, and simulated.

A worker holds one lease at a time. It is also told which shard it will probably be given next, to read ahead; that is a
hint, not a lease: whoever is idle takes the shard. When nothing waits, an idle worker repeats the shard that has been
out longest, if that is long compared to what shards took so far: commits are exclusive, so the first to finish wins.

No step depends on the number of shards, and only failures and the search for stragglers on that of workers.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush, heappushpop

SLOW = 2.0  # times the median of the shards done
SLOW_SECONDS = 5.0  # below this nothing is worth repeating
ENOUGH = 3  # shards done before a median means anything
MOVES = 5  # times `attempts`: how often a shard may lose its place through no fault of its own


@dataclass(frozen=True)
class Lease:
    """A shard in a worker's hands since `since`, in seconds of any clock. copy: another worker had it before."""

    shard: str
    since: float
    copy: bool = False


class Median:
    """Of numbers that come one by one, each in logarithmic time."""

    def __init__(self) -> None:
        self._low: list[float] = []  # heap of the negatives of the smaller half, which is as long or one longer
        self._high: list[float] = []

    def __len__(self) -> int:
        return len(self._low) + len(self._high)

    def add(self, number: float) -> None:
        if len(self._low) > len(self._high):
            heappush(self._high, -heappushpop(self._low, -number))
        else:
            heappush(self._low, -heappushpop(self._high, number))

    def value(self) -> float:
        """Raises: IndexError where there is none yet."""
        return -self._low[0] if len(self) % 2 else (self._high[0] - self._low[0]) / 2


@dataclass
class LeaseQueue:
    """The shards of one job. attempts: failures of one shard before it is given up."""

    shards: Sequence[str]
    attempts: int
    slow: float = SLOW
    slow_seconds: float = SLOW_SECONDS
    left: set[str] = field(init=False)
    leases: dict[Hashable, Lease] = field(init=False, default_factory=dict)  # by worker
    failures: dict[str, int] = field(init=False, default_factory=dict)
    moves: dict[str, int] = field(init=False, default_factory=dict)  # lost with a node, or cut off
    given_up: list[str] = field(init=False, default_factory=list)  # failed `attempts` times; no longer left

    def __post_init__(self) -> None:
        self.left = set(self.shards)
        self._fresh = deque(self.shards)  # never leased, never anyone's hint
        self._early: dict[str, int] = {}  # the others that wait, with their places: all before the fresh ones
        self._free: list[tuple[int, str]] = []  # heap of early ones that are nobody's hint, and of some that are gone
        self._hints: dict[Hashable, str] = {}
        self._hinted: set[str] = set()
        self._popped, self._returned = 0, 0
        self._spent = Median()

    def waiting(self) -> list[str]:
        """Shards in nobody's hands, the next first."""
        return [*sorted(self._early, key=self._early.__getitem__), *self._fresh]

    def lease(self, worker: Hashable, now: float) -> Lease | None:
        """A shard for an idle worker; None where there is nothing for it to do, nor for any other idle worker."""
        shard = self._unhint(worker)
        if shard not in self._early:
            shard = self._unhinted() or min(self._early, key=self._early.__getitem__, default=None)
        if shard is not None:
            del self._early[shard]
            self.leases[worker] = Lease(shard, now)
        elif straggler := self._straggler(now):
            self.leases[worker] = Lease(straggler, now, copy=True)
        return self.leases.get(worker)

    def hint(self, worker: Hashable) -> str | None:
        """The shard that this worker will probably get next, if any is not another's already."""
        shard = self._unhinted()
        if shard is not None:
            self._unhint(worker)
            self._hints[worker] = shard
            self._hinted.add(shard)
        return shard

    def done(self, worker: Hashable, now: float) -> bool:
        """A worker committed its shard, or found it committed. Whether that was the first time."""
        lease = self.leases.pop(worker)
        first = lease.shard in self.left
        if first:
            self.left.discard(lease.shard)
            self._spent.add(now - lease.since)
            self._early.pop(lease.shard, None)  # given up by a worker that was cut off, and finished all the same
        return first

    def failed(self, worker: Hashable, *, blameless: bool = False) -> bool:
        """A worker is gone, or its shard failed. False where that was once too often, and the shard is given up; else it
        waits again, first in line, unless it is done or another worker still has it. blameless: the shard's place was
        lost, which says nothing of the shard."""
        self._unhint(worker)
        lease = self.leases.pop(worker, None)
        if lease is None or lease.shard not in self.left:
            return True
        counted = self.moves if blameless else self.failures
        counted[lease.shard] = counted.get(lease.shard, 0) + 1
        if self.held(lease.shard):
            return True
        if self.tries(lease.shard) >= self.attempts or self.moves.get(lease.shard, 0) >= MOVES * self.attempts:
            self.left.discard(lease.shard)
            self.given_up.append(lease.shard)
            return False
        self._returned += 1
        self._early[lease.shard] = -self._returned
        self._offer(lease.shard)
        return True

    def tries(self, shard: str) -> int:
        """Failures that may be the shard's own."""
        return self.failures.get(shard, 0)

    def held(self, shard: str) -> bool:
        return any(lease.shard == shard for lease in self.leases.values())

    def _unhinted(self) -> str | None:
        """The first that waits and is nobody's hint; it is then among the early ones."""
        while self._free:
            place, shard = self._free[0]
            if self._early.get(shard) == place and shard not in self._hinted:
                return shard
            heappop(self._free)
        if not self._fresh:
            return None
        shard = self._fresh.popleft()
        self._early[shard] = self._popped
        self._popped += 1
        self._offer(shard)
        return shard

    def _unhint(self, worker: Hashable) -> str | None:
        """A worker's hint, which is nobody's from now on."""
        shard = self._hints.pop(worker, None)
        if shard is not None:
            self._hinted.discard(shard)
            self._offer(shard)
        return shard

    def _offer(self, shard: str) -> None:
        if shard in self._early and shard not in self._hinted:
            heappush(self._free, (self._early[shard], shard))

    def _straggler(self, now: float) -> str | None:
        if len(self._spent) < ENOUGH:
            return None
        limit = max(self.slow_seconds, self.slow * self._spent.value())
        held: dict[str, int] = {}
        for lease in self.leases.values():
            held[lease.shard] = held.get(lease.shard, 0) + 1
        late = [
            x for x in self.leases.values() if held[x.shard] == 1 and x.shard in self.left and now - x.since > limit
        ]
        return min(late, key=lambda lease: lease.since).shard if late else None
