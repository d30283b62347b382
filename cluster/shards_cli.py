"""`villa shards`: tools for shards, on local paths or s3://, alike on one process and on Ray."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

import typer

from cluster.commands import pack
from shards.work import Job, RunUnits, run_here
from villa_dist.config import RayConfig

app = typer.Typer(name="shards", help="Pack, reshard, verify and look at shards.", no_args_is_help=True)
app.command("pack")(pack.command)


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


def register() -> None:
    """Add the commands. They import this module for `units_on`, so they are imported here."""
    from cluster.commands import index, reshard, show, stats, verify

    app.command("reshard")(reshard.command)
    app.command("verify")(verify.command)
    app.command("index")(index.command)
    app.command("stats")(stats.command)
    app.command("show")(show.command)
