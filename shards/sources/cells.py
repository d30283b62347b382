"""Reading rows whose image is a cell of a Parquet file, one row group at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from shards.errors import ShardError
from shards.plan import Row
from shards.sources.base import MAX_MEMBER_BYTES, Item, shown

BATCH_ROWS = 32


def image_bytes(kind: pa.DataType) -> bool:
    """Whether a column of this type holds images, not their paths."""
    if pa.types.is_struct(kind):
        return any(f.name == "bytes" and image_bytes(f.type) for f in kind)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def read_cells(rows: Sequence[Row]) -> Iterator[Item]:
    """One item a row. Rows of one row group lie together and in order, as a table gives them."""
    for (path, group, column), run in groupby(rows, key=lambda r: (r.file, r.first, r.member)):
        wanted = iter(list(run))
        row = next(wanted, None)
        index = 0
        for batch in _batches(path, group, column):
            while row is not None and row.last < index + len(batch):
                yield _item(row, batch[row.last - index].as_py())
                row = next(wanted, None)
            index += len(batch)
            if row is None:
                break
        if row is not None:
            raise ShardError(f"{path}: row group {group} has {index} rows, row {row.last} was listed; it changed since")


def _batches(path: str, group: int, column: str) -> Iterator[pa.Array]:
    try:
        with pq.ParquetFile(path, memory_map=True) as file:
            for batch in file.iter_batches(BATCH_ROWS, row_groups=[group], columns=[column]):
                yield batch.column(0)
    except (pa.ArrowException, OSError, IndexError) as error:
        raise ShardError(
            f"{path}: row group {group} is not readable: {error}; mend the file, repeat with --force"
        ) from error


def _item(row: Row, value: Any) -> Item:
    data = value.get("bytes") if isinstance(value, dict) else value
    item = Item(row.key, {}, shown(row.source), "", row.row, row.refused, row.detail)
    if item.refused:
        return item
    if not data:
        item.refused, item.detail = "no_image", f"column {row.member!r} is empty"
    elif len(data) > MAX_MEMBER_BYTES:
        item.refused, item.detail = "too_many_bytes", f"{len(data)} bytes, {MAX_MEMBER_BYTES} at most"
    else:
        item.members["image"] = data
        item.members.update({n: v for n, v in (("txt", row.txt), ("json", row.meta)) if v is not None})
    return item
