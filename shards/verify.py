"""`villa shards verify`: is a data set what its markers say, and are its parts in step? Nothing is written into it.

The driver looks at each stage as a whole (claim, manifest, listing, what crashes left); shards are units of work.
Memory: names of shards, and findings capped per kind.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from shards import manifest, sidecar
from shards.commit import ATTEMPTS, SUFFIX, StageFolder
from shards.errors import ShardError, VillaError
from shards.findings import Findings
from shards.gather import Task, gather
from shards.places import Place, folders, look_at
from shards.store import Store
from shards.verify_shard import VerifyTask
from shards.verify_sidecar import REDO
from shards.verify_tars import VerifyTarsTask
from shards.work import RunUnits

REBUILD = "remove the manifest and run the stage again: it is made from the markers"
RESUME = "run the stage again: it does what is missing"


@dataclass
class Verified:
    place: Place
    shards: int
    samples: int = 0
    bytes: int = 0
    findings: Findings = field(default_factory=Findings)


def verify(
    path: str,
    run: RunUnits,
    *,
    deep: bool = False,
    scratch: str | None = None,
    progress: Callable[[int], None] = lambda total: None,
) -> Verified:
    """Verify what lies at `path`. progress: called with the number of units, then with 0 for each unit done.

    Raises: VillaError when `path` holds nothing to verify.
    """
    place = look_at(path)
    whole = Findings()
    if place.kind == "tars":
        units: Sequence[str] = place.tars
        task: Task = VerifyTarsTask(place.url, deep)
    else:
        units = check_stages(place, whole)
        task = VerifyTask(place.url, place.stages, deep)
    verified = Verified(place, len(units), findings=whole)
    progress(len(units))

    def take(unit: str, result: dict[str, Any]) -> None:
        verified.findings.merge(Findings.from_json(result["findings"]))
        verified.samples += result["samples"]
        verified.bytes += result["bytes"]
        progress(0)

    gather(run, task, units, take, scratch)
    return verified


def check_stages(place: Place, found: Findings) -> list[str]:
    """What holds for stages as a whole. Returns the names of all shards that have a marker in one of them."""
    shards: dict[str, list[str]] = {}
    for name in place.stages:
        folder = StageFolder(place.url, name)
        shards[name] = folder.shards_done()
        _check_claim(folder, found)
        _check_manifest(folder, shards[name], found)
        _check_leftovers(folder, set(shards[name]), found)
    if place.kind == "dataset":
        _check_same_shards(place, shards, found)
        _check_vocabulary(place.url, found)
    return sorted({s for names in shards.values() for s in names})


def _check_claim(folder: StageFolder, found: Findings) -> None:
    try:
        config = folder.claimed()
    except (VillaError, RecursionError) as error:
        found.add(
            "error",
            "damaged config",
            folder.store.path("config.json"),
            expected="a JSON object",
            found=error,
            remedy=REDO,
        )
        return
    if config is None:
        found.add(
            "warning",
            "no config",
            folder.store.path("config.json"),
            expected="the config the stage is bound to",
            found="no file",
            remedy=REDO,
        )


def _check_manifest(folder: StageFolder, shards: list[str], found: Findings) -> None:
    """Shards and their order here; row against marker is looked at shard by shard."""
    place = folder.store.path(manifest.NAME)
    if not manifest.exists(folder):
        found.add(
            "warning",
            "no manifest",
            place,
            expected="one, as in a complete stage",
            found=f"{len(shards)} markers",
            remedy=RESUME,
        )
        return
    try:
        data = folder.store.read(manifest.NAME)
        table = sidecar.from_bytes(data, place, manifest.SCHEMA)
        manifest.read(folder)
    except ShardError as error:
        found.add("error", "damaged manifest", place, expected="a manifest", found=error, remedy=REBUILD)
        return
    listed = table["shard"].to_pylist()
    if listed != sorted(set(listed)) or table.column_names != manifest.SCHEMA.names:
        found.add(
            "error", "manifest differs", place, expected="each shard once, in order", found=listed, remedy=REBUILD
        )
    there, done = set(listed), set(shards)
    for shard in sorted(there - done):
        found.add(
            "error",
            "missing marker",
            folder.store.path(shard + SUFFIX),
            expected="a marker, as the manifest lists the shard",
            found="no file",
            remedy=RESUME,
        )
    for shard in sorted(done - there):
        found.add(
            "error",
            "manifest differs",
            f"{place} shard {shard}",
            expected="a row, as there is a marker",
            found="none",
            remedy=REBUILD,
        )
    if data != sidecar.to_bytes(pa.table(table.columns, schema=manifest.SCHEMA)) and _same_writer(data):
        found.add(
            "note",
            "manifest of another writer",
            place,
            expected="bytes as this version writes the same rows",
            found="others",
            remedy=REBUILD,
        )


def _same_writer(data: bytes) -> bool:
    """Whether this version of pyarrow wrote a file, so that equal tables are equal bytes."""
    return f"parquet-cpp-arrow version {pa.__version__}".encode() in data


def _check_leftovers(folder: StageFolder, shards: set[str], found: Findings) -> None:
    """What a crash left: orphaned attempts, attempts committed and not yet moved, temporaries, files without a marker."""
    store = folder.store
    for attempt in folders(store, ATTEMPTS):
        shard = attempt.split(".", 1)[0]
        place = store.path(f"{ATTEMPTS}/{attempt}")
        try:
            mine = shard in shards and any(
                o.attempt.startswith(f"{ATTEMPTS}/{attempt}/") for o in folder.marker(shard).outputs
            )
        except ShardError:
            mine = True
        expected = "its files under their final names" if mine else "nothing"
        kind = "half-moved attempt" if mine else "orphaned attempt"
        remedy = "the stage's next run moves it" if mine else "the stage's next run collects it"
        found.add("note", kind, place, expected=expected, found="a folder", remedy=remedy)
    for name in store.list(""):
        if name.startswith("."):
            found.add(
                "note",
                "temporary file",
                store.path(name),
                expected="nothing",
                found="a file",
                remedy="the stage's next run collects it",
            )
        elif name not in ("config.json", manifest.NAME) and name.removesuffix(SUFFIX).split(".", 1)[0] not in shards:
            found.add(
                "warning",
                "unclaimed file",
                store.path(name),
                expected=f"a marker {name.split('.', 1)[0]}{SUFFIX}",
                found="none",
                remedy=RESUME,
            )


def _check_same_shards(place: Place, shards: dict[str, list[str]], found: Findings) -> None:
    base = set(shards.get("base", ()))
    if "base" not in shards:
        found.add(
            "error", "no base", place.url, expected="a stage base/", found=", ".join(place.stages), remedy="restore it"
        )
    for name in place.stages:
        folder = StageFolder(place.url, name)
        mine = set(shards[name])
        if name == "base":
            continue
        for shard in sorted(mine - base):
            found.add(
                "error",
                "no base shard",
                folder.store.path(shard + SUFFIX),
                expected=f"base/{shard}.tar",
                found="no marker there",
                remedy=REDO,
            )
        missing = sorted(base - mine)
        if missing:
            severity = "error" if manifest.exists(folder) else "warning"
            found.add(
                severity,
                "incomplete stage",
                folder.store.path(),
                expected=f"{len(base)} shards, as in base",
                found=f"{len(missing)} missing, such as {missing[0]}",
                remedy=RESUME,
            )


def _check_vocabulary(dataset: str, found: Findings) -> None:
    store = Store(dataset.rpartition("/")[0] or ".")
    if not store.exists("vocabulary.parquet"):
        return
    place = store.path("vocabulary.parquet")
    schema = pa.schema([("attribute", pa.int32()), ("phrase", pa.string())])
    try:
        ids = sidecar.from_bytes(store.read("vocabulary.parquet"), place, schema)["attribute"].to_pylist()
    except ShardError as error:
        found.add(
            "error",
            "damaged vocabulary",
            place,
            expected="a vocabulary",
            found=error,
            remedy="redo the vocabulary stage",
        )
        return
    if ids != list(range(len(ids))):
        found.add(
            "error",
            "damaged vocabulary",
            place,
            expected="ids from 0, in order",
            found=ids,
            remedy="redo the vocabulary stage",
        )
