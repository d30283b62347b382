"""The index of a shard: where every sample and every member lies, so that one range read gets a sample.

Stored as Parquet under `<shard>.idx` beside the tar: key, offset, length of the sample, and the suffix, offset
and size of each member (offsets in bytes from the start of the tar).
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from shards.digest import hash_of
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
        ("digests", pa.list_(pa.binary(16))),  # blake2b-128 of each member's content; null where it was not hashed
    ]
)


def moved(table: pa.Table, offsets: np.ndarray) -> pa.Table:
    """An index table whose samples start at `offsets` instead; members keep their places within their sample."""
    shift = offsets - table["offset"].to_numpy()
    counts = pc.list_value_length(table["member_offsets"]).to_numpy()
    values = flat(table["member_offsets"]).to_numpy() + np.repeat(shift, counts)
    starts = np.concatenate([[0], np.cumsum(counts)])
    lists = pa.ListArray.from_arrays(pa.array(starts, pa.int32()), pa.array(values, pa.int64()))
    table = table.set_column(1, SCHEMA.field("offset"), pa.array(offsets, pa.int64()))
    return table.set_column(4, SCHEMA.field("member_offsets"), lists)


def flat(column: pa.ChunkedArray) -> pa.Array:
    """The entries of a list column, end to end."""
    found = pc.list_flatten(column)
    return found.combine_chunks() if isinstance(found, pa.ChunkedArray) else found


class ShardIndex:
    """Samples of one tar in tar order; `len(index)`, `index.keys`, `index.members(row)`."""

    def __init__(self, table: pa.Table) -> None:
        self.table = table
        self.offsets = table["offset"].to_numpy()
        self.lengths = table["length"].to_numpy()

    def __len__(self) -> int:
        return len(self.offsets)

    @cached_property
    def keys(self) -> list[str]:
        return self.table["key"].to_pylist()  # type: ignore[no-any-return]

    @cached_property
    def suffixes(self) -> list[list[str]]:
        return self.table["suffixes"].to_pylist()  # type: ignore[no-any-return]

    @cached_property
    def _places(self) -> list[list[tuple[int, int]]]:
        at, size = self.table["member_offsets"].to_pylist(), self.table["member_sizes"].to_pylist()
        return [list(zip(a, s, strict=True)) for a, s in zip(at, size, strict=True)]

    def members(self, row: int) -> list[tuple[str, int, int]]:
        """(suffix, offset, size) of each member of a sample; offsets from the start of the tar."""
        return [(suffix, *place) for suffix, place in zip(self.suffixes[row], self._places[row], strict=True)]

    def flat_members(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(offset of each of M members, size of each, number of members of each of N samples), in tar order."""
        at, size = flat(self.table["member_offsets"]), flat(self.table["member_sizes"])
        counts = pc.list_value_length(self.table["member_offsets"])
        return at.to_numpy(), size.to_numpy(), counts.to_numpy().astype(np.int64)

    def flat_digests(self) -> list[bytes]:
        """The digest of each of M members, of an index that is `hashed`."""
        return flat(self.table["digests"]).to_pylist()  # type: ignore[no-any-return]

    @classmethod
    def of(cls, samples: Sequence[Sample], digests: Sequence[Sequence[bytes]] | None = None) -> ShardIndex:
        """digests: `member_digest` of each sample's members, where they are known."""
        columns = {
            "key": [s.key for s in samples],
            "offset": [s.start for s in samples],
            "length": [s.stop - s.start for s in samples],
            "suffixes": [list(s.suffixes) for s in samples],
            "member_offsets": [[m.offset for m in s.members] for s in samples],
            "member_sizes": [[m.size for m in s.members] for s in samples],
            "digests": [None] * len(samples) if digests is None else [list(d) for d in digests],
        }
        return cls(pa.table(columns, schema=SCHEMA))

    @property
    def hashed(self) -> bool:
        """Whether the content of every sample was hashed."""
        return not self.table["digests"].null_count

    def member_digests(self) -> list[list[bytes]]:
        """blake2b-128 of each member of each sample; for an index that is `hashed`."""
        return self.table["digests"].to_pylist()  # type: ignore[no-any-return]

    def sample_hashes(self) -> list[int]:
        """`shards.digest.sample_hash` of each sample, from the digests of its members."""
        rows = zip(self.keys, self.suffixes, self.member_digests(), strict=True)
        return [hash_of(key, zip(suffixes, digests, strict=True)) for key, suffixes, digests in rows]

    def take(self, rows: np.ndarray, offsets: np.ndarray) -> ShardIndex:
        """The samples `rows`, in that order, as they lie in another tar that has them at `offsets`."""
        table = self.table.take(pa.array(rows))
        return ShardIndex(moved(table, np.asarray(offsets, np.int64)))

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
