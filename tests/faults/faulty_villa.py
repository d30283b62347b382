"""`villa` with one more command: `python faulty_villa.py stages regions,pairs CONFIG --set …` runs some stages in one
process, on Ray with jobs that misbehave as the folder $VILLA_TEST_FAULTS asks (`faulty.py`)."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

from faulty import FaultyJob

from cluster import cli
from cluster.result import emit
from villa_dist.config_file import load

FAULTS = "VILLA_TEST_FAULTS"


@cli.app.command()
def stages(names: str, config: cli.ConfigArgument, set_: cli.SetOption = None) -> None:
    if FAULTS in os.environ:
        from cluster.runner import RayRunner

        as_it_is = RayRunner.shards

        def shards(self: Any, job: Any, units: Sequence[str], done: Callable[[str], None], again: Any = None) -> None:
            as_it_is(self, FaultyJob(job, os.environ[FAULTS]), units, done, again)

        RayRunner.shards = shards
    emit(cli._run(load(config, set_), tuple(names.split(",")), False, "stages"))


if __name__ == "__main__":
    cli.main()
