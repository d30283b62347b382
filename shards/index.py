"""The index of a shard: where every sample and every member lies, so that one range read gets a sample.

Stored as Parquet under `<shard>.idx` beside the tar: key, offset, length of the sample, and the suffix, offset
and size of each member (offsets in bytes from the start of the tar).
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from functools import cached_property

import pyarrow as pa
import pyarrow.parquet as pq

from shards.errors import ShardError
from shards.tar import Sample

SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("offset", pa.int64()),
        ("length", pa.int64()),
        ("suffixes", pa.list_(pa.string())),
        ("member_offsets", pa.list_(pa.int64())),
        ("member_sizes", pa.list_(pa.int64())),
    ]
)


class ShardIndex:
    """Samples of one tar in tar order; `len(index)`, `index.keys`, `index.members(row)`."""

    def __init__(self, table: pa.Table) -> None:
        self.table = table
        self.offsets = table["offset"].to_numpy()
        self.lengths = table["length"].to_numpy()
        self._suffixes = table["suffixes"].to_pylist()
        self._member_offsets = table["member_offsets"].to_pylist()
        self._member_sizes = table["member_sizes"].to_pylist()

    def __len__(self) -> int:
        return len(self.offsets)

    @cached_property
    def keys(self) -> list[str]:
        return self.table["key"].to_pylist()  # type: ignore[no-any-return]

    def members(self, row: int) -> list[tuple[str, int, int]]:
        """(suffix, offset, size) of each member of a sample; offsets from the start of the tar."""
        return list(zip(self._suffixes[row], self._member_offsets[row], self._member_sizes[row], strict=True))

    @classmethod
    def of(cls, samples: Sequence[Sample]) -> ShardIndex:
        columns = {
            "key": [s.key for s in samples],
            "offset": [s.start for s in samples],
            "length": [s.stop - s.start for s in samples],
            "suffixes": [list(s.suffixes) for s in samples],
            "member_offsets": [[m.offset for m in s.members] for s in samples],
            "member_sizes": [[m.size for m in s.members] for s in samples],
        }
        return cls(pa.table(columns, schema=SCHEMA))

    def to_bytes(self) -> bytes:
        sink = io.BytesIO()
        pq.write_table(self.table, sink, compression="zstd", store_schema=False)
        return sink.getvalue()

    @classmethod
    def from_bytes(cls, data: bytes, place: str) -> ShardIndex:
        """Raises: ShardError when `data` is not an index; `place` names it."""
        try:
            table = pq.read_table(io.BytesIO(data))
            names = table.column_names
            if names == SCHEMA.names:
                return cls(table)
        except (pa.ArrowException, OSError, UnicodeError, ValueError) as error:
            raise ShardError(
                f"index {place} is not readable ({error}); remove it and its marker, then run again"
            ) from error
        raise ShardError(f"index {place} has columns {names}, expected {SCHEMA.names}")
