"""Writing one tar from byte ranges of others."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Int

from shards.digest import SampleDigest, member_digest
from shards.errors import ShardError
from shards.index import SCHEMA, ShardIndex, hashes_of, moved
from shards.outfile import HashingFile
from shards.reshard.check import all_plain
from shards.reshard.work import Bytes
from shards.tar import END, TarWriter

Contents = Literal["hashed", "carried", "unknown"]


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

    def all_plain(self) -> bool:
        """`shards.reshard.check.all_plain` of all of them."""
        sources = np.unique(self.source).tolist()
        if len(sources) == 1:
            return all_plain(self.files[sources[0]].view, ShardIndex(self.table))
        rows = ((at, self.table.take(pa.array(np.flatnonzero(self.source == at)))) for at in sources)
        return all(all_plain(self.files[at].view, ShardIndex(table)) for at, table in rows)


class Copier:
    """Appends samples of other tars to a new one, header blocks and all, and keeps its index.

    contents: "hashed" takes the digest of every member that is copied and holds it against the recorded one, "carried" takes
    the recorded ones, "unknown" leaves `digest` empty. plain: whether all headers were found plain and as indexed so far.
    """

    def __init__(self, file: HashingFile, contents: Contents, *, checked: bool = True) -> None:
        self.file, self.contents, self.checked = file, contents, checked
        self.offset = 0
        self.digest = SampleDigest()
        self.plain = True
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
        if self.checked and self.plain:
            self.plain = pieces.all_plain()
        table = self._proved(pieces)
        breaks = np.flatnonzero((start[1:] != stop[:-1]) | (source[1:] != source[:-1])) + 1
        firsts, lasts = np.append(0, breaks), np.append(breaks, len(start)) - 1
        ranges = zip(source[firsts].tolist(), start[firsts].tolist(), stop[lasts].tolist(), strict=True)
        self.file.write_views([pieces.files[at].view[low:high] for at, low, high in ranges])
        ends = np.cumsum(length)
        self._tables.append(moved(table, self.offset + ends - length))
        self.offset += int(ends[-1])

    def _proved(self, pieces: Pieces) -> pa.Table:
        """The index of these samples with digests, which are added to `digest`."""
        if self.contents == "hashed":
            return self._hash(pieces)
        if self.contents == "carried":
            for value in ShardIndex(pieces.table).sample_hashes():
                self.digest.add(value)
        return pieces.table

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
        for value in hashes_of(pieces.table, digests):
            self.digest.add(value)
        edges = np.append(0, np.cumsum(count))
        field = SCHEMA.field("digests")
        flat = pa.array(digests, field.type.value_type)
        lists = pa.ListArray.from_arrays(pa.array(edges, pa.int32()), flat, type=field.type)
        return pieces.table.set_column(6, field, lists)

    def _rewrite(self, pieces: Pieces) -> None:
        """Append a sample whose members are not adjacent, with new headers and nothing else that lay between."""
        one = ShardIndex(pieces.table)
        key, members, view = one.keys[0], one.members(0), pieces.files[int(pieces.source[0])].view
        table, self.plain = self._proved(pieces), False
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
