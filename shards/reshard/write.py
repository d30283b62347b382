"""The last pass, one output shard a unit: its tar, its index and the rows of every sidecar, committed base last.

So a committed base shard has all its sidecars, and a run that was cut off between them goes on where it was.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from shards import sidecar
from shards.commit import Marker, Output, StageFolder
from shards.digest import SampleDigest, keys_digest
from shards.errors import VillaError
from shards.index import SCHEMA, moved
from shards.reshard.bucket import RANKED, group_name, source_groups
from shards.reshard.check import check_written
from shards.reshard.copy import Copier, Pieces
from shards.reshard.options import ReshardOptions
from shards.reshard.sources import BASE
from shards.reshard.work import Workplace, part_of

# One row an output shard. Without a shuffle: kept samples from (source, row) to (source, row); with one, kept samples
# [from_row, to_row) of bucket from_source, in order of rank.
PLAN = pa.schema(
    [
        ("from_source", pa.int64()),
        ("from_row", pa.int64()),
        ("to_source", pa.int64()),
        ("to_row", pa.int64()),
        ("samples", pa.int64()),
        ("bytes", pa.int64()),
    ]
)


@dataclass(frozen=True)
class WriteJob:
    options: ReshardOptions
    fingerprint: str
    names: int  # digits of a shard's name

    def worker(self) -> WriteWorker:
        return WriteWorker(self)


class WriteWorker:
    def __init__(self, job: WriteJob) -> None:
        self.job, self.options, self.place = job, job.options, Workplace(job.options)
        work = self.place.store
        self.plan = sidecar.from_bytes(work.read("plan.parquet"), work.path("plan.parquet"), PLAN)

    def process(self, unit: str) -> Marker:
        plan = {n: int(self.plan[n][int(unit)].as_py()) for n in PLAN.names}
        with StageFolder(self.options.dst, BASE).attempt(unit) as attempt:
            file = attempt.open(f"{unit}.tar", hashed=self.options.hashed, direct=True)
            copier = Copier(file, self.options.contents(self.place.sources.dataset))
            rows = self._shuffled(copier, plan) if self.options.shuffle is not None else self._in_order(copier, plan)
            index = copier.close()
            check_written(file.path, index, plain=copier.plain)
            check_keys(index.keys, f"shard {unit} of {self.options.dst}", prefixed=self.options.prefix_keys)
            attempt.write(f"{unit}.idx", index.to_bytes())
            keys = keys_digest(index.keys)
            for stage, table in rows.items():
                self._commit_sidecar(stage, unit, table, index.keys, keys)
            return attempt.commit(lambda outputs: self._marker(unit, BASE, keys, copier.digest, outputs))

    def _in_order(self, copier: Copier, plan: dict[str, int]) -> dict[str, pa.Table]:
        parts: dict[str, list[pa.Table]] = {stage: [] for stage in self._stages()}
        for at, low, high in spans(plan):
            kept = self.place.kept(at)
            chosen = slice(low, high if high is not None else len(kept.row))
            row = kept.row[chosen]
            if not len(row):
                continue
            index = self.place.index(at)
            with self.place.open(at) as source:
                table, which = index.table.take(pa.array(row)), np.full(len(row), at)
                places = {at: self.place.sources.place(at)}
                copier.take(Pieces(table, which, kept.gapped[chosen], {at: source}, places))
            for stage, tables in parts.items():
                tables.append(self.place.sidecar(at, stage, index.keys).take(pa.array(row)))
        return {stage: pa.concat_tables(tables) for stage, tables in parts.items()}

    def _shuffled(self, copier: Copier, plan: dict[str, int]) -> dict[str, pa.Table]:
        bucket, low, high = plan["from_source"], plan["from_row"], plan["to_row"]
        buckets = StageFolder(self.place.store.url, "buckets")
        names = [group_name(g) for g in range(len(source_groups(self.place)))]
        tables = [read_group(buckets, name, "index", bucket) for name in names]
        group = np.repeat(np.arange(len(names)), [len(t) for t in tables])
        whole = pa.concat_tables(tables)
        ranks, source, row = (whole[n].to_numpy() for n in ("rank", "source", "row"))
        order = np.lexsort((row, source, ranks))[low:high]
        used = np.unique(group[order]).tolist()
        table, mine = whole.select(SCHEMA.names).take(pa.array(order)), group[order]
        start = table["offset"].to_numpy()
        stop = start + table["length"].to_numpy()
        with ExitStack() as stack:
            files, places, shift = {}, {}, np.zeros(len(names), np.int64)
            for at in used:  # a group's part of an output shard is one range
                name = buckets.locate(buckets.marker(names[at]).output(".bin"))
                low, high = int(start[mine == at].min()), int(stop[mine == at].max())
                files[at], shift[at] = stack.enter_context(part_of(buckets.store, name, low, high))
                places[at] = buckets.store.path(name)
            table = moved(table, start - shift[mine])
            copier.take(Pieces(table, mine, np.zeros(len(order), bool), files, places))
        return {
            stage: pa.concat_tables([read_group(buckets, name, stage, bucket) for name in names]).take(pa.array(order))
            for stage in self._stages()
        }

    def _stages(self) -> tuple[str, ...]:
        return self.place.sources.sidecars if self.options.sidecars else ()

    def _commit_sidecar(self, stage: str, unit: str, table: pa.Table, keys: list[str], digest: SampleDigest) -> None:
        folder = StageFolder(self.options.dst, stage)
        sidecar.check_aligned(table, keys, folder.store.path(f"{unit}.parquet"))
        with folder.attempt(unit) as attempt:
            attempt.write(f"{unit}.parquet", sidecar.to_bytes(table.combine_chunks()))
            attempt.commit(lambda outputs: self._marker(unit, stage, digest, digest, outputs))

    def _marker(
        self, unit: str, stage: str, keys: SampleDigest, content: SampleDigest, outputs: tuple[Output, ...]
    ) -> Marker:
        if not content.count:  # not hashed: what is proved is that the keys are the same
            content = keys
        return Marker(
            shard=unit,
            stage=stage,
            fingerprint=self.job.fingerprint,
            input_digest=self.job.fingerprint,
            samples=keys.count,
            keys_digest=keys.hex,
            outputs=outputs,
            came_in=keys.count,
            came_in_digest=content.hex,
            refused_digest=SampleDigest().hex,
            content_digest=content.hex,
        )


def check_keys(keys: list[str], place: str, *, prefixed: bool) -> None:
    """Raises: VillaError for two samples of one shard with one key, which other readers would take for one sample."""
    if len(set(keys)) < len(keys):
        twice = next(key for key, count in Counter(keys).items() if count > 1)
        raise VillaError(
            f"two samples with the key {twice!r} come together in {place}, where readers would take them for one; "
            "the shard was not committed. Keep the first by --dedupe key"
            + (
                "; they are of one source, so --prefix-keys is no help"
                if prefixed
                else ", or tell them apart by --prefix-keys"
            )
        )


def spans(plan: dict[str, int]) -> Iterator[tuple[int, int, int | None]]:
    """(source, first kept row, last kept row or None for all) of an output shard."""
    first, stop = (plan["from_source"], plan["from_row"]), (plan["to_source"], plan["to_row"])
    for at in range(first[0], stop[0] + (stop[1] > 0)):
        yield at, first[1] if at == first[0] else 0, stop[1] if at == stop[0] else None


def read_group(buckets: StageFolder, unit: str, what: str, bucket: int) -> pa.Table:
    """The rows of one bucket in one group's file."""
    outputs = [o for o in buckets.marker(unit).outputs if o.file == f"{unit}.{what}.parquet"]
    with buckets.store.open(buckets.locate(outputs[0])) as f:
        table = pq.ParquetFile(f).read_row_group(bucket)
    return table.cast(RANKED) if what == "index" else table
