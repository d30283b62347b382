"""`villa evaluate CONFIG`, and its figures held against a baseline."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

import typer

from cluster.result import emit
from villa_dist.config import Config
from villa_dist.config_file import load
from villa_dist.observe import LOG

Stage = Callable[[Config, tuple[str, ...], bool, str], dict[str, Any]]


def evaluate(run_stage: Stage, config: Config, force: bool, compare: str | None, write_baseline: str | None) -> None:
    """Run the stage, then compare, then store: a baseline is not replaced by figures below it.

    Raises: VillaError; BelowBaselineError, after the result line.
    """
    from villa_dist.report import baseline

    then = baseline.read(compare) if compare is not None else None
    store, name = baseline.writable(write_baseline, "--write-baseline") if write_baseline is not None else (None, "")
    result = run_stage(config, ("evaluate",), force, "evaluate")
    now = baseline.of_run(config.run) if then or store else None
    if then and now:
        found = baseline.differences(then, now)
        for difference in found:
            LOG.info("against %s: %s", then.place, difference)
        told = {d.name: {"now": d.second.value, "then": d.first.value, "interval": [d.low, d.high]} for d in found}
        result["compared"] = {"baseline": then.place, "figures": told}
        try:
            baseline.check(then, now)
        except baseline.BelowBaselineError:
            emit(result)
            raise
    if store and now:
        store.put(name, baseline.to_bytes(now))
        result["baseline"] = store.path(name)
    emit(result)


def command(run_stage: Stage) -> Callable[..., None]:
    """The command, given what runs a stage."""

    def evaluate_command(
        config: Annotated[str, typer.Argument(help="a YAML config, for example configs/quickstart.yaml")],
        set_: Annotated[list[str] | None, typer.Option("--set", help="KEY=VALUE; repeatable")] = None,
        force: Annotated[bool, typer.Option("--force", help="redo stages whose config or inputs have changed")] = False,
        compare: Annotated[
            str | None,
            typer.Option(
                "--compare", metavar="BASELINE", help="a baseline's file or a run; exit code 5 where a figure is worse"
            ),
        ] = None,
        write_baseline: Annotated[
            str | None, typer.Option("--write-baseline", metavar="FILE", help="store the figures, for --compare")
        ] = None,
    ) -> None:
        """R-Precision, quality of the mapping and zero-shot detection on the held-out splits."""
        evaluate(run_stage, load(config, set_), force, compare, write_baseline)

    return evaluate_command
