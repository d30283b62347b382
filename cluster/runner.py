"""The runner that uses Ray: data stages on the actor pool, training through Ray Train."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import ray

from cluster.pool import ActorPool
from cluster.session import DRIVER_SLACK
from cluster.train import train_on_ray
from shards.work import Job
from villa_dist.config import RayConfig
from villa_dist.train.jobs import TrainRequest


class RayRunner:
    """Needs a Ray that is initialised (`cluster.session`)."""

    def __init__(self, config: RayConfig) -> None:
        cpus = int(ray.cluster_resources().get("CPU", 1))
        workers = config.workers or max(cpus - DRIVER_SLACK, 1)
        self._pool = ActorPool(workers, config.shard_timeout_seconds, config.attempts)

    def shards(self, job: Job, shards: Sequence[str], done: Callable[[str], None]) -> None:
        self._pool.run(job, shards, done)

    def train(self, request: TrainRequest) -> None:
        self._pool.close()
        train_on_ray(request)

    def close(self) -> None:
        self._pool.close()
