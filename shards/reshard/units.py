"""Which sources are scanned together, and what the scan has left of each.

A unit is a run of consecutive sources, a pure function of their sizes: small ones share their files and their marker, a
large one is alone. Letters: S sources, U units.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property

import numpy as np
import pyarrow as pa
from jaxtyping import Int

from shards.commit import StageFolder
from shards.errors import ShardError
from shards.index import ShardIndex, moved
from shards.reader import read_sidecar
from shards.reshard.plan import groups

UNIT_BYTES, UNIT_SOURCES = 64 << 20, 256
LAYOUT = 2  # of what the passes leave for each other; work of another layout is begun again, what is written stays

# One row a sample of a unit, in order of (source, row).
ROWS = pa.schema([("source", pa.int64()), ("length", pa.int64()), ("dropped", pa.uint8()), ("gapped", pa.bool_())])


def unit_name(first: int) -> str:
    return f"{first:08d}"


class Units:
    """`(name, first source, source after the last)` of each, in order. sizes: bytes of each source."""

    def __init__(self, sizes: Sequence[int]) -> None:
        self.sizes = sizes
        self.spans = groups(sizes, UNIT_BYTES, UNIT_SOURCES)

    def __iter__(self) -> Iterator[tuple[str, int, int]]:
        return ((unit_name(first), first, stop) for first, stop in self.spans)

    @cached_property
    def firsts(self) -> Int[np.ndarray, " U"]:
        return np.array([first for first, _ in self.spans], np.int64)

    def of(self, at: int) -> tuple[int, int]:
        """The unit that source `at` is in."""
        return self.spans[int(np.searchsorted(self.firsts, at, side="right")) - 1]

    def starts(self, first: int, stop: int) -> Int[np.ndarray, " S+1"]:
        """Where the tars of sources [first, stop) begin, laid end to end: offsets of a unit's index count from its first."""
        return np.concatenate([[0], np.cumsum(self.sizes[first:stop], dtype=np.int64)])


def joined(indexes: Sequence[ShardIndex], starts: Int[np.ndarray, " S+1"]) -> ShardIndex:
    """One index of tars that are laid end to end."""
    if len(indexes) == 1:
        return indexes[0]
    tables = [moved(i.table, i.offsets + start) for i, start in zip(indexes, starts[:-1].tolist(), strict=True)]
    return ShardIndex(pa.concat_tables([t.replace_schema_metadata(None) for t in tables]).combine_chunks())


class Scans:
    """What was found in one source at a time. That of its unit is held, since sources are asked for in order."""

    def __init__(self, folder: StageFolder, units: Units) -> None:
        self.folder, self.units = folder, units
        self._rows: tuple[int, pa.Table] | None = None
        self._made: tuple[int, ShardIndex | None] | None = None

    def rows(self, at: int) -> pa.Table:
        """`ROWS` of source `at`."""
        first, _ = self.units.of(at)
        if self._rows is None or self._rows[0] != first:
            self._rows = None  # let go of before the next is there
            self._rows = first, read_sidecar(self.folder, unit_name(first), ROWS)
        table = self._rows[1]
        low, high = np.searchsorted(table["source"].to_numpy(), [at, at + 1]).tolist()
        return table.slice(low, high - low)

    def made(self, at: int) -> ShardIndex | None:
        """The index that the scan made of source `at`; None where its own one holds."""
        first, stop = self.units.of(at)
        if self._made is None or self._made[0] != first:
            self._made = None
            self._made = first, self._read(unit_name(first))
        found = self._made[1]
        if found is None or stop == first + 1:
            return found
        start, end = self.units.starts(first, at + 1)[-2:].tolist()
        low, high = np.searchsorted(found.offsets, [start, end]).tolist()
        table = found.table.slice(low, high - low)
        return ShardIndex(moved(table, table["offset"].to_numpy() - start))

    def _read(self, unit: str) -> ShardIndex | None:
        made = [o for o in self.folder.marker(unit).outputs if o.file.endswith(".idx")]
        if not made:
            return None
        name = self.folder.locate(made[0])
        data = self.folder.store.read(name)
        if not made[0].is_content(data):
            raise ShardError(
                f"{self.folder.store.path(name)} has changed since it was written; remove {self.folder.dataset_url}"
            )
        return ShardIndex.from_bytes(data, self.folder.store.path(name))
