"""A data stage on a cluster that is not at hand, simulated event by event: the pool, the object store, and what fails.

The policy is not modelled: leases, hints, repeats of stragglers and retries come from `cluster.queue.LeaseQueue` itself.
Around it stand workers on nodes, a driver that does one thing at a time, and a store with latencies and limits. Everything
is a pure function of its arguments and the seed. `benchmarks/scale_report.py` feeds it with `scale_costs.yaml`.

Units are seconds, bytes and requests. What a shard does, in order: lease; its input, unless it was read ahead; work; its
output and commit; the driver settles it.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import simpy

from cluster.pool import NODE_CHECK_SECONDS, POLL_SECONDS
from cluster.queue import SLOW, LeaseQueue

Steps = Generator[simpy.Event, Any, None]


@dataclass(frozen=True)
class Load:
    """One stage. spread: standard deviation of a shard's work by its mean (log-normal)."""

    shards: int
    work: float  # of a mean shard, at a worker
    bytes_in: float = 0.0
    bytes_out: float = 0.0
    gets: float = 0.0  # GET, HEAD and LIST a shard, by workers
    puts: float = 0.0  # PUT, COPY and DELETE a shard
    spread: float = 0.0


@dataclass(frozen=True)
class Pool:
    """start: until a new worker can take a shard. slow: how many medians a shard is out before an idle worker repeats it."""

    workers: int
    per_node: int = 1
    start: float = 0.0
    timeout: float = math.inf
    attempts: int = 4
    slow: float = SLOW


@dataclass(frozen=True)
class Storage:
    """Of an object store. latency: of a request. round_trips: requests of a commit that wait for each other. bandwidth: of
    a worker's connections together, and of a node. Rates are a prefix's."""

    latency: float = 0.0
    round_trips: int = 0
    worker_bandwidth: float = math.inf
    node_bandwidth: float = math.inf
    gets_a_second: float = math.inf
    puts_a_second: float = math.inf
    prefixes: int = 1


@dataclass(frozen=True)
class Driver:
    """cpu: of all the driver does for a shard. marker: until it has read the shard's marker, and does nothing else."""

    cpu: float = 0.0
    marker: float = 0.0


@dataclass(frozen=True)
class Faults:
    """deaths: of a worker in an hour. losses: of a node in an hour, spot interruptions included. noticed: until the driver
    knows of a lost node. back: until another stands in its place. dies: shards whose first try kills the worker half-way."""

    deaths: float = 0.0
    losses: float = 0.0
    noticed: float = 10.0 + NODE_CHECK_SECONDS
    back: float = 120.0
    slow_nodes: int = 0
    slow_factor: float = 1.0
    dies: frozenset[int] = frozenset()


@dataclass
class Rate:
    """What serves one after another, so many units a second: done at the time that `take` tells."""

    a_second: float
    free: float = 0.0
    taken: float = 0.0

    def take(self, now: float, amount: float) -> float:
        self.free = max(now, self.free) + amount / self.a_second
        self.taken += amount
        return self.free


@dataclass(frozen=True)
class Outcome:
    """useful: seconds of work that was committed; worked: that and what was lost or done twice. tail: from the last shard
    that was nobody's to the end. shares: of the time that each resource was busy, the busiest prefix and the mean node."""

    seconds: float
    committed: int
    given_up: int
    retried: int
    copies: int
    useful: float
    worked: float
    tail: float
    gets: float
    puts: float
    bytes_in: float
    bytes_out: float
    workers: int
    shares: dict[str, float] = field(default_factory=dict)

    @property
    def efficiency(self) -> float:
        return self.useful / (self.workers * self.seconds)

    @property
    def worker_hours(self) -> float:
        return self.workers * self.seconds / 3600

    @property
    def binds(self) -> str:
        return max(self.shares, key=self.shares.__getitem__)


class Simulation:
    """One run; `simulate` is the way in."""

    def __init__(self, load: Load, pool: Pool, storage: Storage, driver: Driver, faults: Faults, seed: int) -> None:
        self.load, self.pool, self.storage, self.driver, self.faults = load, pool, storage, driver, faults
        self.random = np.random.default_rng([seed, 1])
        sigma = math.sqrt(math.log1p(load.spread**2))
        drawn = np.random.default_rng([seed, 0]).standard_normal(load.shards) * sigma - sigma**2 / 2
        self.work = (load.work * np.exp(drawn)).tolist()  # of a shard, whoever does it
        self.names = [str(n) for n in range(load.shards)]
        self.queue = LeaseQueue(self.names, pool.attempts, slow=pool.slow)
        self.env = simpy.Environment()
        self.finished = self.env.event()
        self.desk = Rate(1.0)
        self.gets = [Rate(storage.gets_a_second) for _ in range(storage.prefixes)]
        self.puts = [Rate(storage.puts_a_second) for _ in range(storage.prefixes)]
        self.wires = [Rate(storage.node_bandwidth) for _ in range(-(-pool.workers // pool.per_node))]
        self.ahead: dict[tuple[int, str], float] = {}
        self.idle: dict[int, simpy.Event] = {}
        self.steps: dict[int, simpy.Process] = {}
        self.polling = False
        self.to_die = set(faults.dies)
        self.useful = self.worked = self.last_taken = self.moved_in = self.moved_out = 0.0
        self.copies = self.retried = self.committed = 0

    def run(self) -> Outcome:
        if not self.names:
            raise ValueError("nothing to simulate: the load has no shards")
        for worker in range(self.pool.workers):
            self.begin(worker, self.pool.start)
        if self.faults.deaths:
            self.env.process(self.strikes(self.faults.deaths * self.pool.workers, self.one_worker, "death"))
        if self.faults.losses:
            self.env.process(self.strikes(self.faults.losses * len(self.wires), self.one_node, "node"))
        self.env.run(until=self.finished)
        now = self.env.now
        shares = {
            "workers": self.worked / (self.pool.workers * now),
            "driver": self.desk.taken / now,
            "GET limit": max(r.taken / r.a_second for r in self.gets) / now,
            "PUT limit": max(r.taken / r.a_second for r in self.puts) / now,
            "bandwidth": sum(r.taken / r.a_second for r in self.wires) / len(self.wires) / now,
        }
        return Outcome(
            now,
            self.committed,
            len(self.queue.given_up),
            self.retried,
            self.copies,
            self.useful,
            self.worked,
            now - self.last_taken,
            sum(r.taken for r in self.gets),
            sum(r.taken for r in self.puts),
            self.moved_in,
            self.moved_out,
            self.pool.workers,
            shares,
        )

    # ---- a worker

    def begin(self, worker: int, start: float) -> None:
        self.steps[worker] = self.env.process(self.life(worker, start))

    def life(self, worker: int, start: float) -> Steps:
        """A worker and those that take its place."""
        while True:
            try:
                yield self.env.timeout(start)
                yield from self.works(worker)
            except simpy.Interrupt as interrupt:
                self.idle.pop(worker, None)
                blameless = interrupt.cause == "node"
                gone = self.env.now
                if blameless:
                    yield from self.undisturbed(self.faults.noticed)
                self.fail(worker, blameless)
                start = self.pool.start
                if blameless:
                    start += max(self.faults.back - (self.env.now - gone), 0.0)

    def undisturbed(self, seconds: float) -> Steps:
        """Time in which there is nothing left that could be struck."""
        until = self.env.now + seconds
        while self.env.now < until:
            try:
                yield self.env.timeout(until - self.env.now)
            except simpy.Interrupt:
                continue

    def works(self, worker: int) -> Steps:
        """Shard after shard; ends by an interrupt, of which a deadline is one."""
        env, slow = self.env, self.slowness(worker)
        while True:
            lease = self.queue.lease(worker, env.now)
            if lease is None:
                self.idle[worker] = env.event()
                self.poll()
                lease = yield self.idle[worker]
            shard = lease.shard
            self.copies += lease.copy
            if not lease.copy:
                self.last_taken = env.now
            ready = self.ahead.pop((worker, shard), None)
            ready = self.fetch(worker, shard, env.now) if ready is None else ready
            hint = self.queue.hint(worker)
            if hint is not None and (worker, hint) not in self.ahead:
                self.ahead[worker, hint] = self.fetch(worker, hint, env.now)
            if ready > env.now:
                yield env.timeout(ready - env.now)
            took = self.work[int(shard)] * slow
            until = lease.since + self.pool.timeout
            if int(shard) in self.to_die:
                self.to_die.discard(int(shard))
                until = min(until, env.now + took / 2)
            began = env.now
            cut_off = until - began < took
            try:
                yield env.timeout(max(until - began, 0.0) if cut_off else took)
            finally:
                self.worked += env.now - began
            if cut_off:
                raise simpy.Interrupt("death")
            done = self.commit(worker, shard, env.now)
            if done > env.now:
                yield env.timeout(done - env.now)
            settled = self.desk.take(env.now, self.driver.cpu + self.driver.marker)
            if settled > env.now:
                yield env.timeout(settled - env.now)
            if self.queue.done(worker, env.now):
                self.committed += 1
                self.useful += self.work[int(shard)]
                self.end()

    def slowness(self, worker: int) -> float:
        return self.faults.slow_factor if worker // self.pool.per_node < self.faults.slow_nodes else 1.0

    def fail(self, worker: int, blameless: bool) -> None:
        for key in [k for k in self.ahead if k[0] == worker]:
            del self.ahead[key]
        if worker in self.queue.leases:
            self.retried += 1
            self.queue.failed(worker, blameless=blameless)
            self.end()
        self.offer()

    def end(self) -> None:
        if not self.queue.left and not self.finished.triggered:
            self.finished.succeed()

    # ---- the store

    def fetch(self, worker: int, shard: str, now: float) -> float:
        """When a shard's input is at a worker that asks for it now."""
        store, size = self.storage, self.load.bytes_in
        asked = self.gets[int(shard) % store.prefixes].take(now, self.load.gets)
        moved = self.wires[worker // self.pool.per_node].take(now, size)
        self.moved_in += size
        return max(asked, moved, now + store.latency + size / store.worker_bandwidth)

    def commit(self, worker: int, shard: str, now: float) -> float:
        store, size = self.storage, self.load.bytes_out
        asked = self.puts[int(shard) % store.prefixes].take(now, self.load.puts)
        moved = self.wires[worker // self.pool.per_node].take(now, size)
        self.moved_out += size
        return max(asked, moved, now + store.latency * store.round_trips + size / store.worker_bandwidth)

    # ---- the driver

    def poll(self) -> None:
        if not self.polling:
            self.polling = True
            self.env.process(self.polls())

    def polls(self) -> Steps:
        while self.idle:
            yield self.env.timeout(max(POLL_SECONDS, self.load.work / 100))  # more often changes nothing but the cost
            self.offer()
        self.polling = False

    def offer(self) -> None:
        """Ask for idle workers, as the pool does: until there is nothing for one."""
        for worker in list(self.idle):
            lease = self.queue.lease(worker, self.env.now)
            if lease is None:
                return
            self.idle.pop(worker).succeed(lease)

    # ---- faults

    def strikes(self, an_hour: float, who: Any, cause: str) -> Steps:
        while True:
            yield self.env.timeout(self.random.exponential(3600 / an_hour))
            for worker in who():
                self.steps[worker].interrupt(cause)

    def one_worker(self) -> Iterable[int]:
        return [int(self.random.integers(self.pool.workers))]

    def one_node(self) -> Iterable[int]:
        first = int(self.random.integers(len(self.wires))) * self.pool.per_node
        return range(first, min(first + self.pool.per_node, self.pool.workers))


def simulate(
    load: Load,
    pool: Pool,
    storage: Storage = Storage(),
    driver: Driver = Driver(),
    faults: Faults = Faults(),
    seed: int = 0,
) -> Outcome:
    """Raises: ValueError when there is nothing to do."""
    return Simulation(load, pool, storage, driver, faults, seed).run()
