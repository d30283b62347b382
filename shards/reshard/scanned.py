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
    def read(cls, folder: StageFolder, units: Sequence[str]) -> Scanned:
        kept, size, rows = np.zeros((3, len(units)), np.int64)
        found = cls(kept, size, rows)
        for at, marker in enumerate(markers(folder, units)):
            found.kept[at], found.size[at] = marker.samples, int(marker.counts["bytes"])
            found.rows[at] = int(marker.counts["rows"])
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


def markers(folder: StageFolder, units: Sequence[str]) -> Iterator[Marker]:
    """The markers of units, in order; from an object store many at a time."""
    if folder.store.local:
        return (folder.marker(u) for u in units)
    return in_order((partial(folder.marker, u) for u in units), PARALLEL)


def counted(reasons: dict[str, int]) -> str:
    return ", ".join(f"{count} x {reason}" for reason, count in sorted(reasons.items()))
