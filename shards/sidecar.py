"""Sidecars: Parquet files beside a base shard, one row an image in tar order (zstd).

pairs, truth   key, boxes (K x 4 float32, xyxy pixels), region / attribute / score (P): attribute[p] is said of
               boxes[region[p]] with score[p]. Boxes without a pair are kept in `truth`, dropped in `pairs`
regions        key, width, height, boxes (R x 4), objectness (R), attributes (A: ids the text mentions), and where it
               first mentions each, in characters of the text: span_start, span_stop (A; files of before may lack them)
embeddings     row (image), region, embedding (D float16): one row a region
quarantine     key, reason, detail, digest: one row a refused sample
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


def from_bytes(data: bytes, place: str, schema: pa.Schema | None = None) -> pa.Table:
    """Raises: ShardError when `data` is not Parquet or lacks a column of `schema`."""
    try:
        found = pq.read_table(io.BytesIO(data))
        names = found.column_names
    except (pa.ArrowException, OSError, UnicodeError, ValueError) as error:
        raise ShardError(f"sidecar {place} is not readable as Parquet: {error}; redo the stage with --force") from error
    missing = [n for n in (schema.names if schema else []) if n not in names]
    if missing:
        raise ShardError(f"sidecar {place} lacks the columns {missing}; it has {names}; redo the stage with --force")
    return found


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
