"""`villa shards index TARS`."""

from __future__ import annotations

import sys
from dataclasses import asdict
from itertools import islice
from typing import Annotated

import typer

from cluster.commands.common import SHOWN, Address, Scratch, Workers, progress_of
from cluster.result import emit
from cluster.work import units_on
from shards.findings import lines
from shards.indexing import index_tars


def command(
    tars: Annotated[str, typer.Argument(help="foreign tars: a folder, a glob or a .tar; local or s3://")],
    out: Annotated[str | None, typer.Option("--out", help="folder for the indices; default: beside the tars")] = None,
    force: Annotated[bool, typer.Option("--force", help="replace indices that are there")] = False,
    workers: Workers = 1,
    address: Address = None,
    scratch: Scratch = None,
) -> None:
    """Write an .idx for each tar: where every sample and member lies. Resumes; exit code 1 when a tar is refused."""
    with units_on(workers, address) as run, progress_of("index", "tars") as progress:
        done = index_tars(tars, run, out=out, force=force, scratch=scratch, progress=progress)
    for line in lines(done.findings):
        print(line, file=sys.stderr)
    result = {k: v for k, v in vars(done).items() if k != "findings"}
    found = {"kinds": done.findings.kinds(), "findings": [asdict(f) for f in islice(done.findings, SHOWN)]}
    emit({"command": "index", "path": tars, **result, **found})
    if done.findings.total("error"):
        raise typer.Exit(1)
