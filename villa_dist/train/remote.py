"""Copies of checkpoints on an object store: uploaded by a thread while training goes on, fetched where none is local.

<checkpoint_copy>/<job>-<fingerprint>/step-00000400/…       the files, then villa.json last, created exclusively
"""

from __future__ import annotations

import hashlib
import os
import shutil
import threading
import time
from pathlib import Path
from typing import Any

from shards.errors import ShardError, VillaError, storage_errors
from shards.retry import GaveUp
from shards.store import Store, fsync_folder
from villa_dist.observe import LOG, duration
from villa_dist.train import checkpoint
from villa_dist.train.checkpoint import MARKER, PREFIX, TrainState

FETCHED = ".fetch-"
TROUBLE = (VillaError, OSError)


def place_of(url: str, job: str, fingerprint: str) -> Store:
    """Where the copies of a job are: a config that changes what is trained has a folder of its own."""
    return Store(f"{url.rstrip('/')}/{job}-{fingerprint[:16]}")


class Copies:
    """Uploads of rank 0. A checkpoint that is offered while another is on its way waits; of those that wait, the newest is
    sent. Trouble is told and training goes on."""

    def __init__(self, store: Store, keep: int, best: str | None) -> None:
        self.store, self.keep, self.best = store, keep, best
        self._lock = threading.Condition()
        self._waiting: Path | None = None
        self._now: Path | None = None
        self._ended = False
        self._thread = threading.Thread(target=self._work, name="villa-copies", daemon=True)
        self._thread.start()

    @property
    def busy(self) -> set[str]:
        """Tags of checkpoints that are not to be removed yet."""
        with self._lock:
            return {p.name for p in (self._waiting, self._now) if p is not None}

    def offer(self, folder: Path) -> None:
        """Have a sealed checkpoint copied."""
        with self._lock:
            if self._waiting is not None:
                LOG.info("checkpoint %s is not copied: a newer one is there before its turn came", self._waiting.name)
            self._waiting = folder
            self._lock.notify_all()

    def close(self) -> None:
        """Wait until what was offered last is sent, or has failed."""
        with self._lock:
            self._ended = True
            if self._waiting is not None or self._now is not None:
                LOG.info("waiting for the copy of the last checkpoint to %s", self.store.shown())
            self._lock.notify_all()
        self._thread.join()

    def _work(self) -> None:
        while True:
            with self._lock:
                while self._waiting is None and not self._ended:
                    self._lock.wait()
                if self._waiting is None:
                    return
                self._now, self._waiting = self._waiting, None
            try:
                self._send(self._now)
            except TROUBLE as error:
                LOG.warning(
                    "checkpoint %s could not be copied to %s: %s; training goes on, and the next one is tried again",
                    *(self._now.name, self.store.shown(), error),
                )
            finally:
                with self._lock:
                    self._now = None

    def _send(self, folder: Path) -> None:
        began, sent = time.monotonic(), 0
        upload(self.store, folder)
        sent = sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())
        prune(self.store, self.keep, self.best)
        seconds = time.monotonic() - began
        LOG.info("checkpoint %s is copied (%.1f MB in %s)", folder.name, sent / 1e6, duration(seconds))


def upload(store: Store, folder: Path) -> None:
    """Copy a sealed checkpoint; visible as whole when all of it is there."""
    marker = (folder / MARKER).read_bytes()
    name = f"{folder.name}/{MARKER}"
    standing = store.find(name)
    if standing == marker:
        return
    if standing is not None:  # of the same step, written again after a fall back
        store.remove(name)
    _, files = checkpoint.parse_marker(marker)
    for file in sorted(files):
        store.upload(str(folder / file), f"{folder.name}/{file}")
    if not store.put_if_absent(name, marker):
        raise VillaError(f"{store.shown(name)} was written by another; is the same job training twice?")


def sealed(store: Store) -> dict[str, TrainState]:
    """State of each whole remote checkpoint, by its tag."""
    found = {}
    for tag in store.folders():
        data = store.find(f"{tag}/{MARKER}") if tag.startswith(PREFIX) else None
        if data is None:
            continue
        try:
            found[tag] = checkpoint.parse_marker(data)[0]
        except ValueError as error:
            LOG.warning("the copy %s is passed over: %s", store.shown(tag), error)
    return found


def prune(store: Store, keep: int, best: str | None) -> None:
    """Remove copies as local checkpoints are removed, markers first, and what uploads that were cut off have left."""
    states = sealed(store)
    stays = checkpoint.kept(states, keep, best)
    last = max(states, default="")
    for tag in store.folders():
        if tag.startswith(PREFIX) and tag not in stays and tag < last:
            store.remove(f"{tag}/{MARKER}")
            store.remove(tag, recursive=True)


def fetch_newest(store: Store, folder: Path) -> None:
    """Bring the newest whole copy into `folder`, where that holds none as new. A copy that is damaged is told, and the one
    before it is taken."""
    try:
        states = sealed(store)
        newest = checkpoint.newest(folder) if states else None
        here = newest[1].step if newest else 0
        for tag in sorted(states, reverse=True):
            if states[tag].step <= here:
                return
            try:
                _fetch(store, tag, folder)
            except (ShardError, ValueError, FileNotFoundError) as error:
                LOG.warning("the copy %s is passed over: %s", store.shown(tag), error)
                continue
            LOG.info("fetched checkpoint %s from %s", tag, store.shown())
            return
    except (GaveUp, OSError) as error:
        raise VillaError(
            f"the copies of checkpoints in {store.shown()} cannot be read: {error}; mend the access, or set "
            "checkpoint_copy to null to go on from what is here"
        ) from error


def _fetch(store: Store, tag: str, folder: Path) -> None:
    """Raises: ShardError when a file is not as the marker recorded it."""
    temporary = folder / f"{FETCHED}{tag}"
    shutil.rmtree(temporary, ignore_errors=True)
    marker = store.read(f"{tag}/{MARKER}")
    _, files = checkpoint.parse_marker(marker)
    try:
        for name, expected in files.items():
            if Path(name).is_absolute() or ".." in Path(name).parts:
                raise ShardError(f"its marker names {name!r}, which lies outside it")
            _fetch_file(store, f"{tag}/{name}", temporary / name, expected)
        with storage_errors(str(temporary)):
            (temporary / MARKER).write_bytes(marker)
            checkpoint.remove(folder / tag)
            os.replace(temporary, folder / tag)
            fsync_folder(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _fetch_file(store: Store, name: str, path: Path, expected: dict[str, Any]) -> None:
    digest = hashlib.sha256()
    with storage_errors(str(path)):
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "wb") as file:
            for block in store.blocks(name, expected["bytes"]):
                digest.update(block)
                file.write(block)
            file.flush()
            os.fsync(file.fileno())
    if digest.hexdigest() != expected["sha256"]:
        raise ShardError(f"{store.shown(name)} does not have the content its marker recorded")
