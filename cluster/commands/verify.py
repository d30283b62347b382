"""`villa shards verify PATH`."""

from __future__ import annotations

import sys
from dataclasses import asdict
from itertools import islice
from typing import Annotated

import typer

from cluster.result import emit
from shards.findings import lines
from shards.verify import Verified
from shards.verify import verify as run_verify
from villa_dist.observe import Progress

SHOWN = 10  # findings in the result line; all that were kept go to stderr

Path = Annotated[
    str, typer.Argument(help="a data set, one stage of it, or foreign tars: a folder, a glob or a .tar; local or s3://")
]
Workers = Annotated[int, typer.Option("--workers", help="1: in this process; more: that many Ray actors")]
Address = Annotated[str | None, typer.Option("--address", help="a running Ray cluster")]
Scratch = Annotated[
    str | None,
    typer.Option("--scratch", help="where workers leave their findings; needed where they run on other machines"),
]


def command(
    path: Path,
    deep: Annotated[bool, typer.Option("--deep", help="decode every image and text, too")] = False,
    workers: Workers = 1,
    address: Address = None,
    scratch: Scratch = None,
) -> None:
    """Check shards: files against markers, tars, indices, sidecars, counts and digests. Exit code 1 with findings."""
    from cluster.shards_cli import units_on

    with units_on(workers, address) as run:
        verified = _with_progress(path, run, deep, scratch)
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


def _with_progress(path: str, run: object, deep: bool, scratch: str | None) -> Verified:
    bars: list[Progress] = []

    def progress(total: int) -> None:
        if bars:
            bars[0].advance()
        else:
            bars.append(Progress("verify", total, "shards").__enter__())

    try:
        return run_verify(path, run, deep=deep, scratch=scratch, progress=progress)  # type: ignore[arg-type]
    finally:
        for bar in bars:
            bar.__exit__(None, None, None)
