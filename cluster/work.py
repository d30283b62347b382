"""Where a command's work is done: in this process, or on Ray."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from shards.work import Job, RunUnits, run_here
from villa_dist.config import Config, RayConfig


@contextmanager
def pipeline(config: Config, force: bool) -> Iterator[Any]:
    """A pipeline on the runner that the config names, with the run's folder held."""
    from cluster.lease import held
    from shards.lock import lock
    from villa_dist.pipeline import Pipeline

    instead = "set `run` to another folder"
    locked = lock(config.run, instead)  # of this machine: it goes with the process
    try:
        with held(config.run, instead):
            if config.runner == "local":
                from villa_dist.runner import LocalRunner

                yield Pipeline(config, LocalRunner(), force=force)
                return
            from cluster.session import RaySession

            with RaySession(config.ray):
                from cluster.runner import RayRunner

                runner = RayRunner(config.ray)
                yield Pipeline(config, runner, force=force)
                runner.close()
    finally:
        del locked


@contextmanager
def units_on(workers: int | None, address: str | None = None) -> Iterator[RunUnits]:
    """Runs jobs in this process (workers: 1), or on that many Ray actors; None: one a CPU. Ray starts with the first unit
    that is to be done, so where all is done, or what was given is refused, nothing waits for it."""
    if workers == 1 and not address:
        yield run_here
        return
    with ExitStack() as stack:
        runners: list[RunUnits] = []

        def run(job: Job, units: Sequence[str], done: Callable[[str], None]) -> None:
            if units and not runners:
                runners.append(stack.enter_context(_on_ray(RayConfig(workers=workers, address=address))))
            if units:
                runners[0](job, units, done)

        yield run


@contextmanager
def _on_ray(config: RayConfig) -> Iterator[RunUnits]:
    from cluster.session import RaySession

    with RaySession(config):
        from cluster.runner import RayRunner

        runner = RayRunner(config)
        yield runner.shards
        runner.close()
