"""Writing one tar from byte ranges of others, and proving that it is what its index says."""

from __future__ import annotations

import mmap
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Int

from shards.commit import HashingFile
from shards.digest import SampleDigest, hash_of, member_digest
from shards.errors import ShardError
from shards.index import SCHEMA, ShardIndex, moved
from shards.reshard.work import Bytes
from shards.tar import BLOCK, END, Scan, TarWriter, group, walk

CHUNK = 1024  # headers looked at together
NAME, SIZE, CHECKSUM = slice(0, 100), slice(124, 136), slice(148, 156)
_OCTAL = 8 ** np.arange(10, -1, -1, dtype=np.int64)


@dataclass(frozen=True)
class Pieces:
    """Samples to copy, in order: row i of the index `table` lies in `files[source[i]]`, which errors call `places[…]`.

    gapped: samples whose members are not adjacent.
    """

    table: pa.Table
    source: Int[np.ndarray, " N"]
    gapped: Bool[np.ndarray, " N"]
    files: Mapping[int, Bytes]
    places: Mapping[int, str]

    def rows(self, first: int, stop: int) -> Pieces:
        chosen = slice(first, stop)
        table = self.table.slice(first, stop - first)
        return Pieces(table, self.source[chosen], self.gapped[chosen], self.files, self.places)

    def check_inside(self, stop: Int[np.ndarray, " N"]) -> None:
        for at in np.unique(self.source).tolist():
            if int(stop[self.source == at].max()) > len(self.files[at].view):
                raise ShardError(f"{self.places[at]} is shorter than its index says; restore it, then run again")


class Copier:
    """Appends samples of other tars to a new one, header blocks and all, and keeps its index."""

    def __init__(self, file: HashingFile, *, hashed: bool) -> None:
        self.file, self.hashed = file, hashed
        self.offset = 0
        self.digest = SampleDigest()
        self._tables: list[pa.Table] = []

    def take(self, pieces: Pieces) -> None:
        """Append the samples of `pieces` in order. Raises: ShardError when one is not what its index recorded."""
        edges = np.flatnonzero(np.diff(pieces.gapped)) + 1
        for part in np.split(np.arange(len(pieces.table)), edges) if len(pieces.table) else []:
            if pieces.gapped[part[0]]:
                for row in part.tolist():
                    self._rewrite(pieces.rows(row, row + 1))
            else:
                self._copy(pieces.rows(int(part[0]), int(part[-1]) + 1))

    def _copy(self, pieces: Pieces) -> None:
        """Whole byte ranges: samples that follow each other in one source are one range."""
        table, source = pieces.table, pieces.source
        start, length = table["offset"].to_numpy(), table["length"].to_numpy()
        stop = start + length
        pieces.check_inside(stop)
        if self.hashed:
            table = self._hash(pieces)
        breaks = np.flatnonzero((start[1:] != stop[:-1]) | (source[1:] != source[:-1])) + 1
        firsts, lasts = np.append(0, breaks), np.append(breaks, len(start)) - 1
        for at, low, high in zip(source[firsts].tolist(), start[firsts].tolist(), stop[lasts].tolist(), strict=True):
            if self.hashed:
                self.file.write(pieces.files[at].view[low:high])
            else:
                self.file.copy_from(pieces.files[at].file, low, high - low)
        ends = np.cumsum(length)
        self._tables.append(moved(table, self.offset + ends - length))
        self.offset += int(ends[-1])

    def _hash(self, pieces: Pieces) -> pa.Table:
        """The digests of the bytes that are copied, held against the recorded ones."""
        rows = ShardIndex(pieces.table)
        at, size, count = rows.flat_members()
        view_of = {source: file.view for source, file in pieces.files.items()}
        of = np.repeat(pieces.source, count).tolist()
        places = zip(of, at.tolist(), size.tolist(), strict=True)
        digests = [member_digest(view_of[s][a : a + n]) for s, a, n in places]
        if rows.hashed and digests != rows.flat_digests():
            wrong = next(i for i, (a, b) in enumerate(zip(digests, rows.flat_digests(), strict=True)) if a != b)
            row = int(np.searchsorted(np.cumsum(count), wrong, side="right"))
            raise ShardError(
                f"{pieces.places[int(pieces.source[row])]}: sample {rows.keys[row]!r} no longer has the content its index "
                "recorded; restore the shard, or leave the sample out by --exclude"
            )
        edges = np.concatenate([[0], np.cumsum(count)]).tolist()
        for row, (key, suffixes) in enumerate(zip(rows.keys, rows.suffixes, strict=True)):
            self.digest.add(hash_of(key, zip(suffixes, digests[edges[row] : edges[row + 1]], strict=True)))
        field = SCHEMA.field("digests")
        flat = pa.array(digests, field.type.value_type)
        lists = pa.ListArray.from_arrays(pa.array(edges, pa.int32()), flat, type=field.type)
        return pieces.table.set_column(6, field, lists)

    def _rewrite(self, pieces: Pieces) -> None:
        """Append a sample whose members are not adjacent, with new headers and nothing else that lay between."""
        one = ShardIndex(pieces.table)
        key, members, view = one.keys[0], one.members(0), pieces.files[int(pieces.source[0])].view
        table = self._hash(pieces) if self.hashed else pieces.table
        writer, first = TarWriter(self.file), self.offset  # type: ignore[arg-type]
        places = [writer.add(f"{key}.{s}" if s else key, view[at : at + size]).offset for s, at, size in members]
        table = table.set_column(1, SCHEMA.field("offset"), pa.array([first], pa.int64()))
        table = table.set_column(2, SCHEMA.field("length"), pa.array([writer.offset], pa.int64()))
        lists = pa.array([[first + p for p in places]], SCHEMA.field("member_offsets").type)
        self._tables.append(table.set_column(4, SCHEMA.field("member_offsets"), lists))
        self.offset += writer.offset

    def close(self) -> ShardIndex:
        self.file.write(END)
        self.offset += len(END)
        self.file.close()
        return ShardIndex(pa.concat_tables(self._tables) if self._tables else ShardIndex.of([]).table)


def check_written(path: str, index: ShardIndex) -> None:
    """Hold a new tar against its index: every header sound, every name and size as indexed, nothing between or behind.

    Raises: ShardError naming the first sample that is not as it should be.
    """
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as whole:
        view = memoryview(whole)
        try:
            if not _all_plain(view, index):
                _check_by_walk(view, file, index, path)  # type: ignore[arg-type]
        finally:
            view.release()


def _all_plain(view: memoryview, index: ShardIndex) -> bool:
    """The check for tars that have one plain header before each member, over all headers at once."""
    table = index.table
    at, sizes, counts = index.flat_members()
    if not len(at):
        return len(view) == len(END)
    next_header = np.append(at[1:] - BLOCK, len(view) - len(END))
    if at[0] != BLOCK or not np.array_equal(at + (sizes + BLOCK - 1) // BLOCK * BLOCK, next_header):
        return False
    firsts = np.cumsum(counts) - counts
    if not np.array_equal(at[firsts] - BLOCK, index.offsets) or any(view[-len(END) :]):
        return False
    whole = np.frombuffer(view, np.uint8)
    names = []
    for low in range(0, len(at), CHUNK):
        headers = whole[(at[low : low + CHUNK] - BLOCK)[:, None] + np.arange(BLOCK)]
        if not _sound(headers, sizes[low : low + CHUNK]):
            return False
        names += [n.lower() for n in np.ascontiguousarray(headers[:, NAME]).view("S100").reshape(-1).tolist()]
    return names == _expected(table)


def _sound(headers: np.ndarray, sizes: np.ndarray) -> bool:
    """Checksums and sizes of H headers (H x 512); False also for number fields that are not 11 plain octal digits."""
    recorded = headers[:, CHECKSUM][:, :6].astype(np.int64) - ord("0")
    field = headers[:, SIZE][:, :11].astype(np.int64) - ord("0")
    if (recorded < 0).any() or (recorded > 7).any() or (field < 0).any() or (field > 7).any():
        return False
    found = headers.sum(1, dtype=np.int64) - headers[:, CHECKSUM].sum(1, dtype=np.int64) + 8 * ord(" ")
    return bool(np.array_equal(recorded @ _OCTAL[-6:], found) and np.array_equal(field @ _OCTAL, sizes))


def _expected(table: pa.Table) -> list[bytes]:
    keys, suffixes = table["key"].to_pylist(), table["suffixes"].to_pylist()
    return [f"{k}.{s}".encode().lower() for k, row in zip(keys, suffixes, strict=True) for s in row]


def _check_by_walk(view: memoryview, file: object, index: ShardIndex, path: str) -> None:
    scan = Scan()
    samples = list(group(walk(view, file, scan), scan))  # type: ignore[arg-type]
    found = ShardIndex.of(samples)
    wrong = scan.problem or ("" if len(found) == len(index) else f"{len(found)} samples, {len(index)} in its index")
    for row in range(len(index) if not wrong else 0):
        if found.keys[row] != index.keys[row] or found.members(row) != index.members(row):
            wrong = (
                f"sample {row} is {found.keys[row]!r}, {index.keys[row]!r} in its index, or its members lie elsewhere"
            )
            break
    if wrong:
        raise ShardError(
            f"{path} is not what the sources' indexes say ({wrong}): a header in a source is damaged. Nothing was "
            "committed; find it by `villa shards verify` and restore it"
        )
