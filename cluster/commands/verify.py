"""`villa shards verify PATH`."""

from __future__ import annotations

import sys
from dataclasses import asdict
from itertools import islice
from typing import Annotated

import typer

from cluster.commands.common import SHOWN, Address, Path, Scratch, Workers, progress_of
from cluster.result import emit
from cluster.work import units_on
from shards.findings import lines
from shards.verify import Verified
from shards.verify import verify as run_verify


def command(
    path: Path,
    deep: Annotated[bool, typer.Option("--deep", help="decode every image and text, too")] = False,
    workers: Workers = 1,
    address: Address = None,
    scratch: Scratch = None,
) -> None:
    """Check shards: files against markers, tars, indices, sidecars, counts and digests. Exit code 1 with findings."""
    with units_on(workers, address) as run, progress_of("verify", "shards") as progress:
        verified = run_verify(path, run, deep=deep, scratch=scratch, progress=progress)
    for line in lines(verified.findings):
        print(line, file=sys.stderr)
    emit({"command": "verify", "path": path, "deep": deep, **summary(verified)})
    if not verified.findings.clean:
        raise typer.Exit(1)


def summary(verified: Verified) -> dict[str, object]:
    found = verified.findings
    return {
        "kind": verified.place.kind,
        "stages": list(verified.place.stages),
        "shards": verified.shards,
        "samples": verified.samples,
        "bytes": verified.bytes,
        "clean": found.clean,
        **{f"{severity}s": found.total(severity) for severity in ("error", "warning", "note")},
        "kinds": found.kinds(),
        "findings": [asdict(f) for f in islice(found, SHOWN)],
    }
