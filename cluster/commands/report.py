"""`villa report CONFIG`, `villa report RUN`, `villa report RUN_A RUN_B …`."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from cluster.complete import as_config
from cluster.result import emit
from shards.errors import VillaError
from shards.store import Store
from villa_dist.config import Config
from villa_dist.config_file import load

COMPARISON = "comparison.html"


def command(
    runs: Annotated[list[str], typer.Argument(help="a YAML config or the folder of a run; several are compared")],
    set_: Annotated[list[str] | None, typer.Option("--set", help="KEY=VALUE of the config of a single run")] = None,
    out: Annotated[
        str | None, typer.Option("--out", "-o", help=f"file of a comparison [default: {COMPARISON}]")
    ] = None,
) -> None:
    """Write report.html of a run from what is committed, or compare runs in one page."""
    from villa_dist.report import build, compare

    if len(runs) == 1:
        if out is not None:
            raise VillaError("--out is of a comparison; the report of one run is <run>/report.html")
        config = of_run(runs[0], set_)
        emit({"command": "report", "run": config.run, "report": build.build(config)})
        return
    if set_:
        raise VillaError("--set is of the config of a single run; runs that are compared are taken as they are")
    configs = [of_run(place) for place in runs]
    emit({"command": "report", "runs": [c.run for c in configs], "report": compare.build(configs, out or COMPARISON)})


def of_run(place: str, set_: list[str] | None = None) -> Config:
    """What the run was made with, whatever is asked for now, in the folder it is in now.

    place: the folder of a run, or a config that names one. Raises: VillaError when there is no run.
    """
    run = place if Store(place).exists("config.yaml") else load(place, set_).run
    saved = Store(run)
    if not saved.exists("config.yaml"):
        raise VillaError(f"{run} holds no run: there is no config.yaml in it; correct `run`, or make the run first")
    if saved.local:
        return load(saved.path("config.yaml"), [f"run={json.dumps(saved.path())}"])
    return as_config(saved.read("config.yaml").decode()).model_copy(update={"run": run})
