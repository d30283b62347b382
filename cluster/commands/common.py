"""Options and progress that the shard tools share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated

import typer

from villa_dist.observe import Progress

SHOWN = 10  # findings in a result line; all that were kept go to stderr

Path = Annotated[
    str,
    typer.Argument(help="a data set, one stage of it, or foreign tars: a folder, a glob or a .tar; local or s3://"),
]
Workers = Annotated[int, typer.Option("--workers", help="1: in this process; more: that many Ray actors")]
Address = Annotated[str | None, typer.Option("--address", help="a running Ray cluster")]
Scratch = Annotated[
    str | None,
    typer.Option("--scratch", help="where workers leave their results; needed where they run on other machines"),
]


@contextmanager
def progress_of(name: str, unit: str) -> Iterator[Callable[[int], None]]:
    """A function to call with the number of units, then with 0 for each that is done."""
    bars: list[Progress] = []

    def progress(total: int) -> None:
        if bars:
            bars[0].advance()
        else:
            bars.append(Progress(name, total, unit).__enter__())

    try:
        yield progress
    finally:
        for bar in bars:
            bar.__exit__(None, None, None)
