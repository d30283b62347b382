"""Packing: an image-text source becomes the base shards of a data set, exactly once, in any order, on any number of workers.

    <dataset>/plan/      what goes where, from the source's listing alone (`shards.plan`)
    <dataset>/origin/    sidecar: where each sample came from
    <dataset>/base/      the shards

All three are claimed by the source's listing and the options before any work. `Packing.begin` claims and plans, a runner
processes `missing` units of `job`, `Packing.finish` proves that nothing was lost, holds refusals against the budget and
writes the manifests. Calling the three again is resuming.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from typing import Any

from shards import manifest, plan, sidecar
from shards.collect import Collector, Summary, commit_rows, conservation
from shards.commit import SUFFIX, Marker, StageFolder
from shards.decode import MAX_PIXELS, TEXT_SUFFIXES, DecodeError, decode_text, sample_text
from shards.digest import difference, fingerprint, keys_digest
from shards.errors import BudgetError, ShardError, StaleStageError, VillaError
from shards.images import CHECKS, ImageRule
from shards.places import RESHARDED, made_in
from shards.plan import Plan, Row
from shards.sources.base import Item, Source
from shards.sources.cells import read_cells
from shards.sources.files import read_files
from shards.sources.tars import TarReader
from shards.store import Store

FORMAT = 1  # raised when the same source and options would give other bytes
STAGES = ("plan", "origin", "base")
MAX_COUNT, MAX_BYTES = 10_000, 512 << 20
BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class PackOptions:
    """max_count: samples a shard; None: 10,000 of what is listed one by one, and tars by bytes only. max_bytes: source bytes
    a shard. check, convert, max_pixels: see `ImageRule`. max_refused_fraction: of all samples, over which packing fails."""

    max_count: int | None = None
    max_bytes: int = MAX_BYTES
    check: str = "full"
    convert: bool = False
    max_pixels: int = MAX_PIXELS
    max_refused_fraction: float = 0.1

    def __post_init__(self) -> None:
        for name in ("max_count", "max_bytes", "max_pixels"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise VillaError(f"--{name.replace('_', '-')} {value}: at least 1 is needed")
        if self.check not in CHECKS:
            raise VillaError(f"--check {self.check!r}: one of {', '.join(CHECKS)} is needed")
        if not 0 <= self.max_refused_fraction <= 1:
            raise VillaError(f"--max-refused-fraction {self.max_refused_fraction}: a number from 0 to 1 is needed")

    def claim(self) -> dict[str, Any]:
        return {k: v for k, v in asdict(self).items() if k != "max_refused_fraction"}


@dataclass(frozen=True)
class PackJob:
    """What a worker needs to know; the rest is in the plan. root: of the source's paths."""

    dataset: str
    root: str
    fingerprint: str
    rule: ImageRule

    def worker(self) -> PackWorker:
        return PackWorker(self)


class PackWorker:
    """process(unit): read the rows of one shard, check every sample, commit origin sidecar and base shard."""

    def __init__(self, job: PackJob) -> None:
        self.job = job

    def process(self, unit: str) -> Marker:
        """Raises: ShardError when the source is no longer what was planned."""
        job, start = self.job, time.perf_counter()
        rows = plan.rows_of(Store(f"{job.dataset}/plan"), unit)
        origin = StageFolder(job.dataset, "origin")
        with StageFolder(job.dataset, "base").attempt(unit) as attempt:
            collector, kept, warnings = Collector(attempt, unit), list[Item](), list[str]()
            for item in _read(job.root, rows, warnings):
                if take(collector, job.rule, item):
                    item.members = {}
                    kept.append(item)
            _check_complete(rows, collector, unit)
            read = sum(r.size for r in rows)
            seconds = {"pack": round(time.perf_counter() - start, 4)}
            with origin.attempt(unit) as other:
                other.write(f"{unit}.parquet", sidecar.to_bytes(_origins(kept)))
                commit_rows(
                    other,
                    unit,
                    stage="origin",
                    fingerprint=job.fingerprint,
                    keys=collector.keys,
                    input_digest=plan.digest(rows),
                    seconds={},
                )
            return collector.commit(
                stage="base",
                fingerprint=job.fingerprint,
                input_digest=plan.digest(rows),
                seconds=seconds,
                warnings=tuple(warnings),
                counts={"source_bytes": read},
            )


def _read(root: str, rows: Sequence[Row], warnings: list[str]) -> Iterator[Item]:
    for kind, run in groupby(rows, key=lambda r: r.kind):
        if kind == "file":
            yield from read_files(root, list(run))
        elif kind == "cell":
            yield from read_cells(list(run))
        else:
            reader = TarReader(root)
            for row in run:
                yield from reader.read(row)
            warnings += reader.warnings


def take(collector: Collector, rule: ImageRule, item: Item) -> bool:
    """Add a sample to the shard or to its quarantine; whether it was added."""
    try:
        if item.refused:
            raise DecodeError(item.refused, item.detail)
        if item.key in collector.seen:
            raise DecodeError("duplicate_key", "an earlier sample has the same key; it is kept")
        collector.add(item.key, checked(rule, item.members))
    except DecodeError as error:
        collector.refuse(item.key, item.members, error.reason, f"{error.detail} ({item.place})")
        return False
    return True


def checked(rule: ImageRule, members: dict[str, bytes]) -> dict[str, bytes]:
    """The members to store: images first, under the suffix of their content, then texts without a byte order mark.

    Raises: DecodeError with the reason why the sample is refused.
    """
    stored: dict[str, bytes] = {}
    for suffix, data in members.items():
        if suffix not in TEXT_SUFFIXES:
            right, content = rule.accept(suffix, data)
            stored[right if right not in stored else suffix] = content
    if not stored:
        found = ", ".join(f".{s}" for s in members) or "nothing"
        raise DecodeError("no_image", f"no image member; found {found}")
    texts = {s: data.removeprefix(BOM) for s, data in sorted(members.items(), reverse=True) if s in TEXT_SUFFIXES}
    sample_text(texts)
    if "json" in texts:
        decode_text(texts["json"])
    return {**stored, **texts}


def _check_complete(rows: Sequence[Row], collector: Collector, unit: str) -> None:
    """Every listed sample is in the shard or in its quarantine, once. (Tars are held to their own count when read.)"""
    listed = [r.key for r in rows if r.kind != "tar"]
    if len(listed) == len(rows) and keys_digest(listed) != keys_digest([*collector.keys, *collector.refused.key]):
        raise ShardError(f"shard {unit}: not every listed sample was packed or refused; nothing was committed")


def _origins(kept: Sequence[Item]) -> Any:
    columns = {name: [getattr(item, name) for item in kept] for name in sidecar.ORIGIN.names}
    return sidecar.table(sidecar.ORIGIN, columns)


class Packing:
    """One packing of a source into a data set."""

    def __init__(self, source: Source, dataset: str, options: PackOptions) -> None:
        self.source, self.dataset, self.options = source, dataset.rstrip("/"), options
        self.folders = [StageFolder(self.dataset, name) for name in STAGES]
        self.origin, self.base = self.folders[1:]
        self.summary = Summary()
        self.notes: list[str] = []  # what a person should read
        self.fingerprint = ""
        self.plan = Plan(0, 0, 0)
        self.missing: list[str] = []

    @property
    def job(self) -> PackJob:
        rule = ImageRule(self.options.check, self.options.convert, self.options.max_pixels)
        return PackJob(self.dataset, self.source.root, self.fingerprint, rule)

    def begin(self, *, force: bool = False) -> None:
        """Claim the data set, plan it unless that is done, and find what is missing.

        force: clear a data set of another source or other options first, and redo shards that are damaged.
        Raises: StaleStageError naming what differs; VillaError when the source is of no use.
        """
        claim = {"format": FORMAT, "packed": {"source": self.source.claim(), "options": self.options.claim()}}
        made = self._plan_first(claim, force)
        self.plan = made
        for folder in self.folders:
            folder.settle_all()
        done = self._sound(self.origin, force) & self._sound(self.base, force)
        self.missing = [u for u in self.plan.units if u not in done]
        self.notes += self.plan.warnings
        for unit in self.plan.units:
            if unit in done:
                self.account(unit)

    def _plan_first(self, claim: dict[str, Any], force: bool) -> Plan:
        other = [self._is_other(folder, claim, force) for folder in self.folders]  # all looked at before one is cleared
        if any(other):
            self._clear()
        store = self.folders[0].store
        self.fingerprint = self.folders[0].claim(claim)
        found = plan.read(store)
        if found is None:
            count = self.options.max_count or MAX_COUNT
            shards = plan.cut(self.source.rows(), count, self.options.max_bytes)
            try:
                found = plan.write(store, shards, self.source.warnings)
            except VillaError:
                plan.remove(store)  # a source of no use must not bind the folder
                raise
        for folder in self.folders[1:]:
            folder.claim(claim)
        return found

    def _clear(self) -> None:
        """Remove what was made of another source, the sidecars of its samples with it."""
        for folder in {f.stage: f for f in (*made_in(self.dataset), *self.folders)}.values():
            self.notes.append(f"--force: clearing {folder.store.path()}")
            folder.clear()
        Store(self.dataset).remove(RESHARDED)

    def _is_other(self, folder: StageFolder, claim: dict[str, Any], force: bool) -> bool:
        """Whether `folder` is of another packing and to be cleared. Raises: StaleStageError where it must not be."""
        try:
            theirs = folder.claimed()
        except StaleStageError:
            if not force:
                raise
            theirs = {}
        strange = folder.store.list("", ".tar") + folder.store.list("", ".parquet") if theirs is None else []
        if fingerprint(theirs) == fingerprint(claim) or (theirs is None and not strange):
            return False
        if force:
            return True
        if theirs is None:
            raise StaleStageError(
                f"{folder.store.path()} holds files such as {strange[0]} that no packing has claimed; give an empty DST, or "
                "repeat with --force to remove them"
            )
        lines = "\n".join(f"  {line}" for line in difference(theirs, claim))
        raise StaleStageError(
            f"{folder.store.path()} was made from another source or with other options, and the two are never mixed. What "
            f"differs (there -> here):\n{lines}\nGive another DST to keep both, or repeat with --force to clear it first."
        )

    def _sound(self, folder: StageFolder, force: bool) -> set[str]:
        """Committed shards whose files are as committed; with `force`, the others lose their marker and are redone."""
        sound = set()
        for shard in folder.shards_done():
            trouble = folder.damaged(shard, content=force)
            if not trouble and folder.marker(shard).fingerprint != self.fingerprint:
                trouble = f"shard {shard} of {folder.store.path()} was committed under another config"
            if not trouble:
                sound.add(shard)
            elif not force:
                raise ShardError(f"{trouble}; restore the file, or repeat with --force to redo the shard")
            else:
                self.notes.append(f"--force: redoing shard {shard}: {trouble}")
                folder.store.remove(shard + SUFFIX)
                folder.store.remove(manifest.NAME)
        return sound

    def account(self, unit: str) -> Marker:
        """Count a committed shard. Raises: BudgetError as soon as the refusals are over the budget, whatever is to come."""
        marker = self.base.marker(unit)
        self.summary.add(marker)
        if self.plan.samples != plan.UNKNOWN:
            self._hold_budget(self.plan.samples)
        return marker

    def finish(self) -> dict[str, Any]:
        """Prove the balance, hold the budget, write the manifests. Returns the result line's fields.

        Raises: ShardError when samples in and out do not balance; BudgetError with the refusals counted.
        """
        for folder in self.folders[1:]:
            folder.settle_all()
        markers = [self.base.marker(u) for u in self.plan.units]
        known = self.plan.samples
        if not conservation(markers).holds() or (known != plan.UNKNOWN and known != sum(m.came_in for m in markers)):
            raise ShardError(f"{self.base.store.path()}: samples in and out do not balance; repeat with --force")
        summary = self.summary = Summary()
        for marker in markers:
            summary.add(marker)
        self._hold_budget(summary.came_in)
        if not summary.out:
            raise BudgetError(f"no sample could be used ({summary.counted() or 'nothing was found'}); {self._where()}")
        manifest.write(self.origin, self.plan.units)
        written = manifest.write(self.base, self.plan.units)
        return {
            "shards": self.plan.shards,
            "samples": summary.out,
            "bytes": summary.bytes,
            "refused": dict(sorted(summary.refused.items())),
            "conserved": True,
            "digest": written.digest,
            "dataset": self.dataset,
        }

    def _hold_budget(self, total: int) -> None:
        refused, limit = self.summary.refusals, self.options.max_refused_fraction
        if refused > limit * total:
            raise BudgetError(
                f"{refused} of {total} samples were refused ({self.summary.counted()}), over the budget of "
                f"--max-refused-fraction {limit}; {self._where()}, mend the source, or raise the budget"
            )

    def _where(self) -> str:
        return f"see {self.base.store.path('quarantine')}"


def check_apart(src: str, dataset: str, source: Source) -> None:
    """Raises: VillaError when the data set would lie in its own source, or the source in the data set's stages."""
    store = Store(dataset)
    if not store.local:
        return
    target, root = os.path.realpath(store.path()), os.path.realpath(source.root)
    if os.path.isdir(src) and _inside(target, os.path.realpath(src)):
        raise VillaError(
            f"DST {dataset!r} lies in the source {src!r}, which would then grow by itself; give a folder outside"
        )
    for name in STAGES:
        if _inside(root, os.path.join(target, name)):
            raise VillaError(
                f"the source {src!r} lies in {os.path.join(target, name)}, which packing writes; give another DST"
            )


def _inside(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder.rstrip("/") + "/")
