"""Sidecars: Parquet files beside a base shard, one row an image in tar order (zstd).

pairs, truth   key, boxes (K x 4 float32, xyxy pixels), region / attribute / score (P): attribute[p] is said of
               boxes[region[p]] with score[p]. Boxes without a pair are kept in `truth`, dropped in `pairs`
regions        key, width, height, boxes (R x 4), objectness (R), attributes (A: ids the text mentions), and where it
               first mentions each, in characters of the text: span_start, span_stop (A; files of before may lack them)
embeddings     row (image), region, embedding (D float16): one row a region
quarantine     key, reason, detail, digest: one row a refused sample
origin         key, file, member, row: where a packed sample is from; file is relative to the source, row is of a table or
               the image id of COCO
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from shards.errors import ShardError

BOX = pa.list_(pa.float32(), 4)
PAIRS = pa.schema(
    [
        ("key", pa.string()),
        ("boxes", pa.list_(BOX)),
        ("region", pa.list_(pa.uint16())),
        ("attribute", pa.list_(pa.int32())),
        ("score", pa.list_(pa.float16())),
    ]
)
REGIONS = pa.schema(
    [
        ("key", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("boxes", pa.list_(BOX)),
        ("objectness", pa.list_(pa.float32())),
        ("attributes", pa.list_(pa.int32())),
    ]
)
REGIONS_WRITTEN = pa.schema([*REGIONS, ("span_start", pa.list_(pa.int32())), ("span_stop", pa.list_(pa.int32()))])
QUARANTINE = pa.schema(
    [("key", pa.string()), ("reason", pa.string()), ("detail", pa.string()), ("digest", pa.string())]
)
ORIGIN = pa.schema([("key", pa.string()), ("file", pa.string()), ("member", pa.string()), ("row", pa.int64())])


def embeddings_schema(dim: int) -> pa.Schema:
    return pa.schema([("row", pa.int32()), ("region", pa.uint16()), ("embedding", pa.list_(pa.float16(), dim))])


def table(schema: pa.Schema, columns: dict[str, Any]) -> pa.Table:
    return pa.table({f.name: pa.array(columns[f.name], type=f.type) for f in schema}, schema=schema)


def ragged(schema_type: pa.DataType, values: np.ndarray, lengths: Sequence[int] | np.ndarray) -> pa.Array:
    """A list column from concatenated values and the number of values in each row, without a Python loop.

    `values`: (N,) for scalar lists or (N, 4) for lists of boxes; `sum(lengths) == N`.
    """
    offsets = np.concatenate([[0], np.cumsum(np.asarray(lengths, np.int64))]).astype(np.int32)
    inner = schema_type.value_type
    if pa.types.is_fixed_size_list(inner):
        flat = pa.array(np.ascontiguousarray(values).reshape(-1), type=inner.value_type)
        child = pa.FixedSizeListArray.from_arrays(flat, type=inner)
    else:
        child = pa.array(values, type=inner)
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), child, type=schema_type)


def to_bytes(sidecar: pa.Table) -> bytes:
    """Deterministic Parquet bytes: equal tables give equal bytes for one version of pyarrow."""
    sink = io.BytesIO()
    pq.write_table(sidecar, sink, compression="zstd", compression_level=3)
    return sink.getvalue()


def from_bytes(data: bytes, place: str, schema: pa.Schema | None = None, optional: Sequence[str] = ()) -> pa.Table:
    """optional: columns that may hold nulls.

    Raises: ShardError when `data` is not Parquet, or lacks a column of `schema` or has it in another type."""
    try:
        found = pq.read_table(io.BytesIO(data))
        names = found.column_names
    except (pa.ArrowException, OSError, UnicodeError, ValueError) as error:
        raise ShardError(f"sidecar {place} is not readable as Parquet: {error}; redo the stage with --force") from error
    missing = [n for n in (schema.names if schema else []) if n not in names]
    if missing:
        raise ShardError(f"sidecar {place} lacks the columns {missing}; it has {names}; redo the stage with --force")
    try:
        return conformed(found, schema, optional=optional) if schema else found
    except (pa.ArrowException, UnicodeError, ValueError) as error:
        raise ShardError(
            f"sidecar {place} is not as its stage writes it: {error}; redo the stage with --force"
        ) from error


def conformed(
    found: pa.Table, schema: pa.Schema, nullable: Sequence[str] = (), optional: Sequence[str] = ()
) -> pa.Table:
    """`found` with the columns of `schema` in its types. Files of other writers may differ in the width of a number or
    have lost the fixed length of a list. nullable: columns that may be null throughout;
    optional: columns that may hold nulls.

    Raises: ValueError, or pyarrow's own, where the values do not fit.
    """
    for wanted in schema:
        places = found.schema.get_all_field_indices(wanted.name)
        if len(places) != 1:
            raise ValueError(f"column {wanted.name!r} is there {len(places)} times")
        column = found.column(places[0])
        if column.type != wanted.type:
            column = _cast(column, wanted)
            found = found.set_column(places[0], wanted.name, column)
        if (
            wanted.name not in optional
            and _nulls(column)
            and not (wanted.name in nullable and column.null_count == len(column))
        ):
            raise ValueError(f"column {wanted.name!r} holds nulls")
        column.validate(full=True)
    return found


def _cast(column: pa.ChunkedArray, wanted: pa.Field) -> pa.ChunkedArray:
    if _kind(column.type) != _kind(wanted.type):
        raise ValueError(f"column {wanted.name!r} is {column.type}, expected {wanted.type}")
    return column.cast(wanted.type)


def _kind(kind: pa.DataType) -> str:
    """What a cast may not change: how deep the lists go, and what the values are."""
    if pa.types.is_list(kind) or pa.types.is_fixed_size_list(kind) or pa.types.is_large_list(kind):
        return f"list of {_kind(kind.value_type)}"
    for name in ("integer", "floating", "string", "large_string", "null"):
        if getattr(pa.types, f"is_{name}")(kind):
            return name.removeprefix("large_")
    return str(kind)


def _nulls(column: pa.ChunkedArray) -> bool:
    if column.null_count:
        return True
    return any(_nulls_inside(chunk) for chunk in column.chunks)


def _nulls_inside(array: pa.Array) -> bool:
    if not pa.types.is_nested(array.type):
        return bool(array.null_count)
    return bool(array.null_count) or (hasattr(array, "flatten") and _nulls_inside(array.flatten()))


def list_column(sidecar: pa.Table, name: str) -> tuple[np.ndarray, np.ndarray]:
    """(values, offsets) of a list column: row i is values[offsets[i]:offsets[i+1]]; boxes come as N x 4."""
    column = sidecar[name].combine_chunks()
    if isinstance(column, pa.ChunkedArray):
        column = column.chunk(0) if column.num_chunks else pa.array([], type=column.type)
    offsets = column.offsets.to_numpy()
    child = column.values
    if pa.types.is_nested(child.type):  # boxes; files of other writers may have lost the fixed length
        values = child.flatten().to_numpy(zero_copy_only=False).reshape(-1, 4)
    else:
        values = child.to_numpy(zero_copy_only=False)
    return values[offsets[0] : offsets[-1]], offsets - offsets[0]


def check_aligned(sidecar: pa.Table, keys: Sequence[str], place: str) -> None:
    """Raises: ShardError naming the first row where a sidecar and its base shard part ways."""
    found = sidecar["key"].to_pylist()
    if found == list(keys):
        return
    if len(found) != len(keys):
        raise ShardError(f"sidecar {place} has {len(found)} rows, its base shard {len(keys)} samples; redo the stage")
    row = next(i for i, (a, b) in enumerate(zip(found, keys, strict=True)) if a != b)
    raise ShardError(f"sidecar {place} row {row} has key {found[row]!r}, its base shard {keys[row]!r}; redo the stage")
