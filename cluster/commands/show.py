"""`villa shards show PATH KEY`."""

from __future__ import annotations

import io
import sys
from typing import Annotated

import typer

from cluster.commands.common import Path
from cluster.result import emit
from shards.store import Store


def command(
    path: Path,
    key: Annotated[str, typer.Argument(help="a sample's key, as in the tar")],
    stage: Annotated[
        str | None, typer.Option("--stage", help="pairs, truth or regions; default: the first of them that is there")
    ] = None,
    out: Annotated[str | None, typer.Option("--out", help="a .png to write; default: <key>.png here")] = None,
    terminal: Annotated[bool, typer.Option("--terminal", help="draw on the terminal (stderr) in colours")] = False,
    regions: Annotated[int, typer.Option("--regions", help="regions to draw at most, surest first", min=0)] = 12,
) -> None:
    """Draw a sample: its image with boxes, their attributes, its text."""
    from villa_dist import show
    from villa_dist.sample_view import view

    found = view(path, key, stage)
    written = None
    if terminal:
        print(show.terminal(found, most=regions), file=sys.stderr)
    if out or not terminal:
        written = out or f"{key.replace('/', '_')}.png"
        sink = io.BytesIO()
        show.draw(found, regions).save(sink, "PNG")
        folder, slash, name = written.rpartition("/")
        Store(folder or ("/" if slash else ".")).put(name, sink.getvalue())
    marks = [{"box": list(r.box), "score": r.score, "attributes": [list(m) for m in r.marks]} for r in found.regions]
    emit(
        {
            "command": "show",
            "path": path,
            "key": key,
            "where": found.where,
            "stage": found.stage,
            "width": found.pixels.shape[1],
            "height": found.pixels.shape[0],
            "text": found.text,
            "regions": marks[:regions],
            "regions_in_all": len(marks),
            "out": written,
        }
    )
