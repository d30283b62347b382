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

from shards.digest import digest_of
from shards.errors import ShardError
from shards.sidecar import conformed, list_column
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
TAR_BYTES = "tar_bytes"


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


def hashes_of(table: pa.Table, digests: Sequence[bytes]) -> list[int]:
    """`shards.digest.hash_of` of each row of an index table whose M members have these digests."""
    suffixes = pc.list_flatten(table["suffixes"].combine_chunks()).dictionary_encode()
    names, codes = suffixes.dictionary.to_pylist(), suffixes.indices.to_pylist()
    counts = pc.list_value_length(table["suffixes"]).to_pylist()
    laid: dict[
        tuple[int, ...], list[tuple[int, bytes]]
    ] = {}  # members in order of suffix, with what precedes each digest
    found, at = [], 0
    for key, count in zip(table["key"].to_pylist(), counts, strict=True):
        kind = tuple(codes[at : at + count])
        if kind not in laid:
            order = sorted(range(count), key=lambda i: names[kind[i]])
            laid[kind] = [(i, b"\0" + names[kind[i]].encode() + b"\0") for i in order]
        found.append(digest_of(key, [part for i, name in laid[kind] for part in (name, digests[at + i])]))
        at += count
    return found


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
        return hashes_of(self.table, self.flat_digests())

    def take(self, rows: np.ndarray, offsets: np.ndarray) -> ShardIndex:
        """The samples `rows`, in that order, as they lie in another tar that has them at `offsets`."""
        table = self.table.take(pa.array(rows))
        return ShardIndex(moved(table, np.asarray(offsets, np.int64)))

    def to_bytes(self, tar_bytes: int | None = None) -> bytes:
        """tar_bytes: the size of a foreign tar, kept with its index so that another tar of that name is noticed."""
        table = self.table
        if tar_bytes is not None:
            table = table.replace_schema_metadata({TAR_BYTES: str(tar_bytes)})
        sink = io.BytesIO()
        pq.write_table(table, sink, compression="zstd", store_schema=tar_bytes is not None)
        return sink.getvalue()

    @property
    def tar_bytes(self) -> int | None:
        """The size of the tar this index is of, where it was recorded."""
        recorded = (self.table.schema.metadata or {}).get(TAR_BYTES.encode(), b"")
        return int(recorded) if recorded.isdigit() else None

    @classmethod
    def from_bytes(cls, data: bytes, place: str) -> ShardIndex:
        """Raises: ShardError when `data` is not an index, or one that no tar can have; `place` names it."""
        remedy = "remove it and its marker, then run again"
        try:
            table = pq.read_table(io.BytesIO(data))
            names = table.column_names
            if names == SCHEMA.names:
                table = conformed(table, SCHEMA, nullable=("digests",))
                _check(table)
                return cls(table)
        except (pa.ArrowException, OSError, UnicodeError, ValueError) as error:
            raise ShardError(f"index {place} is not readable ({error}); {remedy}") from error
        raise ShardError(f"index {place} has columns {names}, expected {SCHEMA.names}; {remedy}")


def _check(table: pa.Table) -> None:
    """Members lie in their sample and samples in the tar, in order. Raises: ValueError naming the first row that is wrong.

    Letters: N samples, M members.
    """
    from_N, length_N = table["offset"].to_numpy(), table["length"].to_numpy()
    _, at_N = list_column(table, "suffixes")
    from_M, members_at = list_column(table, "member_offsets")
    size_M, sizes_at = list_column(table, "member_sizes")
    if not (np.array_equal(at_N, members_at) and np.array_equal(at_N, sizes_at)):
        raise ValueError("its rows list another number of suffixes than of member offsets or sizes")
    if not table["digests"].null_count:
        _, digests_at = list_column(table, "digests")
        if not np.array_equal(at_N, digests_at):
            raise ValueError("its rows list another number of digests than of members")
    count_N = np.diff(at_N)
    row_M = np.repeat(np.arange(len(from_N)), count_N)
    wrong_N = (count_N == 0) | (from_N < 0) | (length_N <= 0) | (from_N > (1 << 62)) | (length_N > (1 << 62))
    wrong_N[1:] |= from_N[1:] < from_N[:-1] + length_N[:-1]
    limit_M = (from_N + length_N)[row_M]
    wrong_M = (size_M < 0) | (from_M < from_N[row_M]) | (size_M > limit_M - from_M)
    wrong_N[row_M[wrong_M]] = True
    if wrong_N.any():
        raise ValueError(f"row {int(wrong_N.argmax())} names bytes that no tar has there")
