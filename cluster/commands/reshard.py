"""`villa shards reshard`."""

from __future__ import annotations

from typing import Annotated, Any, cast

import typer

from cluster.result import emit
from cluster.work import units_on
from shards.reshard.options import ReshardOptions
from shards.reshard.run import reshard
from villa_dist.observe import Progress

SIZES = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "ki": 1 << 10, "mi": 1 << 20, "gi": 1 << 30}


def size(text: str) -> int:
    """`512MiB`, `1GB`, `1000000` in bytes."""
    number = text.strip().lower().removesuffix("b")
    unit = number.lstrip("0123456789.")
    try:
        return int(float(number.removesuffix(unit)) * SIZES[unit.strip()])
    except (ValueError, KeyError):
        raise typer.BadParameter(f"{text!r} is not a size; for example 512MiB, 1GB or 1000000") from None


def command(
    src: Annotated[
        str, typer.Argument(metavar="SRC", help="a data set, a folder of tars, a glob or a {000..123} list")
    ],
    dst: Annotated[str, typer.Argument(metavar="DST", help="the new data set; local or s3://")],
    max_bytes: Annotated[str, typer.Option(help="of one shard, for example 512MiB or 1GB")] = "512MiB",
    max_count: Annotated[int, typer.Option(help="samples of one shard")] = 10_000,
    shuffle: Annotated[int | None, typer.Option(metavar="SEED", help="shuffle all samples by this seed")] = None,
    where: Annotated[str, typer.Option(help="keep samples by their sidecars, for example 'pairs >= 4'")] = "",
    include: Annotated[str, typer.Option(metavar="FILE", help="keep only these keys, one a line")] = "",
    exclude: Annotated[str, typer.Option(metavar="FILE", help="leave these keys out, one a line")] = "",
    dedupe: Annotated[
        str, typer.Option(help="key, content (all members) or image: the first of equal samples stays")
    ] = "",
    hash_: Annotated[bool, typer.Option("--hash/--no-hash", help="record and prove contents, or keys alone")] = True,
    trust: Annotated[
        bool, typer.Option("--trust-digests", help="take contents' digests from the sources' indexes, unread")
    ] = False,
    sidecars: Annotated[bool, typer.Option(help="move the rows of sidecars along")] = True,
    prefix_keys: Annotated[bool, typer.Option("--prefix-keys", help="put each tar's name before its keys")] = False,
    workers: Annotated[int | None, typer.Option(help="1: this process; more: Ray; default: one a CPU")] = None,
    max_refused_fraction: Annotated[float, typer.Option(help="damaged samples that are tolerated")] = 0.1,
    force: Annotated[bool, typer.Option("--force", help="redo DST when it was made otherwise")] = False,
) -> None:
    """Write the samples of any shards into new shards of a wanted size: filtered, deduplicated, shuffled."""
    if dedupe not in ("", "key", "content", "image"):
        raise typer.BadParameter(f"--dedupe {dedupe!r}: choose key, content or image")
    options = ReshardOptions(
        dst,
        size(max_bytes),
        max_count,
        shuffle,
        where,
        include,
        exclude,
        cast(Any, dedupe),
        hash_,
        trust,
        sidecars,
        prefix_keys,
    )
    with units_on(workers) as run:
        result = reshard(src, options, run, Progress, force=force, max_refused_fraction=max_refused_fraction)
    emit({"command": "shards reshard", **result})
