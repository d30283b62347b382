"""Pass 2, one part of the hash space a unit: which samples are the same as an earlier one.

"Earlier" is by (source, row), so the first of equal samples stays whatever the workers do. A unit holds 40 bytes for each
sample of its part, and there are as many parts as keep that under `PART_BYTES`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from shards import sidecar
from shards.commit import Marker, Output, StageFolder
from shards.digest import SampleDigest
from shards.errors import ShardError
from shards.reader import read_sidecar
from shards.reshard.options import ReshardOptions
from shards.reshard.scan import HASH, PREFIXES
from shards.reshard.scanned import NAME as SCANNED
from shards.reshard.scanned import Scanned
from shards.reshard.work import DUPLICATES, Workplace
from shards.store import Store

PART_BYTES = 256 << 20
RECORD_BYTES = HASH.itemsize + 4  # with its source
FOUND = pa.schema([("source", pa.int64()), ("row", pa.int64())])
ZERO = SampleDigest().hex


def parts(samples: int) -> list[tuple[int, int]]:
    """Ranges [first, stop) of the 256 hash prefixes, one a unit."""
    wanted = min(max(-(-samples * RECORD_BYTES // PART_BYTES), 1), PREFIXES)
    edges = np.linspace(0, PREFIXES, wanted + 1).astype(int).tolist()
    return list(zip(edges, edges[1:], strict=False))


def part_name(part: tuple[int, int]) -> str:
    return f"{part[0]:03d}-{part[1]:03d}"


@dataclass(frozen=True)
class DedupeJob:
    options: ReshardOptions
    fingerprint: str

    def worker(self) -> DedupeWorker:
        return DedupeWorker(self)


class DedupeWorker:
    def __init__(self, job: DedupeJob) -> None:
        self.job, self.place = job, Workplace(job.options)

    def process(self, unit: str) -> Marker:
        first, stop = (int(p) for p in unit.split("-"))
        records, sources = self._records(first, stop)
        again = duplicates(records, sources)
        source, row = sources[again].astype(np.int64), records["row"][again].astype(np.int64)
        lost = SampleDigest()
        for high, low in zip(records["sum_high"][again].tolist(), records["sum_low"][again].tolist(), strict=True):
            lost.add(high << 64 | low)
        with StageFolder(self.place.store.url, "dedupe").attempt(unit) as attempt:
            table = sidecar.table(FOUND, {"source": source, "row": row})
            attempt.write(f"{unit}.parquet", sidecar.to_bytes(table))

            def marker(outputs: tuple[Output, ...]) -> Marker:
                return Marker(
                    unit,
                    "dedupe",
                    self.job.fingerprint,
                    "",
                    len(row),
                    ZERO,
                    outputs,
                    len(row),
                    {},
                    lost.hex,
                    ZERO,
                    lost.hex,
                )

            return attempt.commit(marker)

    def _records(self, first: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """(records, source of each) whose hash prefix is in [first, stop); rows count from the first of their source."""
        rows = Scanned.from_bytes(self.place.store.read(SCANNED), self.place.store.path(SCANNED)).rows
        records, sources = [], []
        for unit, low, high in self.place.scans.units:
            found = read_records(self.place.scans.folder, unit, first, stop).copy()
            starts = np.concatenate([[0], np.cumsum(rows[low:high])])
            inside = np.searchsorted(starts, found["row"], side="right") - 1
            found["row"] -= starts[inside].astype(np.uint32)
            records.append(found)
            sources.append((low + inside).astype(np.uint32))
        return np.concatenate(records), np.concatenate(sources)


def read_records(scan: StageFolder, unit: str, first: int, stop: int) -> np.ndarray:
    output = scan.marker(unit).output(".hash")
    name = scan.locate(output)
    head = 4 * (PREFIXES + 1)
    starts = np.frombuffer(scan.store.read_range(name, 0, head), "<u4")
    if len(starts) != PREFIXES + 1 or head + int(starts[-1]) * HASH.itemsize != output.bytes:
        raise ShardError(
            f"{scan.store.path(name)} is damaged; remove {scan.dataset_url} and run the same command again"
        )
    low, high = int(starts[first]), int(starts[stop])
    data = scan.store.read_range(name, head + low * HASH.itemsize, (high - low) * HASH.itemsize)
    return np.frombuffer(data, HASH)


def duplicates(records: np.ndarray, source: np.ndarray) -> np.ndarray:
    """Which records have the hash of an earlier (source, row), in order of (source, row)."""
    order = np.lexsort((records["row"], source, records["low"], records["high"]))
    high, low = records["high"][order], records["low"][order]
    again = np.zeros(len(order), bool)
    again[1:] = (high[1:] == high[:-1]) & (low[1:] == low[:-1])
    found = order[again]
    return np.asarray(found[np.lexsort((records["row"][found], source[found]))])


def write_bits(work: Store, rows: Sequence[int], found: Sequence[pa.Table]) -> np.ndarray:
    """One bit a sample, set for duplicates, each source from a byte of its own: N / 8 bytes for N samples.

    rows: samples of each source. Returns the duplicates of each source.
    """
    starts = np.concatenate([[0], np.cumsum([(n + 7) // 8 for n in rows], dtype=np.int64)])
    bits = np.zeros(int(starts[-1]), np.uint8)
    count = np.zeros(len(rows), np.int64)
    for table in found:
        source, row = table["source"].to_numpy(), table["row"].to_numpy()
        np.bitwise_or.at(bits, starts[source] + row // 8, (128 >> (row % 8)).astype(np.uint8))
        count += np.bincount(source, minlength=len(rows))
    work.put(f"{DUPLICATES}.starts", starts.astype("<i8").tobytes())
    work.put(DUPLICATES, bits.tobytes())
    return count


def read_found(work: Store, part: tuple[int, int]) -> pa.Table:
    return read_sidecar(StageFolder(work.url, "dedupe"), part_name(part), FOUND)
