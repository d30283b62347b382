"""`villa shards pack`: image-text sources become base shards."""

from __future__ import annotations

import re
import time
from typing import Annotated

import typer

from cluster.result import emit
from cluster.work import units_on
from shards.decode import MAX_PIXELS
from shards.errors import VillaError
from shards.pack import Packing, PackOptions, check_apart
from shards.sources.find import KINDS, Asked, open_source
from shards.sources.table import Columns
from villa_dist.observe import LOG, Progress

_UNITS = {"": 1, "k": 1000, "m": 1000**2, "g": 1000**3, "ki": 1 << 10, "mi": 1 << 20, "gi": 1 << 30}


def command(
    src: Annotated[
        str,
        typer.Argument(
            metavar="SRC", help="a folder, a COCO .json, a .parquet/.csv/.tsv, tars, a pattern or brace list"
        ),
    ],
    dst: Annotated[str, typer.Argument(metavar="DST", help="the data set's folder, local or s3://")],
    kind: Annotated[str, typer.Option(help=f"{', '.join(KINDS)}; found out by looking if left out")] = "",
    images: Annotated[str, typer.Option(help="folder of the images that a table or COCO file names")] = "",
    coco: Annotated[list[str] | None, typer.Option(help="a COCO file: captions or instances; repeatable")] = None,
    image_column: Annotated[str, typer.Option(help="column of image paths, or of bytes in Parquet")] = "",
    text_column: Annotated[list[str] | None, typer.Option(help="column of text; several are joined by ' . '")] = None,
    text_template: Annotated[str, typer.Option(help="text from columns, such as '{title}. {colour}'")] = "",
    key_column: Annotated[str, typer.Option(help="column of unique names; otherwise the row's number is its key")] = "",
    keep_columns: Annotated[str, typer.Option(help="columns that go into the .json member, with commas between")] = "",
    max_count: Annotated[
        int | None, typer.Option(help="samples a shard; 10,000 if left out (tars: by bytes only)")
    ] = None,
    max_bytes: Annotated[str, typer.Option(help="source bytes a shard, such as 512MiB or 1GB")] = "512MiB",
    check: Annotated[str, typer.Option(help="of every image: full (decode it), header or none")] = "full",
    convert: Annotated[bool, typer.Option("--convert", help="store BMP, GIF, PPM and TIFF as PNG")] = False,
    max_pixels: Annotated[int, typer.Option(help="larger images are refused")] = MAX_PIXELS,
    max_refused_fraction: Annotated[float, typer.Option(help="more refused samples than this fail the command")] = 0.1,
    workers: Annotated[int | None, typer.Option(help="1: this process; more: Ray; one a CPU if left out")] = None,
    address: Annotated[str | None, typer.Option(help="address of a Ray cluster")] = None,
    force: Annotated[
        bool, typer.Option("--force", help="clear what DST holds of another source; redo damaged shards")
    ] = False,
) -> None:
    """Pack a folder of images and texts, COCO JSON, a table or foreign tars into base shards; resumes."""
    if kind and kind not in KINDS:
        raise VillaError(f"--kind {kind!r}: one of {', '.join(KINDS)} is needed")
    options = PackOptions(max_count, size_of(max_bytes), check, convert, max_pixels, max_refused_fraction)
    kept = tuple(c.strip() for c in keep_columns.split(",") if c.strip())
    columns = Columns(image_column, tuple(text_column or ()), text_template, key_column, kept)
    source = open_source(Asked(src, kind, images, tuple(coco or ()), columns, max_count, options.max_bytes))
    check_apart(src, dst, source)
    packing = Packing(source, dst, options)
    started = time.monotonic()
    packing.begin(force=force)
    for note in packing.notes:
        LOG.warning("%s", note)
    _work(packing, workers, address)
    result = packing.finish()
    for warning in packing.summary.warnings:
        LOG.warning("%s", warning)
    if packing.summary.refusals:
        LOG.warning("pack: %d samples refused (%s)", packing.summary.refusals, packing.summary.counted())
    emit({"command": "shards pack", **result, "seconds": round(time.monotonic() - started, 1)})


def _work(packing: Packing, workers: int | None, address: str | None) -> None:

    if not packing.missing:
        return
    total, samples, read = packing.plan.shards, 0, 0
    started = time.monotonic()
    with Progress("pack", total, "shards", total - len(packing.missing)) as progress:

        def done(unit: str) -> None:
            nonlocal samples, read
            marker = packing.account(unit)
            samples, read = samples + marker.came_in, read + int(marker.counts.get("source_bytes", 0))
            seconds = max(time.monotonic() - started, 1e-9)
            progress.advance(note=f"{samples / seconds:,.0f} samples/s, {read / seconds / 1e6:,.1f} MB/s")

        with units_on(workers or (1 if len(packing.missing) == 1 and not address else None), address) as run:
            run(packing.job, packing.missing, done)


def size_of(text: str) -> int:
    """Bytes of `512MiB`, `1.5GB` or `1000000`. Raises: VillaError for anything else."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmg]i?)?b?\s*", text.lower())
    if not found:
        raise VillaError(f"--max-bytes {text!r}: a size such as 512MiB, 1GB or 1000000 is needed")
    return int(float(found[1]) * _UNITS[found[2] or ""])
