"""Pass 1, one source or a run of small ones a unit: which samples are there, which are kept, what they are the same as.

Leaves `<unit>.parquet` (bytes of each sample, why it is dropped), for foreign tars an index, and for --dedupe the
samples' hashes in order, so that a partition of the hash space is one range read.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Int, UInt8

from shards import digest, sidecar
from shards.commit import Attempt, Marker, Output, StageFolder
from shards.decode import IMAGE_SUFFIXES
from shards.digest import SampleDigest, hash_of, member_digest
from shards.errors import VillaError
from shards.index import SCHEMA, ShardIndex
from shards.reader import view_tar
from shards.reshard import predicate
from shards.reshard.options import WORK, ReshardOptions
from shards.reshard.sources import Sources
from shards.reshard.units import ROWS, Units, joined, unit_name
from shards.store import Store
from shards.tar import Sample, Scan, padded

KEPT, FILTERED = 0, 1
PREFIXES = 256
# what makes samples the same, what proves that none is lost, and the row in the unit
HASH = np.dtype([("high", "<u8"), ("low", "<u8"), ("sum_high", "<u8"), ("sum_low", "<u8"), ("row", "<u4")])


@dataclass(frozen=True)
class Keys:
    """A set of keys as sorted 64-bit hashes: 8 bytes a key, whatever its length."""

    hashes: np.ndarray

    @classmethod
    def read(cls, path: str) -> Keys:
        folder, _, name = path.rpartition("/")
        lines = Store(folder or ".").read(name).decode("utf-8", "surrogateescape").splitlines()
        return cls(np.unique(key_hashes([line.strip() for line in lines if line.strip()])))

    def has(self, keys: list[str]) -> Bool[np.ndarray, " N"]:
        if not len(self.hashes):
            return np.zeros(len(keys), bool)
        mine = key_hashes(keys)
        at = np.minimum(np.searchsorted(self.hashes, mine), len(self.hashes) - 1)
        return np.asarray(self.hashes[at] == mine)


def key_hashes(keys: list[str]) -> np.ndarray:
    return np.array([h & ((1 << 64) - 1) for h in digest.key_hashes(keys)], np.uint64)


@dataclass(frozen=True)
class ScanJob:
    options: ReshardOptions
    fingerprint: str

    def worker(self) -> ScanWorker:
        return ScanWorker(self)


@dataclass
class Found:
    """A source as the scan saw it, or the sources of a unit."""

    index: ShardIndex
    gapped: Bool[np.ndarray, " N"]
    dropped: UInt8[np.ndarray, " N"]
    quarantine: list[tuple[str, str, str]]  # key, reason, detail
    made: bool  # the index was made here


class ScanWorker:
    def __init__(self, job: ScanJob) -> None:
        self.job, self.options = job, job.options
        work = Store(f"{job.options.dst}/{WORK}")
        self.sources = Sources.from_bytes(work.read("sources.parquet"), work.path("sources.parquet"))
        self.contents = self.options.contents(self.sources.dataset)
        self.folder, self.units = StageFolder(work.url, "scan"), Units(self.sources.size)
        self.stages = predicate.stages(self.options.where) if self.options.where else []

    @cached_property
    def include(self) -> Keys:
        return Keys.read(self.options.include)

    @cached_property
    def exclude(self) -> Keys:
        return Keys.read(self.options.exclude)

    def process(self, unit: str) -> Marker:
        first, stop = self.units.of(int(unit))
        each = {at: self._look(at) for at in range(first, stop)}
        found = together(list(each.values()), self.units.starts(first, stop))
        kept, proof = found.dropped == KEPT, self._proof(found.index)
        with self.folder.attempt(unit) as attempt:
            source = np.repeat(np.arange(first, stop), [len(e.index) for e in each.values()])
            columns = {
                "source": source,
                "length": found.index.lengths,
                "dropped": found.dropped,
                "gapped": found.gapped,
            }
            attempt.write(f"{unit}.parquet", sidecar.to_bytes(sidecar.table(ROWS, columns)))
            if found.made:
                attempt.write(f"{unit}.idx", found.index.to_bytes())
            for at, one in each.items():
                if one.quarantine:
                    self._quarantine(attempt, at, one.quarantine)
            if self.options.dedupe:
                by, place = self.options.dedupe, self.sources.place
                same = [h for at, one in each.items() for h in identities(one.index, by, place(at))]
                attempt.write(f"{unit}.hash", hash_file(same, proof, np.flatnonzero(kept)))
            return attempt.commit(lambda outputs: self._marker(unit, found, proof, outputs))

    def _look(self, at: int) -> Found:
        found = self._committed(at) if self.sources.dataset else self._foreign(at)
        found.dropped = self._filtered(at, found.index)
        return found

    def _committed(self, at: int) -> Found:
        base = self.sources.base(at)
        index = base.index
        lacking = self.contents != "unknown" and not index.hashed  # written by something that did not hash
        if lacking:
            digests = [[member_digest(d) for d in members.values()] for _, members in base.samples()]
            column = pa.array(digests, SCHEMA.field("digests").type)
            index = ShardIndex(index.table.set_column(6, SCHEMA.field("digests"), column))
        return Found(index, np.zeros(len(index), bool), none(index), [], lacking)

    def _foreign(self, at: int) -> Found:
        scan, samples, hashes = Scan(), [], []  # type: tuple[Scan, list[Sample], list[list[bytes]]]
        for sample, members in view_tar(Store(self.sources.url[at]), self.sources.name[at], scan):
            samples.append(sample)
            if self.contents == "hashed":
                hashes.append([member_digest(data) for data in members.values()])
        if samples and samples[-1].stop > self.sources.size[at]:
            self.sources.check_size(at, Store(self.sources.url[at]).size(self.sources.name[at]))
        refused = [(name, reason, "") for name, reason in scan.refused]
        if scan.problem:
            refused.append(("(end of shard)", "damaged_shard", scan.problem))
        gapped = [self.options.prefix_keys or is_gapped(s) for s in samples]  # these are written anew
        if self.options.prefix_keys:
            stem = self.sources.name[at].split(".")[0]
            samples = [s._replace(key=f"{stem}/{s.key}") for s in samples]
        index = ShardIndex.of(samples, hashes if self.contents == "hashed" else None)
        return Found(index, np.array(gapped, bool), none(index), refused, True)

    def _filtered(self, at: int, index: ShardIndex) -> UInt8[np.ndarray, " N"]:
        keep = np.ones(len(index), bool)
        if self.options.include:
            keep &= self.include.has(index.keys)
        if self.options.exclude:
            keep &= ~self.exclude.has(index.keys)
        if self.options.where:
            tables = {"base": pa.table({"key": index.keys, "bytes": index.lengths})}
            for stage in self.sources.sidecars:
                if stage in self.stages:
                    tables[stage] = self.sources.rows(at, stage)
                    sidecar.check_aligned(tables[stage], index.keys, f"{self.sources.dataset}/{stage}")
            keep &= predicate.evaluate(self.options.where, tables, len(index), self.sources.place(at))
        return np.where(keep, KEPT, FILTERED).astype(np.uint8)

    def _proof(self, index: ShardIndex) -> list[int]:
        """A number a sample, whose sum proves conservation: of its content where it is hashed, else of its key."""
        return index.sample_hashes() if self.contents != "unknown" else digest.key_hashes(index.keys)

    def _quarantine(self, attempt: Attempt, at: int, rows: list[tuple[str, str, str]]) -> None:
        place = self.sources.place(at)
        columns = {
            "key": [k.encode("utf-8", "backslashreplace").decode() for k, _, _ in rows],
            "reason": [r for _, r, _ in rows],
            "detail": [f"{place}: {d}" if d else place for _, _, d in rows],
            "digest": [f"{0:032x}"] * len(rows),
        }
        attempt.write(
            f"quarantine/{unit_name(at)}.parquet", sidecar.to_bytes(sidecar.table(sidecar.QUARANTINE, columns))
        )

    def _marker(self, unit: str, found: Found, proof: list[int], outputs: tuple[Output, ...]) -> Marker:
        kept, (first, stop) = found.dropped == KEPT, self.units.of(int(unit))
        refused = {"filtered": int((~kept).sum())} if not kept.all() else {}
        for _, reason, _ in found.quarantine:
            refused[reason] = refused.get(reason, 0) + 1
        digests = self.sources.sha256[first:stop]
        return Marker(
            shard=unit,
            stage="scan",
            fingerprint=self.job.fingerprint,
            input_digest=digests[0] if len(digests) == 1 else digest.fingerprint(digests),
            samples=int(kept.sum()),
            keys_digest="",  # what is kept is known after the duplicates are
            outputs=outputs,
            came_in=len(found.index) + len(found.quarantine),
            refused=refused,
            came_in_digest=total(proof, np.ones(len(kept), bool)).hex,
            refused_digest=total(proof, ~kept).hex,
            content_digest=total(proof, kept).hex,
            counts={"bytes": int(found.index.lengths[kept].sum()), "rows": len(found.index)},
        )


def together(found: list[Found], starts: Int[np.ndarray, " S+1"]) -> Found:
    """What was found in the sources of a unit. Where one index was made here, all are kept."""
    gapped, dropped = (np.concatenate([getattr(f, n) for f in found]) for n in ("gapped", "dropped"))
    quarantine = [row for f in found for row in f.quarantine]
    return Found(joined([f.index for f in found], starts), gapped, dropped, quarantine, any(f.made for f in found))


def none(index: ShardIndex) -> UInt8[np.ndarray, " N"]:
    """No sample is dropped."""
    return np.full(len(index), KEPT, np.uint8)


def is_gapped(sample: Sample) -> bool:
    """Whether something that is not of the sample lies between its members."""
    ends = [m.offset + padded(m.size) for m in sample.members]
    return any(end != m.start for end, m in zip(ends, sample.members[1:], strict=False))


def identities(index: ShardIndex, by: str, place: str) -> list[int]:
    """What makes samples the same: equal keys, equal contents of all members (content), or of the image alone."""
    if by == "key":
        return digest.key_hashes(index.keys)
    if not index.hashed:
        raise VillaError(
            f"--dedupe {by}: the contents of {place} were not hashed when it was written; use --dedupe key"
        )
    known = zip(range(len(index)), index.member_digests(), strict=True)
    pairs = (zip((s for s, _, _ in index.members(row)), found, strict=True) for row, found in known)
    if by == "content":
        return [hash_of("", p) for p in pairs]
    return [hash_of("", [(s, d) for s, d in p if s in IMAGE_SUFFIXES]) for p in pairs]


def total(values: list[int], chosen: Bool[np.ndarray, " N"]) -> SampleDigest:
    if chosen.all():
        return SampleDigest(len(values), sum(values) % digest.MODULUS)
    rows = np.flatnonzero(chosen).tolist()
    return SampleDigest(len(rows), sum(values[row] for row in rows) % digest.MODULUS)


def hash_file(identity: list[int], proof: list[int], rows: np.ndarray) -> bytes:
    """`PREFIXES + 1` places (u4, in records), then records of `HASH` in order of (identity, row)."""
    records, low = np.zeros(len(rows), HASH), (1 << 64) - 1
    for name, values in (("", identity), ("sum_", proof)):
        records[f"{name}high"] = [values[r] >> 64 for r in rows]
        records[f"{name}low"] = [values[r] & low for r in rows]
    records["row"] = rows
    records = records[np.lexsort((records["row"], records["low"], records["high"]))]
    starts = np.searchsorted(records["high"] >> np.uint64(56), np.arange(PREFIXES + 1))
    return starts.astype("<u4").tobytes() + records.tobytes()
