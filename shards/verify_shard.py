"""Everything about one shard in all its stages: markers, files, base content, sidecars."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pyarrow as pa

from shards import manifest, marked, sidecar
from shards.commit import SUFFIX, Marker, Output, StageFolder
from shards.decode import MAX_PIXELS
from shards.digest import SampleDigest
from shards.errors import ShardError, VillaError
from shards.findings import Findings
from shards.gather import Look
from shards.marker_check import read_marker
from shards.places import open_tar, sha256_of
from shards.store import Store
from shards.verify_base import Walked, check_base_marker, check_index, read_index, walk_tar
from shards.verify_files import check_bytes, located, read_output, read_table
from shards.verify_sidecar import REDO, SCHEMAS, Base, check_counts, check_sidecar, check_sidecar_marker

ATTEMPT = r"\.attempts/{shard}\.[^/.]+\.[0-9a-f]{{8}}/"


@dataclass(frozen=True)
class VerifyTask:
    """A unit is a shard of a data set, looked at in each of `stages`."""

    dataset: str
    stages: tuple[str, ...]
    deep: bool

    def open(self) -> Look:
        return DatasetVerifier(self).look


class Stage:
    """A stage's folder with what holds for all its shards, read once."""

    def __init__(self, dataset: str, name: str) -> None:
        self.folder = StageFolder(dataset, name)
        self.name = name
        try:
            self.config = self.folder.claimed()
        except VillaError:
            self.config = None  # the driver reports it
        self.bound = self.folder.bound_to()

    @cached_property
    def _manifest(self) -> tuple[pa.Table, dict[str, int]] | None:
        """The manifest as it is stored, and the row of each shard; None where there is none that is readable."""
        store = self.folder.store
        if not store.exists(manifest.NAME):
            return None
        try:
            table = sidecar.from_bytes(store.read(manifest.NAME), manifest.NAME, manifest.SCHEMA)
        except ShardError:
            return None  # the driver reports it
        return table, {shard: row for row, shard in enumerate(table["shard"].to_pylist())}

    def listed(self, shard: str) -> dict[str, Any] | None:
        """What the manifest says of a shard; None where it says nothing."""
        if self._manifest is None or shard not in self._manifest[1]:
            return None
        table, rows = self._manifest
        return {name: table[name][rows[shard]].as_py() for name in manifest.SCHEMA.names}


class DatasetVerifier:
    def __init__(self, task: VerifyTask) -> None:
        self.task = task
        names = task.stages if "base" in task.stages else ("base", *task.stages)
        self.stages = {n: Stage(task.dataset, n) for n in names}
        self.reported = set(task.stages)
        self.attributes = vocabulary_size(task.dataset)

    def look(self, shard: str) -> dict[str, Any]:
        found = Findings()
        markers = {n: m for n, stage in self.stages.items() if (m := self._marker(stage, shard, found)) is not None}
        base, samples = Base(None, attributes=self.attributes), 0
        if "base" in markers:
            base = self._base(shard, markers, found if "base" in self.reported else Findings())
            samples = markers["base"].samples
        for name in sorted(markers, key=lambda n: (n != "regions", n)):  # pairs are held against regions
            if name != "base":
                self._sidecar(self.stages[name], markers, base, found)
        size = sum(o.bytes for n, m in markers.items() if n in self.reported for o in m.outputs)
        return {"findings": found.to_json(), "samples": samples, "bytes": size}

    def _marker(self, stage: Stage, shard: str, found: Findings) -> Marker | None:
        """A marker that is readable and bound to this folder; its files are as it says."""
        store, name = stage.folder.store, shard + SUFFIX
        if not store.exists(name):
            return None
        place = store.path(name)
        report = found if stage.name in self.reported else Findings()
        try:
            data = store.read(name)
            marker = read_marker(data, place)
        except ShardError as error:
            report.add(
                "error",
                "damaged marker",
                place,
                expected="a marker",
                found=error,
                remedy="remove the marker and run the stage again: the shard is redone",
            )
            return None
        checks = [("shard", shard, marker.shard), ("stage", stage.name, marker.stage)]
        if stage.config is not None:
            checks.append(("fingerprint", stage.bound, marker.fingerprint))
            if "docmnist" in stage.config and stage.name in ("base", "truth"):
                checks.append(("input_digest", stage.bound, marker.input_digest))
        for field, expected, said in checks:
            if said != expected:
                kind = "another config" if field in ("fingerprint", "input_digest") else "marker differs"
                report.add("error", kind, f"{place} {field}", expected=expected, found=said, remedy=REDO)
        if data != marker.to_bytes():
            report.add(
                "error",
                "damaged marker",
                place,
                expected="JSON as this version writes it",
                found="other bytes of the same content",
                remedy=REDO,
            )
        self._outputs(stage, marker, place, report)
        theirs = stage.listed(shard)
        for field, expected in marked.row_of(marker).items() if theirs is not None else ():
            if theirs is not None and expected != theirs[field]:
                report.add(
                    "error",
                    "manifest differs",
                    f"{store.path(manifest.NAME)} shard {shard} {field}",
                    expected=expected,
                    found=theirs[field],
                    remedy="remove the manifest and run the stage again: it is made from the markers",
                )
        return marker

    def _outputs(self, stage: Stage, marker: Marker, place: str, found: Findings) -> None:
        """The names of a marker's outputs, and the sizes of its files; contents are looked at where they are read."""
        wanted = {f"{marker.shard}.tar", f"{marker.shard}.idx"} if stage.name == "base" else {f"{marker.shard}.parquet"}
        refusals = f"quarantine/{marker.shard}.parquet"
        if any(marker.refused.values()):
            wanted.add(refusals)
        listed = [o.file for o in marker.outputs]
        known = stage.name == "base" or stage.name in SCHEMAS or set(listed) & wanted
        if known and sorted(listed) != sorted(wanted):
            found.add(
                "error",
                "marker differs",
                f"{place} outputs",
                expected=sorted(wanted),
                found=sorted(listed),
                remedy=REDO,
            )
        pattern = ATTEMPT.format(shard=re.escape(marker.shard))
        folders = {o.attempt.removesuffix(o.file) for o in marker.outputs}
        odd = [
            o.attempt
            for o in marker.outputs
            if not o.attempt.endswith("/" + o.file) or not re.match(pattern, o.attempt)
        ]
        if odd or len(folders) > 1:
            found.add(
                "error",
                "marker differs",
                f"{place} attempt",
                expected=f".attempts/{marker.shard}.…/<file>, one folder",
                found=odd or sorted(folders),
                remedy=REDO,
            )
        if refusals not in listed and stage.folder.store.exists(refusals):
            found.add(
                "warning",
                "unclaimed file",
                stage.folder.store.path(refusals),
                expected="a marker that names it",
                found="one that does not",
                remedy="it is never read; remove it",
            )
        for output in marker.outputs:
            if output.file == refusals:
                self._quarantine(stage, marker, output, found)

    def _quarantine(self, stage: Stage, marker: Marker, output: Output, found: Findings) -> None:
        data, place = read_output(stage.folder, output, found)
        table = read_table(data, place, sidecar.QUARANTINE, found) if data is not None else None
        if table is None:
            return
        counted = dict(Counter(table["reason"].to_pylist()))
        if counted != {k: v for k, v in marker.refused.items() if v}:
            found.add("error", "conservation", place, expected=dict(marker.refused), found=counted, remedy=REDO)
        total = SampleDigest()
        try:
            for text in table["digest"].to_pylist():
                total.add(int(text, 16))
        except ValueError:
            total = SampleDigest()
        if marker.refused_digest and total.hex != marker.refused_digest:
            found.add(
                "error", "conservation", f"{place} digest", expected=marker.refused_digest, found=total.hex, remedy=REDO
            )

    def _base(self, shard: str, markers: dict[str, Marker], found: Findings) -> Base:
        """Check a base shard's content. Returns what its sidecars are held against."""
        stage, marker = self.stages["base"], markers["base"]
        store, named = stage.folder.store, {o.file: o for o in marker.outputs}
        tar, idx = named.get(f"{shard}.tar"), named.get(f"{shard}.idx")
        walked: Walked | None = None
        if tar is not None and (name := located(stage.folder, tar, found)):
            limit = (stage.config or {}).get("max_pixels", MAX_PIXELS)
            boxes = any(n in SCHEMAS for n in markers)
            with open_tar(store, name) as (view, file):
                place = store.path(name)
                check_bytes(place, tar, len(view), sha256_of(view), found)
                walked = walk_tar(
                    view, file, place, found, ours=True, deep=self.task.deep, sizes=boxes, max_pixels=limit
                )
            check_base_marker(marker, walked, store.path(shard + SUFFIX), found, hashed=bool(tar.sha256))
        if idx is not None:
            data, place = read_output(stage.folder, idx, found)
            table = read_index(data, place, found, REDO) if data is not None else None
            if table is not None and walked is not None:
                check_index(table, walked, place, found, REDO)
        if tar is None or walked is None:
            return Base(None, attributes=self.attributes)
        return Base(walked.keys, walked.sizes, tar.sha256, self.attributes)

    def _sidecar(self, stage: Stage, markers: dict[str, Marker], base: Base, found: Findings) -> None:
        report = found if stage.name in self.reported else Findings()
        marker = markers[stage.name]
        place = stage.folder.store.path(marker.shard + SUFFIX)
        check_sidecar_marker(marker, markers.get("base"), base, place, report)
        output = next((o for o in marker.outputs if o.file == f"{marker.shard}.parquet"), None)
        if output is None:
            return
        data, where = read_output(stage.folder, output, report)
        table = read_table(data, where, SCHEMAS.get(stage.name), report) if data is not None else None
        if table is None:
            return
        try:
            counted = check_sidecar(table, stage.name, base, where, report)
        except (ShardError, pa.ArrowException, ValueError, TypeError, AttributeError, IndexError) as error:
            report.add("error", "unreadable sidecar", where, expected="columns of a sidecar", found=error, remedy=REDO)
            return
        base.counts[stage.name] = counted
        check_counts(marker, counted, base, place, report)


def vocabulary_size(dataset: str) -> int | None:
    """Attributes of the vocabulary in the run's folder, the one above the data set; None where there is none."""
    store = Store(dataset.rstrip("/").rpartition("/")[0] or ".")
    if not store.exists("vocabulary.parquet"):
        return None
    try:
        ids = sidecar.from_bytes(store.read("vocabulary.parquet"), "", pa.schema([("attribute", pa.int32())]))[
            "attribute"
        ]
    except ShardError:
        return None  # the driver reports it
    return len(ids)
