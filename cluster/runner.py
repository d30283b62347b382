"""The runner that uses Ray: data stages on the actor pool, training through Ray Train."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import ray

from cluster.pool import ActorPool, take_ready
from cluster.session import DRIVER_SLACK
from cluster.train import train_on_ray
from shards.work import Again, Job
from villa_dist.config import RayConfig
from villa_dist.train.jobs import TrainRequest


class RayRunner:
    """Needs a Ray that is initialised (`cluster.session`). One pool at a time: of CPUs, or of GPUs where there are some
    and the job has a use for them."""

    def __init__(self, config: RayConfig) -> None:
        self.config = config
        self._pool: ActorPool | None = None

    def shards(self, job: Job, shards: Sequence[str], done: Callable[[str], None], again: Again | None = None) -> None:
        workers, gpus = pool_size(self.config, ray.cluster_resources(), on_device=getattr(job, "on_device", False))
        if self._pool is None or (self._pool.workers, self._pool.gpus) != (workers, gpus):
            ready = take_ready() if not gpus else []
            self.close()
            limits = (self.config.shard_timeout_seconds, self.config.attempts)
            start, hide = self.config.start_seconds, self.config.gpus is False
            self._pool = ActorPool(workers, *limits, gpus, ready, start_seconds=start, hide_gpus=hide)
        self._pool.run(job, shards, done, again)

    def train(self, request: TrainRequest) -> None:
        self.close()
        train_on_ray(request)

    def close(self) -> None:
        """End all actors, those too that no pool has taken."""
        if self._pool is not None:
            self._pool.close()
        self._pool = None
        for actor in take_ready():
            ray.kill(actor, no_restart=True)


def pool_size(config: RayConfig, resources: Mapping[str, float], *, on_device: bool) -> tuple[int, float]:
    """(actors, GPUs of each). resources: what is up. Some CPUs stay free: what has all of them starves whatever else must
    run. `ray.workers` actors are asked for whether they fit in or not: an autoscaler sees what is asked for."""
    cpus, gpus = int(resources.get("CPU", 1)), resources.get("GPU", 0.0)
    most, each = max(cpus - DRIVER_SLACK, 1), config.gpus_per_worker
    if not on_device or not (config.gpus is True or (config.gpus == "auto" and gpus >= each)):
        return config.workers or most, 0.0
    return config.workers or max(min(most, int(gpus / each)), 1), each
