"""Errors a user can act on.

Every message names the value, the place and the remedy. The command line prints the message
alone, without a traceback, and exits with `exit_code`.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager


class VillaError(Exception):
    """A mistake in what was given, or a state of the data, that the user can mend."""

    exit_code = 2


class ShardError(VillaError):
    """A shard, sidecar, marker or manifest is missing, damaged or out of step with its neighbours."""


class StaleStageError(VillaError):
    """A stage holds output of another config or model; mixing the two is refused."""


class BudgetError(VillaError):
    """More samples were refused than `max_quarantine_fraction` allows."""

    exit_code = 3


class StorageFullError(VillaError):
    """The device under the run's folder has no space left."""

    exit_code = 4


@contextmanager
def storage_errors(place: str) -> Iterator[None]:
    """Turn "no space", "read-only" and "not permitted" from the system into errors that name `place`."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StorageFullError(
                f"no space left on the device while writing {place}: nothing partial is visible and what was "
                "committed stays; free some space (or move `run` to another disk) and run the same command again"
            ) from error
        if error.errno == errno.EFBIG:
            raise StorageFullError(
                f"{place} grows over the largest size a file may have here; raise the limit (ulimit -f) and run the same "
                "command again"
            ) from error
        if error.errno in (errno.ENOTDIR, errno.EEXIST, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG):
            raise VillaError(f"cannot write {place}: {error.strerror}; set `run` to another folder") from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise VillaError(
                f"cannot write {place}: {error.strerror}; give this user write access or set `run` to another folder"
            ) from error
        raise
