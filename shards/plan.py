"""The plan of a packing: what goes into which shard, from the listing of the source alone.

    <dataset>/plan/config.json       what the plan is bound to, as in base
    <dataset>/plan/000017.parquet    the rows of shard 000017, in order
    <dataset>/plan/plan.json         written last: shards, samples, bytes and what was left out

A row is one sample that was listed (`file`, `cell`), or a range of the samples of a tar (`tar`), whose members are met only
when it is read. Workers read the rows of their unit and nothing else of the listing, so a plan costs no memory.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields

import pyarrow as pa

from shards import sidecar
from shards.digest import fingerprint
from shards.errors import ShardError, VillaError
from shards.store import Store

NAME = "plan.json"
MOST_SHARDS = 1_000_000  # names have six digits
UNKNOWN = -1


@dataclass(frozen=True, slots=True)
class Row:
    """What a worker is to read. Paths are relative to the source's root.

    file: the image, the tar, or the Parquet file that holds the image's bytes. text, json: files beside the image. txt,
    meta: contents known to the planner. member: column of a cell; for a file, what it is called in its table or COCO
    file. first, last: sample range of a tar (last: UNKNOWN for its end), or row group and row in it of a cell. row: row of a
    table, image id of COCO, or bytes of the whole tar. refused, detail: why the sample is refused unread.
    """

    kind: str  # file, cell or tar
    key: str
    file: str
    text: str = ""
    json: str = ""
    txt: bytes | None = None
    meta: bytes | None = None
    source: str = ""  # the table or COCO file that lists the sample; empty where `file` is all there is
    member: str = ""
    row: int | None = None
    first: int = 0
    last: int = UNKNOWN
    size: int = 0  # bytes, as far as the listing says
    samples: int = 1  # UNKNOWN for a tar that was not walked
    refused: str = ""
    detail: str = ""


_PATHS = ("file", "text", "json", "source", "member")  # may hold bytes that are not UTF-8
_TYPES = {"int": pa.int64(), "int | None": pa.int64(), "bytes | None": pa.binary(), "str": pa.string()}
_OPTIONAL = tuple(f.name for f in fields(Row) if str(f.type).endswith("| None"))
SCHEMA = pa.schema([(f.name, pa.binary() if f.name in _PATHS else _TYPES[str(f.type)]) for f in fields(Row)])


@dataclass(frozen=True)
class Plan:
    """A complete plan. samples: UNKNOWN where there are tars, which may be damaged. warnings: what the listing left out."""

    shards: int
    samples: int
    bytes: int
    warnings: tuple[str, ...] = ()

    @property
    def units(self) -> list[str]:
        return [f"{i:06d}" for i in range(self.shards)]


def cut(rows: Iterable[Row], max_count: int, max_bytes: int) -> Iterator[list[Row]]:
    """Runs of rows, a shard each: at most `max_count` samples and, unless one row alone has more, `max_bytes`."""
    run: list[Row] = []
    count = size = 0
    for row in rows:
        more = max(row.samples, 0)
        if run and (count + more > max_count or size + row.size > max_bytes):
            yield run
            run, count, size = [], 0, 0
        run.append(row)
        count, size = count + more, size + row.size
    if run:
        yield run


def write(store: Store, shards: Iterable[Sequence[Row]], warnings: Sequence[str] = ()) -> Plan:
    """Write the plan's files, `plan.json` last. `warnings` is read after the rows, which may add to it.

    Any number of planners of one claim may do so at once: they write the same bytes, each file atomically.
    """
    count = samples = size = 0
    known = True
    for rows in shards:
        if count == MOST_SHARDS:
            raise VillaError(f"the source makes over {MOST_SHARDS:,} shards; raise --max-count and --max-bytes")
        store.put(f"{count:06d}.parquet", sidecar.to_bytes(_table(rows)))
        count, size = count + 1, size + sum(r.size for r in rows)
        samples += sum(max(r.samples, 0) for r in rows)
        known = known and all(r.kind != "tar" for r in rows)
    plan = Plan(count, samples if known else UNKNOWN, size, tuple(warnings))
    store.put(NAME, json.dumps(asdict(plan), indent=1).encode())
    return plan


def read(store: Store) -> Plan | None:
    """The plan that was written whole; None where there is none, or it is damaged: then it is made anew."""
    if not store.exists(NAME):
        return None
    try:
        values = json.loads(store.read(NAME))
        return Plan(**{**values, "warnings": tuple(values["warnings"])})
    except (ValueError, TypeError, KeyError):
        return None


def remove(store: Store) -> None:
    """Take back a plan and its claim."""
    for name in [NAME, *store.list("", ".parquet"), "config.json"]:
        store.remove(name)


def rows_of(store: Store, shard: str) -> list[Row]:
    """Raises: ShardError when the shard's plan is missing or damaged."""
    name = f"{shard}.parquet"
    if not store.exists(name):
        raise ShardError(
            f"{store.path(name)} is missing; remove {store.path(NAME)} and run again: the plan is made anew"
        )
    columns = sidecar.from_bytes(store.read(name), store.path(name), SCHEMA, _OPTIONAL).to_pydict()
    for path in _PATHS:
        columns[path] = [os.fsdecode(p) for p in columns[path]]
    return [Row(*values) for values in zip(*(columns[f.name] for f in fields(Row)), strict=True)]


def digest(rows: Sequence[Row]) -> str:
    """16 hex digits that name what a shard is made of."""
    return fingerprint([[v.hex() if isinstance(v, bytes) else v for v in asdict(row).values()] for row in rows])


def _table(rows: Sequence[Row]) -> pa.Table:
    columns = {f.name: [getattr(row, f.name) for row in rows] for f in fields(Row)}
    for path in _PATHS:
        columns[path] = [os.fsencode(p) for p in columns[path]]
    return sidecar.table(SCHEMA, columns)
