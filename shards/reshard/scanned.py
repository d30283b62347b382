"""What the scan found in all sources, as arrays and sums: some 32 bytes a source, for a million of them.

It is kept as one file beside the scan's markers, so that resuming does not read those again.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial

import numpy as np
import pyarrow as pa
from jaxtyping import Int

from shards import sidecar
from shards.commit import Marker, Output, StageFolder
from shards.digest import SampleDigest
from shards.objects import PARALLEL
from shards.prefetch import in_order
from shards.reader import read_sidecar
from shards.reshard.scan import KEPT
from shards.reshard.units import ROWS, Units

FILTERED = "filtered"
NAME, TOLD = "scanned.parquet", b"scanned"
ARRAYS = pa.schema([("kept", pa.int64()), ("size", pa.int64()), ("rows", pa.int64())])


@dataclass
class Scanned:
    """Letters: S sources. kept: samples left by the filters, size: their bytes, rows: all sound samples."""

    kept: Int[np.ndarray, " S"]
    size: Int[np.ndarray, " S"]
    rows: Int[np.ndarray, " S"]
    came_in: int = 0
    sound: SampleDigest = field(default_factory=SampleDigest)  # of all rows
    filtered: SampleDigest = field(default_factory=SampleDigest)
    refused: dict[str, int] = field(default_factory=dict)  # reason -> samples; those that were filtered are not in it
    quarantine: list[Output] = field(default_factory=list)

    @property
    def quarantined(self) -> int:
        return sum(self.refused.values())

    @property
    def reasons(self) -> str:
        """Why samples are not there, as a reader wants it."""
        counts = {**self.refused, **({FILTERED: self.filtered.count} if self.filtered.count else {})}
        return counted(counts)

    @classmethod
    def read(cls, folder: StageFolder, units: Units) -> Scanned:
        found = cls(*np.zeros((3, len(units.sizes)), np.int64))
        for (_, first, stop), (marker, sums) in zip(units, _each(folder, units), strict=True):
            found.kept[first:stop], found.size[first:stop], found.rows[first:stop] = sums
            found.came_in += marker.came_in
            found.sound += SampleDigest.parse(int(marker.counts["rows"]), marker.came_in_digest)
            found.filtered += SampleDigest.parse(marker.refused.get(FILTERED, 0), marker.refused_digest)
            for reason, count in marker.refused.items():
                if reason != FILTERED:
                    found.refused[reason] = found.refused.get(reason, 0) + count
            found.quarantine += [o for o in marker.outputs if o.file.startswith("quarantine/")]
        return found

    def to_bytes(self) -> bytes:
        table = sidecar.table(ARRAYS, {n: getattr(self, n) for n in ARRAYS.names})
        sums = {n: [d.count, d.hex] for n, d in (("sound", self.sound), ("filtered", self.filtered))}
        files = [asdict(o) for o in self.quarantine]
        told = json.dumps({"came_in": self.came_in, "refused": self.refused, "quarantine": files, **sums})
        return sidecar.to_bytes(table.replace_schema_metadata({TOLD: told.encode()}))

    @classmethod
    def from_bytes(cls, data: bytes, place: str) -> Scanned:
        table = sidecar.from_bytes(data, place, ARRAYS)
        told = json.loads((table.schema.metadata or {})[TOLD])
        sound, filtered = (SampleDigest.parse(*told[n]) for n in ("sound", "filtered"))
        kept, size, rows = (table[n].to_numpy() for n in ARRAYS.names)
        files = [Output(**o) for o in told["quarantine"]]
        return cls(kept, size, rows, told["came_in"], sound, filtered, told["refused"], files)


def _each(folder: StageFolder, units: Units) -> Iterator[tuple[Marker, Int[np.ndarray, "3 S"]]]:
    """The marker of each unit, and the samples kept, their bytes and all rows of each of its S sources."""

    def look(name: str, first: int, stop: int) -> tuple[Marker, Int[np.ndarray, "3 S"]]:
        marker = folder.marker(name)
        if stop == first + 1:
            counts = marker.counts
            return marker, np.array([[marker.samples], [counts["bytes"]], [counts["rows"]]], np.int64)
        table = read_sidecar(folder, name, ROWS)
        source, length = table["source"].to_numpy() - first, table["length"].to_numpy()
        kept = table["dropped"].to_numpy() == KEPT
        sums = np.zeros((3, stop - first), np.int64)
        np.add.at(sums[0], source[kept], 1)
        np.add.at(sums[1], source[kept], length[kept])
        np.add.at(sums[2], source, 1)
        return marker, sums

    tasks = (partial(look, *unit) for unit in units)
    return (task() for task in tasks) if folder.store.local else in_order(tasks, PARALLEL)


def markers(folder: StageFolder, units: Sequence[str]) -> Iterator[Marker]:
    """The markers of units, in order; from an object store many at a time."""
    if folder.store.local:
        return (folder.marker(u) for u in units)
    return in_order((partial(folder.marker, u) for u in units), PARALLEL)


def counted(reasons: dict[str, int]) -> str:
    return ", ".join(f"{count} x {reason}" for reason, count in sorted(reasons.items()))
