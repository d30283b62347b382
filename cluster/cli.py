"""`villa`: one JSON line of the result on stdout, everything else on stderr, exit code 0 only when all succeeded."""

from __future__ import annotations

import json
import os
import signal
import sys
import traceback
from typing import Annotated, Any

import typer

from cluster import shards_cli
from cluster.commands import evaluate, export, mine, plan, query, report, submit
from cluster.result import emit, keep_stdout
from cluster.work import pipeline
from shards.errors import VillaError
from shards.retry import scrub
from villa_dist import __version__
from villa_dist.config import Config
from villa_dist.config_file import load
from villa_dist.observe import set_up_logging

app = typer.Typer(
    name="villa",
    help="Region-attribute pairs from image-text shards, and a contrastive VLM trained on them.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(shards_cli.app)
ConfigArgument = Annotated[str, typer.Argument(help="a YAML config, for example configs/quickstart.yaml")]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", help="KEY=VALUE, for example train.steps=800; repeatable")
]
ForceOption = Annotated[bool, typer.Option("--force", help="redo stages whose config or inputs have changed")]

INTERRUPTED = 130


class Interrupted(BaseException):
    """Ctrl-C or SIGTERM. Not KeyboardInterrupt, which typer turns into an exit code of its own."""


def main() -> None:
    """The console script. Libraries that print to stdout must not spoil the result line: they get stderr."""
    keep_stdout(redirect="--help" not in sys.argv)
    set_up_logging()
    signal.signal(signal.SIGINT, _interrupt)  # also where a script started us with SIGINT ignored
    signal.signal(signal.SIGTERM, _interrupt)
    code = _run_app()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # threads of a stopped run must neither hold the exit up nor change its code


def _run_app() -> int:
    try:
        return int(app(standalone_mode=False) or 0)
    except Interrupted:
        print("interrupted: what is committed stays; the same command resumes", file=sys.stderr)
        return INTERRUPTED
    except VillaError as error:
        print(f"error: {scrub(str(error))}", file=sys.stderr)
        return error.exit_code
    except Exception as error:  # noqa: BLE001
        show = getattr(error, "show", None)  # a usage error of click's
        if show is None:
            print(scrub(traceback.format_exc()), end="", file=sys.stderr)
            return 1
        show()
        return int(getattr(error, "exit_code", 2))


def _interrupt(signum: int, frame: object) -> None:
    raise Interrupted


def _run(config: Config, stages: tuple[str, ...], force: bool, command: str) -> dict[str, Any]:
    from villa_dist.pipeline import check_stages

    check_stages(config, stages)
    with pipeline(config, force) as line:
        return {"command": command, **line.run(stages)}


@app.command()
def run(config: ConfigArgument, set_: SetOption = None, force: ForceOption = False) -> None:
    """Run all stages of a config, resuming what is committed."""
    from villa_dist.claims import STAGES

    emit(_run(load(config, set_), STAGES, force, "run"))


@app.command()
def quickstart(
    config: Annotated[str | None, typer.Argument(help="another config than the built-in one")] = None,
    set_: SetOption = None,
    force: ForceOption = False,
) -> None:
    """The whole pipeline on DocMNIST made from real handwritten digits; minutes on two cores; ends with a report."""
    from villa_dist.claims import STAGES
    from villa_dist.summary import table

    result = _run(load(config, set_), STAGES, force, "quickstart")
    print(table(result["metrics"], result.get("report", "")), file=sys.stderr)
    emit(result)


def _stage_command(name: str, text: str) -> None:
    def command(config: ConfigArgument, set_: SetOption = None, force: ForceOption = False) -> None:
        emit(_run(load(config, set_), (name,), force, name))

    command.__doc__ = text
    app.command(name)(command)


for _name, _text in (
    ("ingest", "Make base shards: generate DocMNIST, or check foreign WebDataset tars sample by sample."),
    ("vocabulary", "Count which attributes the training texts mention."),
    ("pretrain", "Train the one-to-one VLM on whole images and whole texts."),
    ("regions", "Propose regions and find the attributes each text mentions."),
    ("fit-mapping", "Fit the mapping model from image-level mentions."),
    ("pairs", "Map regions to attributes: write the region-attribute pairs."),
    ("train", "Train the region VLM on the pairs; resumes from its DeepSpeed checkpoints."),
):
    _stage_command(_name, _text)
app.command("evaluate")(evaluate.command(_run))
app.command("report")(report.command)


@app.command()
def status(run_folder: Annotated[str, typer.Argument(help="the folder of a run", metavar="RUN")]) -> None:
    """What a run has committed so far, how fast, and how long the rest will take, from its markers alone."""
    from villa_dist.status import lines
    from villa_dist.status import status as read_status

    found = read_status(run_folder)
    print("\n".join(lines(found)), file=sys.stderr)
    emit({"command": "status", **found})


app.command("plan")(plan.command)
app.command("mine")(mine.command)
app.command("submit")(submit.command)
app.command("export")(export.command)
app.command("query")(query.command)


@app.command()
def docmnist(
    out: Annotated[str, typer.Argument(help="folder for the splits' shards")],
    config: Annotated[str | None, typer.Option("--config", help="a YAML config")] = None,
    set_: SetOption = None,
) -> None:
    """Make DocMNIST shards with their true pairs: OUT/train, OUT/validation, OUT/test."""
    overrides = [
        *(set_ or []),
        f"run={json.dumps(out)}",
        "data.source=docmnist",
        'evaluate.splits=["validation","test"]',
    ]
    emit(_run(load(config, [*overrides, "runner=local"]), ("ingest",), False, "docmnist"))


@app.command()
def study(config: ConfigArgument, set_: SetOption = None) -> None:
    """The complexity study: both claims of the paper as a table and a plot with spread over seeds."""
    from cluster.cells import run_cells
    from villa_dist.config_file import load_study
    from villa_dist.study import cells, summarise

    loaded = load_study(config, set_)
    results = run_cells(cells(loaded), loaded.out, loaded.parallel)
    emit({"command": "study", **summarise(loaded, results)})


@app.command()
def doctor(
    storage: Annotated[
        str | None, typer.Option("--storage", metavar="RUN", help="can a run be kept there? local or s3://")
    ] = None,
) -> None:
    """What this machine can run, and what is missing."""
    from cluster.doctor import examine

    found = examine(storage)
    for line in found["lines"]:
        print(line, file=sys.stderr)
    emit({"command": "doctor", "ok": found["ok"], "found": found["found"]})
    if not found["ok"]:
        raise typer.Exit(1)


@app.command()
def keys() -> None:
    """Every key of a config, with its default."""
    from villa_dist.config_file import keys as all_keys

    found = json.loads(json.dumps(all_keys(), default=lambda value: value.model_dump(mode="json")))
    print("\n".join(f"{name}: {json.dumps(value)}" for name, value in found.items()), file=sys.stderr)
    emit({"command": "keys", "keys": found})


@app.command()
def version() -> None:
    """Print the version."""
    emit({"command": "version", "villa": __version__})
