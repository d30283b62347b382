"""A file that is written once, front to back, and is on the disk when it is closed."""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Iterator, Sequence
from typing import BinaryIO

from shards.errors import ShardError, storage_errors

ALIGNED = 4096  # what a file system may want of a write that goes past its cache
SECTOR = 512  # what a disk wants of each part of it
DIRECT_FROM = 1 << 20  # bytes of a write that are worth it
BATCH_BYTES, BATCH_VIEWS = 8 << 20, 1000  # of one system call; IOV_MAX is 1024
_DIRECT = getattr(os, "O_DIRECT", 0)
_UNABLE = (errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS)


class HashingFile:
    """A binary file that counts and (if `hashed`) hashes what is written, and is on the disk when closed.

    direct: large runs of `write_views` go from the mapped source to the disk without a copy in memory, where the file system
    can; for files that are not read again soon, since nothing of them is left in the page cache.
    """

    def __init__(self, path: str, *, hashed: bool = True, direct: bool = False) -> None:
        self._file: BinaryIO = open(path, "wb", buffering=1 << 20)  # noqa: SIM115
        self._hash = hashlib.sha256() if hashed else None
        self._direct = direct and bool(_DIRECT)
        self.path = path
        self.bytes = 0

    def write(self, data: bytes | memoryview) -> int:
        with storage_errors(self.path):
            self._file.write(data)
        if self._hash is not None:
            self._hash.update(data)
        self.bytes += len(data)
        return len(data)

    def write_views(self, views: Sequence[memoryview]) -> None:
        """Append bytes of mapped files. Raises: ShardError when one of those was cut meanwhile."""
        if self._hash is not None:
            for view in views:
                self._hash.update(view)
        first, end = self.bytes, self.bytes + sum(len(v) for v in views)
        low, high = _up(first), _up(end + 1) - ALIGNED
        with storage_errors(self.path):
            try:
                self._file.flush()
                if self._direct and high - low >= DIRECT_FROM and not any(len(v) % SECTOR for v in views):
                    self._put(cut(views, 0, low - first), first)
                    self._put_direct(cut(views, low - first, high - first), low)
                    self._put(cut(views, high - first, end - first), high)
                else:
                    self._put(views, first)
                self._file.seek(end)
            except OSError as error:
                if error.errno == errno.EFAULT:
                    raise ShardError(f"a source was cut while it was copied to {self.path}; restore it") from error
                raise
        self.bytes = end

    def _put(self, views: Sequence[memoryview], at: int) -> None:
        """At byte `at`, through the page cache."""
        done = 0
        for part in batches(views, 1):
            count = os.pwritev(self._file.fileno(), part, at + done)
            done += count
            if count < sum(len(v) for v in part):
                self._put(cut(views, done, None), at + done)
                return

    def _put_direct(self, views: Sequence[memoryview], at: int) -> None:
        """At byte `at`, past the page cache; what the file system does not take so goes through it."""
        done = 0
        try:
            handle = os.open(self.path, os.O_WRONLY | _DIRECT)
        except OSError as error:
            if error.errno not in _UNABLE:
                raise
            handle = -1
        try:
            for part in batches(views, ALIGNED) if handle >= 0 else ():
                count = os.pwritev(handle, part, at + done)
                done += count
                if count < sum(len(v) for v in part):
                    break
        except OSError as error:
            if error.errno not in _UNABLE:
                raise
            self._direct = False
        finally:
            if handle >= 0:
                os.close(handle)
        self._put(cut(views, done, None), at + done)

    def tell(self) -> int:
        return self.bytes

    def flush(self) -> None:
        with storage_errors(self.path):
            self._file.flush()

    def writable(self) -> bool:
        return True

    def readable(self) -> bool:
        return False

    def seekable(self) -> bool:
        return False

    @property
    def closed(self) -> bool:
        return self._file.closed

    def close(self) -> None:
        if self._file.closed:
            return
        with storage_errors(self.path):
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()

    @property
    def sha256(self) -> str:
        return self._hash.hexdigest() if self._hash is not None else ""


def _up(at: int) -> int:
    return -(-at // ALIGNED) * ALIGNED


def cut(views: Sequence[memoryview], low: int, high: int | None) -> list[memoryview]:
    """Bytes [low, high) of views laid end to end; None: to the end."""
    found, at = [], 0
    for view in views:
        stop = len(view) if high is None else min(high - at, len(view))
        part = view[max(low - at, 0) : max(stop, 0)]
        if len(part):
            found.append(part)
        at += len(view)
    return found


def batches(views: Sequence[memoryview], aligned: int) -> Iterator[list[memoryview]]:
    """Views cut into what one system call takes, each but the last a multiple of `aligned` bytes."""
    at, skip = 0, 0
    while at < len(views):
        part: list[memoryview] = []
        size = 0
        while at < len(views) and size < BATCH_BYTES and len(part) < BATCH_VIEWS:
            view = views[at][skip : skip + BATCH_BYTES - size]
            part.append(view)
            size, skip = size + len(view), skip + len(view)
            if skip == len(views[at]):
                at, skip = at + 1, 0
        back = size % aligned if at < len(views) else 0
        while back:  # into the views that come next
            if skip == 0:
                at -= 1
                skip = len(views[at])
            less = min(back, len(part[-1]))
            part[-1] = part[-1][: len(part[-1]) - less]
            skip, back = skip - less, back - less
            if not len(part[-1]):
                part.pop()
        yield part
