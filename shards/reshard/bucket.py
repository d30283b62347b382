"""Shuffle, first pass: one group of sources a unit. Its kept samples are laid out by bucket and, within a bucket, by rank.

The global shuffle is the order of `plan.rank`, and a bucket is a range of ranks, so each output shard later reads one
contiguous range of every group. Leaves `<unit>.bin` (whole samples, as in a tar) and Parquet files with one row group
a bucket: ranks and index, and the rows of each sidecar that moves along.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from shards.commit import Attempt, Marker, Output, StageFolder
from shards.digest import SampleDigest
from shards.index import SCHEMA, ShardIndex
from shards.outfile import HashingFile
from shards.reshard.copy import Copier, Pieces
from shards.reshard.options import ReshardOptions
from shards.reshard.plan import groups, rank
from shards.reshard.work import Workplace

GROUP_BYTES, GROUP_SOURCES = 1 << 30, 256  # all sources of a group are open at once
SHARDS_A_BUCKET = 4
ZERO = SampleDigest().hex
RANKED = pa.schema([("rank", pa.uint64()), ("source", pa.int64()), ("row", pa.int64()), *SCHEMA])


def bucket_count(total: int, count: int, options: ReshardOptions) -> int:
    """How many buckets hold a few output shards each."""
    shards = max(-(-total // options.max_bytes), -(-count // options.max_count), 1)
    return max(1, -(-shards // SHARDS_A_BUCKET))


def bucket_of(ranks: np.ndarray, buckets: int) -> np.ndarray:
    """Bucket of each rank: equal ranges of the 64-bit ranks, by their high 32 bits."""
    return np.asarray(((ranks >> np.uint64(32)) * np.uint64(buckets)) >> np.uint64(32), np.int64)


def group_name(at: int) -> str:
    return f"{at:06d}"


def source_groups(place: Workplace) -> list[tuple[int, int]]:
    return groups(place.sources.size, GROUP_BYTES, GROUP_SOURCES)


@dataclass(frozen=True)
class BucketJob:
    options: ReshardOptions
    fingerprint: str
    buckets: int

    def worker(self) -> BucketWorker:
        return BucketWorker(self)


class BucketWorker:
    def __init__(self, job: BucketJob) -> None:
        self.job, self.place = job, Workplace(job.options)
        self.groups = source_groups(self.place)
        self.folder = StageFolder(self.place.store.url, "buckets")
        seed = job.options.shuffle
        assert seed is not None
        self.seed = seed

    def process(self, unit: str) -> Marker:
        first, stop = self.groups[int(unit)]
        kept = {at: self.place.kept(at) for at in range(first, stop)}
        source = np.concatenate([np.full(len(k.row), at, np.int64) for at, k in kept.items()])
        row = np.concatenate([k.row for k in kept.values()]).astype(np.int64)
        gapped = np.concatenate([k.gapped for k in kept.values()]).astype(bool)
        ranks = np.concatenate([rank(self.seed, at, k.row) for at, k in kept.items()])
        order = np.lexsort((row, source, ranks))
        source, row, gapped, ranks = source[order], row[order], gapped[order], ranks[order]
        with self.folder.attempt(unit) as attempt, ExitStack() as stack:
            index = self._copy(attempt.open(f"{unit}.bin", hashed=False), stack, source, row, gapped)
            edges = np.searchsorted(bucket_of(ranks, self.job.buckets), np.arange(self.job.buckets + 1))
            named = {"rank": pa.array(ranks), "source": pa.array(source), "row": pa.array(row)}
            table = pa.table({**named, **{n: index.table[n] for n in SCHEMA.names}}, schema=RANKED)
            write_groups(attempt.open(f"{unit}.index.parquet"), table, edges)
            for stage in self.place.sources.sidecars if self.job.options.sidecars else ():
                write_groups(attempt.open(f"{unit}.{stage}.parquet"), self._rows(stage, first, source, row), edges)
            return self._commit(attempt, unit, len(row), int(index.lengths.sum()))

    def _copy(
        self, file: HashingFile, stack: ExitStack, source: np.ndarray, row: np.ndarray, gapped: np.ndarray
    ) -> ShardIndex:
        """Copy samples in the order given; each source is opened once."""
        sources = np.unique(source).tolist()
        opened = {at: stack.enter_context(self.place.open(at)) for at in sources}
        tables = [self.place.index(at).table for at in sources]
        starts = np.concatenate([[0], np.cumsum([len(t) for t in tables], dtype=np.int64)])
        flat = starts[np.searchsorted(sources, source)] + row
        places = {at: self.place.sources.place(at) for at in sources}
        copier = Copier(file, "unknown", checked=False)  # the last pass looks at all of it
        if len(row):
            table = pa.concat_tables(tables).combine_chunks().take(pa.array(flat))
            copier.take(Pieces(table, source, gapped, opened, places))
        return copier.close()

    def _rows(self, stage: str, first: int, source: np.ndarray, row: np.ndarray) -> pa.Table:
        sources = np.unique(source) if len(source) else np.array([first])  # for its columns, where no sample is kept
        tables = [self.place.sidecar(int(at), stage, self.place.index(int(at)).keys) for at in sources]
        starts = np.concatenate([[0], np.cumsum([len(t) for t in tables], dtype=np.int64)])
        flat = starts[np.searchsorted(sources, source)] + row
        return pa.concat_tables(tables).combine_chunks().take(pa.array(flat))

    def _commit(self, attempt: Attempt, unit: str, samples: int, size: int) -> Marker:
        def marker(outputs: tuple[Output, ...]) -> Marker:
            job, counts = self.job, {"bytes": size}
            return Marker(
                unit, "buckets", job.fingerprint, "", samples, ZERO, outputs, samples, {}, ZERO, ZERO, ZERO, counts
            )

        return attempt.commit(marker)


def write_groups(file: HashingFile, table: pa.Table, edges: np.ndarray) -> None:
    """Parquet with one row group a bucket, empty ones among them, so that a bucket is read by itself."""
    with pq.ParquetWriter(file, table.schema, compression="zstd") as writer:
        for low, high in zip(edges, edges[1:], strict=False):
            writer.write_table(table.slice(int(low), int(high - low)), row_group_size=max(int(high - low), 1))
    file.close()
