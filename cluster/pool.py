"""A pool of disposable actors over one queue that lives in the driver.

An actor holds one leased shard at a time. When it dies, its node is lost, or a shard passes its deadline, the actor is
thrown away and the shard goes back to the queue; a worker that was only cut off and finishes late loses the race for the
marker. Paths travel through Ray, never images. (Restarting actors lost calls or hung when a node died.)
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayError

from shards.errors import VillaError
from shards.work import Job, UnitWorker
from villa_dist.observe import LOG

POLL_SECONDS = 1.0
NODE_CHECK_SECONDS = 5.0
START_SECONDS = 300.0
START_FAILURES = 10


class ShardWorker:
    """Runs in an actor. Keeps the worker of the last job, with the model it loaded."""

    def __init__(self) -> None:
        self._job: Job | None = None
        self._worker: UnitWorker | None = None

    def node(self) -> str:
        return str(ray.get_runtime_context().get_node_id())

    def process(self, job: Job, shard: str) -> VillaError | None:
        """Commit one shard. What a user can mend is returned, not raised: it would fail anywhere, so no retry."""
        try:
            if self._worker is None or job != self._job:
                self._worker, self._job = job.worker(), job
            self._worker.process(shard)
        except VillaError as error:
            return error
        return None


@dataclass
class Lease:
    """A shard in an actor's hands."""

    actor: Any
    shard: str
    since: float


class ActorPool:
    """workers: actors alive at a time. timeout: seconds a shard may take. attempts: tries of one shard."""

    def __init__(self, workers: int, timeout: float, attempts: int) -> None:
        self.workers, self.timeout, self.attempts = workers, timeout, attempts
        self._starting: dict[Any, tuple[Any, float]] = {}  # node() call -> (actor, when)
        self._idle: list[Any] = []
        self._node: dict[Any, str] = {}
        self._leases: dict[Any, Lease] = {}  # process() call -> lease
        self._checked = 0.0
        self._failed_starts = 0

    def run(self, job: Job, shards: Sequence[str], done: Callable[[str], None]) -> None:
        """Process every shard. Raises: VillaError from a worker, or naming a shard that failed `attempts` times."""
        queue, tries = deque(shards), dict.fromkeys(shards, 0)
        left = set(shards)
        try:
            while left:
                self._fill(min(self.workers, len(left)))
                while self._idle and queue:
                    actor, shard = self._idle.pop(), queue.popleft()
                    tries[shard] += 1
                    self._leases[actor.process.remote(job, shard)] = Lease(actor, shard, time.monotonic())
                for lease, outcome in self._wait():
                    if outcome is None:
                        left.discard(lease.shard)
                        done(lease.shard)
                    elif isinstance(outcome, VillaError):
                        raise outcome
                    else:
                        self._again(queue, tries, lease.shard, outcome)
        except BaseException:
            self.close()
            raise

    def _again(self, queue: deque[str], tries: dict[str, int], shard: str, outcome: Exception) -> None:
        reason = " ".join(str(outcome).split())[-300:]
        if tries[shard] >= self.attempts:
            raise VillaError(f"shard {shard} failed {tries[shard]} times, last by {type(outcome).__name__}: {reason}")
        LOG.warning("shard %s goes back to the queue (try %d): %s", shard, tries[shard], reason)
        queue.appendleft(shard)

    def _fill(self, wanted: int) -> None:
        worker = ray.remote(num_cpus=1, max_restarts=0, max_task_retries=0)(ShardWorker)
        while len(self._starting) + len(self._node) < wanted:
            actor = worker.remote()
            self._starting[actor.node.remote()] = (actor, time.monotonic())

    def _wait(self) -> list[tuple[Lease, Exception | None]]:
        """Leases that ended: None for a commit, the error otherwise."""
        calls = [*self._leases, *self._starting]
        ready, _ = ray.wait(calls, num_returns=1, timeout=POLL_SECONDS)
        ended: list[tuple[Lease, Exception | None]] = []
        for call in ready:
            if call in self._starting:
                self._started(call)
                continue
            lease = self._leases.pop(call)
            try:
                ended.append((lease, ray.get(call)))
                self._idle.append(lease.actor)
            except RayError as error:
                self._drop(lease.actor)
                ended.append((lease, error))
        return ended + self._overdue() + self._lost_nodes()

    def _started(self, call: Any) -> None:
        actor, _ = self._starting.pop(call)
        try:
            self._node[actor] = ray.get(call)
            self._idle.append(actor)
        except RayError as error:
            self._failed_starts += 1
            reason = " ".join(str(error).split())[-300:]
            LOG.warning("a worker did not start: %s", reason)
            if self._failed_starts > START_FAILURES:
                raise VillaError(f"workers did not start {self._failed_starts} times, last by: {reason}") from error

    def _overdue(self) -> list[tuple[Lease, Exception | None]]:
        now = time.monotonic()
        late: list[tuple[Lease, Exception | None]] = []
        for call, lease in list(self._leases.items()):
            if now - lease.since > self.timeout:
                late.append(self._revoke(call, f"no result after {self.timeout:.0f} s"))
        for call, (actor, since) in list(self._starting.items()):
            if now - since > START_SECONDS:
                del self._starting[call]
                ray.kill(actor)
                if not self._node:
                    raise VillaError(
                        f"no worker started within {START_SECONDS:.0f} s: the cluster has no free CPU for it "
                        f"(resources: {ray.available_resources().get('CPU', 0):.0f} CPU free); "
                        "free some or set ray.workers lower"
                    )
        return late

    def _lost_nodes(self) -> list[tuple[Lease, Exception | None]]:
        if time.monotonic() - self._checked < NODE_CHECK_SECONDS:
            return []
        self._checked = time.monotonic()
        alive = {n["NodeID"] for n in ray.nodes() if n["Alive"]}
        lost: list[tuple[Lease, Exception | None]] = []
        for call, lease in list(self._leases.items()):
            if self._node.get(lease.actor) not in alive:
                lost.append(self._revoke(call, "its node is gone"))
        for actor in [a for a in self._idle if self._node.get(a) not in alive]:
            self._drop(actor)
        return lost

    def _revoke(self, call: Any, reason: str) -> tuple[Lease, Exception]:
        lease = self._leases.pop(call)
        self._drop(lease.actor)
        return lease, GetTimeoutError(reason)

    def _drop(self, actor: Any) -> None:
        self._node.pop(actor, None)
        if actor in self._idle:
            self._idle.remove(actor)
        ray.kill(actor, no_restart=True)

    def close(self) -> None:
        """Stop all actors, so that the CPUs are free for training."""
        for actor in [*self._node, *(a for a, _ in self._starting.values())]:
            ray.kill(actor, no_restart=True)
        self._starting, self._idle, self._node, self._leases = {}, [], {}, {}
