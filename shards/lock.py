"""One driver a folder: a lock on a run's folder, or on a data set that is written."""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path
from typing import TextIO

from shards.errors import VillaError, storage_errors
from shards.store import Store

NAME = ".lock"


class Lock:
    """A folder held against a second driver, until `release` or the end of the process, however it ends."""

    def __init__(self, path: Path, handle: TextIO) -> None:
        self.path, self.handle = path, handle

    def release(self) -> None:
        """Give the folder back, without a trace. Who waits for the file that is removed here looks at it anew."""
        self.path.unlink(missing_ok=True)
        self.handle.close()


def lock(folder: str, instead: str) -> Lock | None:
    """Hold a local folder; None on an object store or a file system without locks, where nothing is.

    instead: what to do in place of waiting, for the message. Raises: VillaError naming the process that holds it.
    """
    store = Store(folder)
    if not store.local:
        return None
    path = Path(store.path(NAME))
    with storage_errors(str(path.parent)):
        path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        with storage_errors(str(path)):
            handle = open(path, "a+", encoding="utf-8")  # noqa: SIM115  held by whom it is given to
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):  # a file system without locks
                handle.close()
                return None
            handle.seek(0)
            raise VillaError(
                f"another villa process ({handle.read().strip() or 'unknown pid'}) is working on {store.path()}; wait for "
                f"it, stop it, or {instead}"
            ) from None
        if path.exists() and os.path.samestat(os.fstat(handle.fileno()), os.stat(path)):
            break
        handle.close()  # it was removed by the one who held it
    handle.truncate(0)
    handle.write(f"pid {os.getpid()}")
    handle.flush()
    return Lock(path, handle)
