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
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from shards.errors import StorageFullError, storage_errors
from shards.store import fsync_folder
from villa_dist.observe import LOG

MARKER = "villa.json"
PREFIX = "step-"


@dataclass(frozen=True)
class TrainState:
    """Where training stands: `step` global batches of the stream named by the other fields are in the weights."""

    step: int
    seed: int
    batch_images: int
    manifest: str  # digest of the data's manifest
    fingerprint: str  # of the job's config


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
        content = json.loads(marker.read_text(encoding="utf-8"))
        recorded = content.pop("sha256")
        state, files = TrainState(**content["state"]), dict(content["files"])
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
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


@contextmanager
def save_errors(place: str) -> Iterator[None]:
    """`storage_errors` for torch.save, whose writer reports a full disk as a RuntimeError of its own."""
    try:
        with storage_errors(place):
            yield
    except RuntimeError as error:
        if not any(said in str(error) for said in ("inline_container", "PytorchStreamWriter", "file write failed")):
            raise
        raise StorageFullError(
            f"the checkpoint {place} could not be written whole, as when no space is left on the device: the one before it "
            "stays; free some space and run the same command again"
        ) from error


def writers(folder: Path) -> int:
    """How many workers wrote a checkpoint under ZeRO; 0 where that cannot be told."""
    return len(list(folder.glob("*optim_states.pt")))


def prune(folder: Path, keep: int) -> None:
    """Remove all but the newest `keep` whole checkpoints, and torn ones older than those. Markers go first."""
    sealed = sorted(p for p in folder.glob(f"{PREFIX}*") if (p / MARKER).is_file())
    if len(sealed) < keep:
        return
    oldest_kept = sealed[-keep:][0].name
    for path in folder.glob(f"{PREFIX}*"):
        if path.name < oldest_kept:
            (path / MARKER).unlink(missing_ok=True)
            shutil.rmtree(path, ignore_errors=True)
