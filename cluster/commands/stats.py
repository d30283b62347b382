"""`villa shards stats PATH`."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer

from cluster.commands.common import Address, Path, Scratch, Workers, progress_of
from cluster.result import emit
from cluster.work import units_on
from shards.stats import SAMPLED, stats, summary

COLUMNS = ("min", "p5", "p50", "p95", "max", "mean")


def command(
    path: Path,
    sample: Annotated[
        int, typer.Option("--sample", help="shards whose texts and image headers are read, evenly spaced", min=0)
    ] = SAMPLED,
    workers: Workers = 1,
    address: Address = None,
    scratch: Scratch = None,
) -> None:
    """What shards hold: counts, sizes, texts, refusals, regions and pairs."""
    with units_on(workers, address) as run, progress_of("stats", "shards") as progress:
        found = summary(stats(path, run, sample=sample, scratch=scratch, progress=progress))
    _print(path, found)
    emit({"command": "stats", "path": path, **found})


def tables(found: dict[str, Any]) -> list[tuple[tuple[str, ...], list[tuple[str, ...]]]]:
    """What a person reads: (header, rows) of each table."""
    inside = f"of {found['sampled_shards']} shards"
    spreads = [
        ("bytes a sample", found["sample_bytes"]),
        (f"words a text, {inside}", found["text_words"]),
        (f"image width, {inside}", found["image_width"]),
        (f"image height, {inside}", found["image_height"]),
    ]
    for name, stage in found["stages"].items():
        spreads += [(f"{name}: {k.replace('_', ' ')}", stage[k]) for k in stage if k.endswith("_per_image")]
        spreads += [(f"{name}: uses of an attribute", stage["per_attribute"])] if "per_attribute" in stage else []
    rows = [(name, *(_number(spread[c]) for c in COLUMNS)) for name, spread in spreads if spread]
    made: list[tuple[tuple[str, ...], list[tuple[str, ...]]]] = [
        (
            ("stage", "shards", "samples", "bytes", "regions", "pairs", "bytes a pair"),
            [
                (
                    name,
                    *(_number(s.get(k)) for k in ("shards", "samples", "bytes", "regions", "pairs", "bytes_per_pair")),
                )
                for name, s in found["stages"].items()
            ],
        ),
        (("", *COLUMNS), rows),
    ]
    for title, counts in (("suffix", found["suffixes"]), ("refused", found["refused"])):
        if counts:
            made.append(((title, "count"), _counted(counts)))
    for name, stage in found["stages"].items():
        if stage.get("most_frequent"):
            title = f"{name}: {stage['attributes']} attributes"
            made.append(((title, "count"), _counted(stage["most_frequent"])))
    return made


def _counted(counts: dict[str, int]) -> list[tuple[str, ...]]:
    return [(name, _number(n)) for name, n in counts.items()]


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:,}" if isinstance(value, int) else f"{value:,.2f}"


def _print(path: str, found: dict[str, Any]) -> None:
    print(
        f"{path}: {found['shards']:,} shards, {found['samples']:,} samples, {found['bytes']:,} bytes", file=sys.stderr
    )
    for header, rows in tables(found):
        _print_table(header, rows)


def _print_table(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    """With lines and colours on a terminal, in plain columns elsewhere."""
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.markup import escape
        from rich.table import Table

        table = Table(*(escape(h) for h in header))
        for column in table.columns[1:]:
            column.justify = "right"
        for row in rows:
            table.add_row(*(escape(cell) for cell in row))
        Console(stderr=True).print(table)
        return
    widths = [max(len(cell) for cell in column) for column in zip(header, *rows, strict=True)]
    print(file=sys.stderr)
    for row in (header, *rows):
        numbers = (cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))
        print("  ".join([row[0].ljust(widths[0]), *numbers]).rstrip(), file=sys.stderr)
