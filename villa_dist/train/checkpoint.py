"""Checkpoints that are whole or do not exist.

DeepSpeed writes `<job>/checkpoints/step-00000400/` in place and without a barrier; a crash in the middle leaves a torn
folder. Ours is complete only when `villa.json` stands in it, written last, with the size and sha256 of every file.
`latest` is derived: the newest folder whose marker and digests hold. A torn newest one falls back to the one before.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from shards.errors import StorageFullError, storage_errors
from shards.store import fsync_folder
from villa_dist.observe import LOG

MARKER = "villa.json"
PREFIX = "step-"


@dataclass(frozen=True)
class TrainState:
    """Where training stands: `step` global batches of the stream named by the other fields are in the weights.

    world: ranks that wrote it; 0 where that was not recorded. measured: what was known of it when it was saved.
    """

    step: int
    seed: int
    batch_images: int
    manifest: str  # digest of the data's manifest
    fingerprint: str  # of the job's config
    world: int = 0
    measured: dict[str, float] = field(default_factory=dict)


def tag(step: int) -> str:
    return f"{PREFIX}{step:08d}"


def seal(folder: Path, state: TrainState) -> None:
    """Flush every file of a checkpoint and write its marker. Called by one rank, after a barrier."""
    files = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file() and not p.name.startswith(MARKER)):
        with storage_errors(str(path)), open(path, "rb+") as f:
            os.fsync(f.fileno())
        files[str(path.relative_to(folder))] = {"bytes": path.stat().st_size, "sha256": file_sha256(path)}
    content = {"state": asdict(state), "files": files}
    body = json.dumps({**content, "sha256": canonical_sha256(content)}, indent=1, sort_keys=True)
    temporary = folder / (MARKER + ".tmp")
    with storage_errors(str(temporary)):
        with open(temporary, "w", encoding="utf-8") as f:
            f.write(body)
            f.flush()
            os.fsync(f.fileno())
        os.replace(temporary, folder / MARKER)
        fsync_folder(folder)


def file_sha256(path: Path) -> str:
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else _sha256(f.read())


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def canonical_sha256(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def read_marker(folder: Path) -> tuple[TrainState, dict[str, dict[str, Any]]]:
    """(state, files) of a checkpoint's marker. Raises: ValueError saying what is wrong with it."""
    marker = folder / MARKER
    if not marker.is_file():
        raise ValueError("it has no marker: the save was cut off")
    try:
        return parse_marker(marker.read_bytes())
    except OSError as error:
        raise ValueError(f"its marker is damaged ({error})") from error


def parse_marker(data: bytes) -> tuple[TrainState, dict[str, dict[str, Any]]]:
    """Raises: ValueError saying what is wrong with it."""
    try:
        content = json.loads(data)
        recorded = content.pop("sha256")
        state, files = TrainState(**content["state"]), dict(content["files"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"its marker is damaged ({error})") from error
    if recorded != canonical_sha256(content):
        raise ValueError("its marker is damaged (it does not have its own digest)")
    return state, files


def problem(folder: Path) -> str:
    """Why a checkpoint cannot be trusted; an empty string for a whole one."""
    try:
        _, files = read_marker(folder)
    except ValueError as error:
        return str(error)
    for name, expected in files.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != expected["bytes"] or file_sha256(path) != expected["sha256"]:
            return f"{name} does not have the content its marker recorded"
    return ""


def newest(folder: Path) -> tuple[Path, TrainState] | None:
    """The newest whole checkpoint. Torn ones are passed over, and named in the log."""
    for candidate in sorted(folder.glob(f"{PREFIX}*"), reverse=True):
        trouble = problem(candidate)
        if trouble:
            LOG.warning(
                "checkpoint %s is passed over: %s; the one before it is used, if there is one", candidate, trouble
            )
            continue
        return candidate, read_marker(candidate)[0]
    return None


def reached(folder: Path) -> int:
    """The step of the newest checkpoint that has a marker, without a look at its files; 0 where there is none."""
    steps = [p.parent.name.removeprefix(PREFIX) for p in folder.glob(f"{PREFIX}*/{MARKER}")]
    return max((int(s) for s in steps if s.isdigit()), default=0)


@contextmanager
def save_errors(place: str) -> Iterator[None]:
    """`storage_errors` for torch.save, whose writer reports a full disk as a RuntimeError of its own."""
    try:
        with storage_errors(place):
            yield
    except RuntimeError as error:
        if not any(
            said in str(error) for said in ("inline_container", "PytorchStreamWriter", "file write failed", "iostream")
        ):
            raise
        raise StorageFullError(
            f"the checkpoint {place} could not be written whole, as when no space is left on the device: the one before it "
            "stays; free some space and run the same command again"
        ) from error


def writers(folder: Path, state: TrainState) -> int:
    """How many ranks wrote a checkpoint; 0 where it does not matter: without ZeRO one file holds all."""
    files = len(list(folder.glob("*optim_states.pt")))
    return state.world or files if files else 0


def kept(states: Mapping[str, TrainState], keep: int, best: str | None) -> set[str]:
    """Which of some checkpoints, by their tags, stay: the newest `keep`, and the best by a metric they were saved with.

    A metric whose name holds "loss" is better when it is lower, any other when it is higher; of equals the later one.
    """
    stays = set(sorted(states)[-keep:])
    ranked = [(s.measured[best], name) for name, s in states.items() if best is not None and best in s.measured]
    if ranked:
        sign = -1.0 if "loss" in str(best) else 1.0
        stays.add(max((sign * value, name) for value, name in ranked)[1])
    return stays


def prune(folder: Path, keep: int, best: str | None = None, spare: Collection[str] = ()) -> None:
    """Remove all but the newest `keep` whole checkpoints, the best one and those in `spare` (in use), and torn ones older
    than the newest. Markers go first."""
    sealed = {p.name: _state(p) for p in folder.glob(f"{PREFIX}*") if (p / MARKER).is_file()}
    stays = kept({name: state for name, state in sealed.items() if state}, keep, best)
    stays |= set(sorted(sealed)[-keep:]) | set(spare)
    if len(sealed) < keep:
        return
    oldest_kept = sorted(sealed)[-keep:][0]
    for path in folder.glob(f"{PREFIX}*"):
        if path.name < oldest_kept and path.name not in stays:
            remove(path)


def _state(folder: Path) -> TrainState | None:
    try:
        return read_marker(folder)[0]
    except ValueError:
        return None


def remove(folder: Path) -> None:
    """Remove a checkpoint, its marker first, so that what a crash leaves of it is not taken for whole."""
    (folder / MARKER).unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)
