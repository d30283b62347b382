"""One driver a run: a lock on the run's folder."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from shards.errors import VillaError, storage_errors
from shards.store import Store


def lock(run: str) -> object:
    """Hold a local run's folder against a second driver; released when the process ends, however it ends.

    Raises: VillaError naming the process that holds it.
    """
    store = Store(run)
    if not store.local:
        return None
    path = Path(store.path(".lock"))
    with storage_errors(str(path.parent)):
        path.parent.mkdir(parents=True, exist_ok=True)
    with storage_errors(str(path)):
        handle = open(path, "a+", encoding="utf-8")  # noqa: SIM115  held until the process ends
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        handle.seek(0)
        raise VillaError(
            f"another villa process ({handle.read().strip() or 'unknown pid'}) is working on {store.path()}; wait for "
            "it, stop it, or set `run` to another folder"
        ) from None
    handle.truncate(0)
    handle.write(f"pid {os.getpid()}")
    handle.flush()
    return handle
