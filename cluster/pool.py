"""A pool of disposable actors over one queue that lives in the driver.

An actor holds one leased shard at a time (`cluster/queue.py`). When it dies, its node is lost, or a shard passes its
deadline, the actor is thrown away, another is started, and the shard goes back to the queue; a worker that was only cut
off and finishes late loses the race for the marker. Paths travel through Ray, never images. (Restarting actors lost
calls or hung when a node died.)
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, TypeVar

import ray
from ray.exceptions import RayError

from cluster import metrics
from cluster.queue import LeaseQueue
from cluster.trouble import LATE, LostNode, Overdue, Trouble, trouble
from shards.commit import Marker
from shards.errors import VillaError
from shards.work import Again, Job, UnitWorker, process
from villa_dist.observe import LOG

POLL_SECONDS = 1.0
NODE_CHECK_SECONDS = 5.0
START_FAILURES = 10  # in a row
NOT_STARTED = "look at the nodes (`ray status`), and whether villa is installed on them"
GIVEN_UP = 2  # shards that may fail for good before the fault is thought to be of all of them,
GIVEN_UP_SHARE = 0.01  # or this share of those that are done
READY: list[Any] = []  # actors that this process has started before it has a use for them (`cluster.probe`)
T = TypeVar("T")


class ShardWorker:
    """Runs in an actor. Keeps the worker of the last job, with the model it loaded."""

    def __init__(self) -> None:
        self._job: Job | None = None
        self._worker: UnitWorker | None = None

    def node(self, hide_gpus: bool = False) -> str:
        """The first call, before any library looks for devices."""
        if hide_gpus:
            os.environ["CUDA_VISIBLE_DEVICES"] = ""
        return str(ray.get_runtime_context().get_node_id())

    def prepare(self, job: Job) -> None:
        """Load what the job needs, so that no shard's time is spent with it. What fails here fails again in `process`,
        which says with which shard."""
        with suppress(Exception):
            self._worker, self._job = job.worker(), job

    def call(self, function: Callable[..., T], *given: Any) -> T:
        return function(*given)

    def process(self, job: Job, shard: str, upcoming: str | None) -> VillaError | None:
        """Commit one shard. What a user can mend is returned, not raised: it would fail anywhere, so no retry."""
        try:
            if self._worker is None or job != self._job:
                self._worker, self._job = job.worker(), job
            made = process(self._worker, shard, upcoming)
        except VillaError as error:
            return error
        if isinstance(made, Marker):
            metrics.count(made)
        return None


def remote_worker(gpus: float = 0.0) -> Any:
    """The class of a pool's actors, each with one CPU and `gpus`."""
    return ray.remote(num_cpus=1, num_gpus=gpus, max_restarts=0, max_task_retries=0)(ShardWorker)


def take_ready() -> list[Any]:
    """The actors that are ready, which are the caller's from now on."""
    taken = [*READY]
    READY.clear()
    return taken


class ActorPool:
    """workers: actors alive at a time, each with one CPU and `gpus`. timeout: seconds a shard may take. attempts: failures
    of one shard before the job is given up. ready: actors of its kind to begin with. start_seconds: so long the first may
    take to come up. hide_gpus: from actors on nodes that have some."""

    def __init__(
        self,
        workers: int,
        timeout: float,
        attempts: int,
        gpus: float = 0.0,
        ready: Sequence[Any] = (),
        *,
        start_seconds: float = 300.0,
        hide_gpus: bool = False,
    ) -> None:
        self.workers, self.timeout, self.attempts, self.gpus = workers, timeout, attempts, gpus
        self.start_seconds, self._hidden = start_seconds, (True,) if hide_gpus else ()
        self._ready = [*ready]
        self._starting: dict[Any, tuple[Any, float]] = {}  # node() call -> (actor, when)
        self._preparing: dict[Any, tuple[Any, float]] = {}  # prepare() call -> (actor, when)
        self._idle: list[Any] = []
        self._node: dict[Any, str] = {}
        self._calls: dict[Any, Any] = {}  # process() call -> actor
        self._checked = 0.0
        self._failed_starts = 0
        self._given_up: dict[str, Trouble] = {}

    def run(self, job: Job, shards: Sequence[str], done: Callable[[str], None], again: Again | None = None) -> None:
        """Process every shard. Raises: VillaError from a worker, at once; or naming shards that failed `attempts` times,
        when the others are done or too many have."""
        queue, self._given_up = LeaseQueue(shards, self.attempts), {}
        try:
            while queue.left:
                self._fill(min(self.workers, len(queue.left)))
                self._lease(queue, job)
                for actor, outcome in self._wait(queue, job):
                    self._settle(queue, actor, outcome, done, again)
            if self._given_up:
                raise self._unfinished(queue)
        except BaseException:
            self.close()
            raise
        for actor in list(queue.leases):  # copies that lost; their attempts are collected as orphans
            self._drop(actor)

    def _lease(self, queue: LeaseQueue, job: Job) -> None:
        idle, self._idle = self._idle, []
        for at, actor in enumerate(idle):
            lease = queue.lease(actor, time.monotonic())
            if lease is None:  # nor is there for the others
                self._idle += idle[at:]
                break
            if lease.copy:
                LOG.info("shard %s takes long: another worker tries it, too", lease.shard)
            self._calls[actor.process.remote(job, lease.shard, queue.hint(actor))] = actor

    def _settle(
        self,
        queue: LeaseQueue,
        actor: Any,
        outcome: Exception | None,
        done: Callable[[str], None],
        again: Again | None,
    ) -> None:
        shard = queue.leases[actor].shard
        if outcome is None:
            if queue.done(actor, time.monotonic()):
                done(shard)
            return
        if isinstance(outcome, VillaError):
            if shard in queue.left:
                raise outcome
            queue.failed(actor)
            return
        what, wanted = trouble(outcome), shard in queue.left
        if not queue.failed(actor, blameless=what.blameless):
            LOG.warning("shard %s is given up: %s", shard, what.reason)
            self._given_up[shard] = what
            if len(self._given_up) > max(GIVEN_UP, GIVEN_UP_SHARE * self._done(queue)):
                raise self._unfinished(queue)
        elif wanted:
            tries = f" (try {queue.tries(shard)})" if not what.blameless else ""
            LOG.warning("shard %s goes back to the queue%s: %s", shard, tries, what.reason)
            metrics.count_retry(what.kind)
            if again is not None:
                again(shard, what.kind)

    def _done(self, queue: LeaseQueue) -> int:
        return len(queue.shards) - len(queue.left) - len(queue.given_up)

    def _unfinished(self, queue: LeaseQueue) -> VillaError:
        shard, what = next(iter(self._given_up.items()))
        others = [s for s in self._given_up if s != shard]
        so_did = f" So did {', '.join(others)}." if others else ""
        times = queue.tries(shard) + queue.moves.get(shard, 0)
        return VillaError(
            f"shard {shard} failed {times} times, last by {what.reason}; {what.remedy}.{so_did} "
            f"{self._done(queue)} of {len(queue.shards)} shards are committed and stay so; the same command does the rest"
        )

    def _fill(self, wanted: int) -> None:
        if len(self._starting) + len(self._node) >= wanted:
            return  # what follows costs more than all else that is done for a shard
        worker = remote_worker(self.gpus)
        while len(self._starting) + len(self._node) < wanted:
            actor = self._ready.pop() if self._ready else worker.remote()
            self._starting[actor.node.remote(*self._hidden)] = (actor, time.monotonic())

    def _wait(self, queue: LeaseQueue, job: Job) -> list[tuple[Any, Exception | None]]:
        """Actors whose leases ended: None for a commit, the error otherwise."""
        calls = [*self._calls, *self._starting, *self._preparing]
        ready, _ = ray.wait(calls, num_returns=1, timeout=POLL_SECONDS)
        ended: list[tuple[Any, Exception | None]] = []
        for call in ready:
            if call in self._starting:
                self._started(call, job)
                continue
            if call in self._preparing:
                self._prepared(call)
                continue
            actor = self._calls.pop(call)
            try:
                ended.append((actor, ray.get(call)))
                self._idle.append(actor)
            except RayError as error:
                self._drop(actor)
                ended.append((actor, error))
        self._slow_starts()
        return ended + self._overdue(queue) + self._lost_nodes(queue)

    def _started(self, call: Any, job: Job) -> None:
        actor, _ = self._starting.pop(call)
        try:
            self._node[actor] = ray.get(call)
            self._preparing[actor.prepare.remote(job)] = (actor, time.monotonic())
        except RayError as error:
            self._not_started(trouble(error), NOT_STARTED)

    def _prepared(self, call: Any) -> None:
        actor, _ = self._preparing.pop(call)
        try:
            ray.get(call)
            self._idle.append(actor)
            self._failed_starts = 0
        except RayError as error:
            self._drop(actor)
            what = trouble(error)
            self._not_started(what, what.remedy)

    def _not_started(self, what: Trouble, remedy: str) -> None:
        self._failed_starts += 1
        LOG.warning("a worker did not start: %s", what.reason)
        if self._failed_starts > START_FAILURES:
            raise VillaError(
                f"workers did not start {self._failed_starts} times in a row, last by: {what.reason}; {remedy}"
            )

    def _slow_starts(self) -> None:
        now = time.monotonic()
        for call, (actor, since) in list(self._starting.items()):
            if now - since > self.start_seconds:
                del self._starting[call]
                ray.kill(actor)
                if not self._node:
                    free, asked = ray.available_resources(), f"CPU{f' and {self.gpus:g} GPU' if self.gpus else ''}"
                    raise VillaError(
                        f"no worker started within {self.start_seconds:.0f} s: the cluster has no free {asked} for it "
                        f"(resources: {free.get('CPU', 0):.0f} CPU, {free.get('GPU', 0):.0f} GPU free); free some or set "
                        "ray.workers lower, or ray.start_seconds higher where nodes take longer to come up"
                    )
        for call, (actor, since) in list(self._preparing.items()):
            if now - since > max(self.timeout, self.start_seconds):
                del self._preparing[call]
                self._drop(actor)
                self._not_started(trouble(Overdue(f"it was not ready after {now - since:.0f} s")), LATE)

    def _overdue(self, queue: LeaseQueue) -> list[tuple[Any, Exception | None]]:
        now = time.monotonic()
        late = [c for c, actor in self._calls.items() if now - queue.leases[actor].since > self.timeout]
        return [self._revoke(call, Overdue(f"no result after {self.timeout:.0f} s")) for call in late]

    def _lost_nodes(self, queue: LeaseQueue) -> list[tuple[Any, Exception | None]]:
        """A look costs the driver 5 ms, more than a shard does, so it is taken only where one has been out for a while."""
        now = time.monotonic()
        if now - self._checked < NODE_CHECK_SECONDS:
            return []
        self._checked = now
        since = [queue.leases[actor].since for actor in self._calls.values()] + [s for _, s in self._preparing.values()]
        if all(now - s < NODE_CHECK_SECONDS for s in since):
            return []
        alive = {n["NodeID"] for n in ray.nodes() if n["Alive"]}
        lost = [call for call, actor in self._calls.items() if self._node.get(actor) not in alive]
        ended = [self._revoke(call, LostNode("the node of its worker is gone")) for call in lost]
        for actor in [*self._idle, *(a for a, _ in self._preparing.values())]:
            if self._node.get(actor) not in alive:
                self._drop(actor)
        return ended

    def _revoke(self, call: Any, why: Exception) -> tuple[Any, Exception | None]:
        actor = self._calls.pop(call)
        self._drop(actor)
        return actor, why

    def _drop(self, actor: Any) -> None:
        self._node.pop(actor, None)
        if actor in self._idle:
            self._idle.remove(actor)
        self._calls = {call: a for call, a in self._calls.items() if a != actor}
        self._preparing = {call: p for call, p in self._preparing.items() if p[0] != actor}
        ray.kill(actor, no_restart=True)

    def close(self) -> None:
        """Stop all actors, so that the CPUs are free for training."""
        for actor in [*self._node, *(a for a, _ in self._starting.values()), *self._ready]:
            ray.kill(actor, no_restart=True)
        self._ready = []
        self._starting, self._preparing, self._idle, self._node, self._calls = {}, {}, [], {}, {}
