"""The driver of a reshard: claim, scan, find duplicates, cut, write, prove, clean up. Calling it again is resuming."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from shards import manifest, sidecar
from shards.commit import SUFFIX, Marker, StageFolder
from shards.digest import SampleDigest, fingerprint, sha256
from shards.errors import BudgetError, ShardError, StaleStageError, VillaError
from shards.lock import lock
from shards.places import RESHARDED, made_in
from shards.reshard import dedupe, predicate
from shards.reshard.apart import check_apart
from shards.reshard.bucket import BucketJob, bucket_count, bucket_of, group_name, source_groups
from shards.reshard.options import WORK, ReshardOptions
from shards.reshard.plan import cuts, even_parts, rank
from shards.reshard.scan import ScanJob
from shards.reshard.scanned import NAME as SCANNED
from shards.reshard.scanned import Scanned, counted, markers
from shards.reshard.sources import BASE, Sources, resolve
from shards.reshard.units import LAYOUT, Units
from shards.reshard.work import Workplace
from shards.reshard.write import PLAN, WriteJob
from shards.store import Store, remove_orphans
from shards.work import Job, RunUnits

PROVED_BY = {"hashed": "content", "carried": "recorded content", "unknown": "keys"}


class Meter(Protocol):
    def advance(self, count: int = 1) -> None: ...


# (name of the pass, total, unit, done already) -> a progress display
MakeMeter = Callable[[str, int, str, int], AbstractContextManager[Meter]]


def reshard(
    src: str,
    options: ReshardOptions,
    run: RunUnits,
    meter: MakeMeter,
    *,
    force: bool = False,
    max_refused_fraction: float = 0.1,
) -> dict[str, Any]:
    """Write the samples of `src` into new shards below `options.dst`; returns what went where, with the proof.

    Raises: StaleStageError when DST was made from other sources or with other options (`force` redoes it), BudgetError when
    too much of the sources is damaged, VillaError for what was given.
    """
    return Reshard(src, options, run, meter, force, max_refused_fraction).run()


class Reshard:
    def __init__(
        self, src: str, options: ReshardOptions, run: RunUnits, meter: MakeMeter, force: bool, budget: float
    ) -> None:
        self.options, self.execute, self.meter, self.force, self.budget = options, run, meter, force, budget
        self.sources = resolve(src)
        self.dst, self.work = Store(options.dst), Store(f"{options.dst}/{WORK}")
        check_apart(src, self.sources, options.dst)
        if options.prefix_keys and self.sources.dataset:
            raise VillaError(
                f"--prefix-keys is for tars of others; the keys of the data set {src} name its sidecars' rows"
            )
        if options.where:
            predicate.check_stages(options.where, [BASE, *self.sources.sidecars], src)
        self.base = StageFolder(options.dst, BASE)
        self.stages = self.sources.sidecars if options.sidecars else ()
        self.outputs = [*(StageFolder(options.dst, s) for s in self.stages), self.base]
        files = {name: _content(getattr(options, name)) for name in ("include", "exclude") if getattr(options, name)}
        self.claim = options.claim(self.sources.fingerprint, files)
        self.fingerprint = fingerprint(self.claim)
        self.work_claim = {**self.claim, "layout": LAYOUT}  # of the passes before the last
        self.work_fingerprint = fingerprint(self.work_claim)

    def run(self) -> dict[str, Any]:
        started = time.monotonic()
        held = lock(self.options.dst, "give another DST")
        try:
            return self._run(started)
        finally:
            if held:
                held.release()

    def _run(self, started: float) -> dict[str, Any]:
        self._claim()
        known = self._finished() if manifest.exists(self.base) else None
        if known is not None:
            self._clean()
            return known
        self._begin()
        scanned = self._scan()
        dropped, lost = (
            self._duplicates(scanned) if self.options.dedupe else (np.zeros(len(scanned.rows), np.int64), [])
        )
        plan = self._plan(scanned, dropped)
        names = [f"{n:0{max(6, len(str(len(plan))))}d}" for n in range(len(plan))]
        weights = dict(zip(names, (plan["bytes"].to_numpy() // 1_000_000).tolist(), strict=True))
        self._pass("write", self.base, WriteJob(self.options, self.fingerprint, len(names)), names, weights, "MB")
        result = self._prove(scanned, lost, names, int(plan["bytes"].to_numpy().sum()))
        for output in self.outputs[:-1]:
            manifest.write(output, names)
        self._keep_quarantine(scanned)
        result["seconds"] = round(time.monotonic() - started, 1)
        self.dst.put(RESHARDED, json.dumps(result, indent=1, sort_keys=True).encode())
        manifest.write(self.base, names)  # last: from here on the data set is complete
        self._clean()
        return result

    def _claim(self) -> None:
        stranger = self.base.claimed() is None and self.base.store.list("", ".tar")
        if stranger and not self.force:
            raise StaleStageError(f"{self.base.store.path()} holds shards of something else; give another DST")
        try:
            self._bind(self.outputs, self.claim)
        except StaleStageError:
            if not self.force and self.base.shards_done():
                raise  # where nothing is committed yet, nothing can be mixed
            for folder in {f.stage: f for f in (*made_in(self.options.dst), *self.outputs)}.values():
                folder.clear()  # sidecars of another base as well
            self.dst.remove(RESHARDED)
            self.work.remove("", recursive=True)
            self._bind(self.outputs, self.claim)

    def _finished(self) -> dict[str, Any] | None:
        """The result of a reshard that is complete and whole. Of one that is not, with `force`: None, its damaged shards
        taken out, so that they are written again. Raises: ShardError for it otherwise."""
        trouble = self._damage()
        data = self.dst.find(RESHARDED)
        if not trouble and data is not None:
            result: dict[str, Any] = json.loads(data)
            return {**result, "dataset": self.options.dst}
        first = next(iter(trouble.values()), f"{self.dst.path(RESHARDED)} is missing although the data set is complete")
        if not self.force:
            also = f" ({len(trouble)} shards in all)" if len(trouble) > 1 else ""
            raise ShardError(f"{first}{also}; restore it, or repeat with --force to write it again from the sources")
        for shard in trouble:
            for folder in self.outputs:
                folder.store.remove(shard + SUFFIX)
        for folder in self.outputs:
            folder.store.remove(manifest.NAME)
        return None

    def _damage(self) -> dict[str, str]:
        """Shards whose files are not as committed, with what is wrong: sizes, and with `force` contents."""
        found: dict[str, str] = {}
        for folder in self.outputs:
            shards = manifest.read(folder).shards if manifest.exists(folder) else manifest.read(self.base).shards
            sizes = folder.store.list_sizes()
            sound = set() if self.force else manifest.sound(folder, sizes, self.fingerprint)
            for shard in sorted(set(shards) - sound):
                why = folder.damaged(shard, content=self.force, bound=self.fingerprint, sizes=sizes)
                if why:
                    found.setdefault(shard, why)
        return found

    def _begin(self) -> None:
        """Claim the folders of the passes before the last."""
        passes = [StageFolder(self.work.url, name) for name in ("scan", "dedupe", "buckets")]
        try:
            self._bind(passes, self.work_claim)
        except StaleStageError:  # left by another version: what is written does not depend on it
            self.work.remove("", recursive=True)
            self._bind(passes, self.work_claim)
        self.work.put("sources.parquet", self.sources.to_bytes())

    def _bind(self, folders: Sequence[StageFolder], claim: dict[str, Any]) -> None:
        for folder in folders:
            folder.claim(claim, "Give another DST")

    def _scan(self) -> Scanned:
        folder, found = StageFolder(self.work.url, "scan"), self._scanned()
        if found.quarantined > max(self.budget * found.came_in, 5 if self.budget else 0):
            raise BudgetError(
                f"{found.quarantined} of {found.came_in} samples are damaged ({counted(found.refused)}), over the budget of "
                f"--max-refused-fraction {self.budget}; see {folder.store.path('quarantine')}, mend the sources, or raise it"
            )
        if not found.kept.any():
            raise VillaError(
                f"no sample of {found.came_in} is left to write: {found.reasons or 'all sources are empty'}"
            )
        return found

    def _scanned(self) -> Scanned:
        known = self.work.find(SCANNED)
        if known is not None:
            return Scanned.from_bytes(known, self.work.path(SCANNED))
        folder = StageFolder(self.work.url, "scan")
        units = Units(self.sources.size)
        weights = {name: stop - first for name, first, stop in units}
        self._pass("scan", folder, ScanJob(self.options, self.work_fingerprint), list(weights), weights, "shards")
        found = Scanned.read(folder, units)
        self.work.put(SCANNED, found.to_bytes())
        return found

    def _duplicates(self, scanned: Scanned) -> tuple[np.ndarray, list[Marker]]:
        folder = StageFolder(self.work.url, "dedupe")
        parts = dedupe.parts(int(scanned.kept.sum()))
        units = [dedupe.part_name(p) for p in parts]
        job = dedupe.DedupeJob(self.options, self.work_fingerprint)
        self._pass("find duplicates", folder, job, units, dict.fromkeys(units, 1), "parts")
        found = [dedupe.read_found(self.work, p) for p in parts]
        return dedupe.write_bits(self.work, scanned.rows.tolist(), found), [folder.marker(u) for u in units]

    def _plan(self, scanned: Scanned, dropped: np.ndarray) -> pa.Table:
        """The plan, which is a pure function of what is kept; saved for the workers."""
        place = Workplace(self.options)
        if self.options.shuffle is not None:
            rows = self._buckets(place, scanned, int(dropped.sum()))
        else:
            counts, sizes = scanned.kept - dropped, scanned.size.copy()
            for at in np.flatnonzero(dropped):
                sizes[at] = place.kept(int(at)).length.sum()
            lengths = lambda at: place.kept(at).length  # noqa: E731
            cut = cuts(counts, sizes, lengths, self.options.max_count, self.options.max_bytes)
            rows = [(*c.first, *c.stop, c.samples, c.bytes) for c in cut]
        table = sidecar.table(PLAN, {n: [r[i] for r in rows] for i, n in enumerate(PLAN.names)})
        self.work.put("plan.parquet", sidecar.to_bytes(table))
        return table

    def _buckets(self, place: Workplace, scanned: Scanned, dropped: int) -> list[tuple[int, ...]]:
        options, folder = self.options, StageFolder(self.work.url, "buckets")
        buckets = bucket_count(int(scanned.size.sum()), int(scanned.kept.sum()) - dropped, options)
        groups = source_groups(place)
        units = [group_name(g) for g in range(len(groups))]
        sizes = [int(scanned.size[slice(*g)].sum()) // 1_000_000 for g in groups]
        job = BucketJob(options, self.work_fingerprint, buckets)
        self._pass("bucket", folder, job, units, dict(zip(units, sizes, strict=True)), "MB")
        count, size = np.zeros(buckets, np.int64), np.zeros(buckets, np.int64)
        assert options.shuffle is not None
        for at in range(len(self.sources)):
            kept = place.kept(at)
            which = bucket_of(rank(options.shuffle, at, kept.row), buckets)
            count += np.bincount(which, minlength=buckets)
            size += np.bincount(which, weights=kept.length, minlength=buckets).astype(np.int64)
        rows: list[tuple[int, ...]] = []
        for b in range(buckets):
            parts = even_parts(int(count[b]), int(size[b]), options.max_count, options.max_bytes)
            edges = np.linspace(0, int(count[b]), parts + 1).astype(int).tolist()
            rows += [
                (b, low, b, high, high - low, int(size[b]) // parts)
                for low, high in zip(edges, edges[1:], strict=False)
            ]
        return rows

    def _pass(
        self, name: str, folder: StageFolder, job: Job, units: Sequence[str], weight: dict[str, int], unit: str
    ) -> None:
        """Do the units that are not committed."""
        for each in self.outputs if folder is self.base else [folder]:
            each.settle_all()
        done = set(folder.shards_done())
        missing = [u for u in units if u not in done]
        finished = sum(weight[u] for u in units if u in done)
        with self.meter(name, sum(weight.values()), unit, finished) as shown:
            self.execute(job, missing, lambda u: shown.advance(weight[u]))
        for each in self.outputs if folder is self.base else [folder]:
            each.settle_all()

    def _prove(self, scanned: Scanned, lost: Sequence[Marker], names: Sequence[str], size: int) -> dict[str, Any]:
        """in = out + filtered + duplicates + quarantined, in counts and in digests. Raises: ShardError when it is not."""
        rows, filtered = scanned.sound, scanned.filtered
        again = sum((SampleDigest.parse(m.samples, m.content_digest) for m in lost), SampleDigest())
        out = sum((SampleDigest.parse(m.samples, m.content_digest) for m in markers(self.base, names)), SampleDigest())
        if rows != out + filtered + again or scanned.came_in != rows.count + scanned.quarantined:
            raise ShardError(
                f"{self.options.dst}: {rows.count} samples came in, and {out.count} written, {filtered.count} filtered and "
                f"{again.count} duplicates are not the same samples; the sources changed meanwhile, or a disk lies: "
                "repeat with --force"
            )
        return {
            "dataset": self.options.dst,
            "shards": len(names),
            "bytes": size,
            "sidecars": list(self.stages),
            "samples_in": rows.count + scanned.quarantined,
            "samples": out.count,
            "filtered": filtered.count,
            "duplicates": again.count,
            "quarantined": scanned.refused,
            "conserved": True,
            "proved_by": PROVED_BY[self.options.contents(self.sources.dataset)],
            "digest": out.hex,
        }

    def _keep_quarantine(self, scanned: Scanned) -> None:
        folder = StageFolder(self.work.url, "scan")
        for output in scanned.quarantine:
            self.base.store.put(output.file, folder.store.read(folder.locate(output)))

    def _clean(self) -> None:
        if self.dst.local:
            remove_orphans(Path(self.dst.path()))
        self.work.remove("", recursive=True)


def _content(path: str) -> str:
    folder, _, name = path.rpartition("/")
    return sha256(Store(folder or ".").read(name))


__all__ = ["ReshardOptions", "Sources", "reshard"]
