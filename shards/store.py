"""A folder on a local disk or an object store, with the one primitive commits need: put-if-absent.

Local folders and s3:// behave alike: whole objects appear atomically or not at all. Listings are
never cached, since a stale listing is how work gets done twice.
"""

from __future__ import annotations

import errno
import io
import os
import re
import secrets
import shutil
import socket
import stat
import tempfile
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

from fsspec.implementations.local import LocalFileSystem
from fsspec.utils import glob_translate

from shards.errors import ShardError, StorageFullError, VillaError, storage_errors
from shards.objects import PARALLEL, Objects, Stat
from shards.prefetch import in_order
from shards.ranges import Range, coalesce

ORPHAN_SECONDS = 24 * 3600.0
Names = list[str]
BLOCK = 8 << 20  # of sequential reads; up to PARALLEL + 1 of them are in memory
S3 = ("s3://", "s3a://")
WILD = "*?["


def place_of(url: str) -> tuple[bool, str]:
    """(whether it is local, path) of a folder's `url`; the path of s3:// is bucket/prefix.

    Raises: VillaError when the scheme is unknown, there is no bucket, or credentials are in it (which are not repeated).
    """
    scheme, colon, rest = url.partition("://")
    if not colon:
        return True, os.path.abspath(os.path.expanduser(url))
    if scheme == "file":
        return True, os.path.abspath(rest)
    bucket = rest.partition("/")[0]
    if "@" in bucket or (":" in bucket and not bucket.startswith("arn:")):
        raise VillaError(
            f"a {scheme}:// path holds a user or password; take them out, and give credentials by AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY, AWS_PROFILE or a role"
        )
    if f"{scheme}://" not in S3:
        raise VillaError(f"cannot open {url!r}: unknown kind {scheme!r}; use a local path or s3://bucket/prefix")
    path = rest.rstrip("/")
    if not bucket or "//" in path or any(part in (".", "..") for part in path.split("/")):
        raise VillaError(
            f"cannot open {url!r}: it names no bucket, or an empty or dotted folder; use s3://bucket/prefix"
        )
    return False, path


class Store:
    """Files below one root. Names are relative, with `/` between parts."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/") or "/"
        self.local, self.root = place_of(url)
        self._objects = None if self.local else Objects()

    def __reduce__(self) -> tuple[type[Store], tuple[str]]:
        return Store, (self.url,)  # a pickled filesystem would carry credentials

    def __repr__(self) -> str:
        return f"Store({self.url!r})"

    @property
    def fs(self) -> Any:
        """The fsspec filesystem below, for readers that take one."""
        return LocalFileSystem() if self.local else self.objects.session.fs

    @property
    def objects(self) -> Objects:
        assert self._objects is not None
        return self._objects

    def path(self, name: str = "") -> str:
        return f"{self.root}/{name}" if name else self.root

    def shown(self, name: str = "") -> str:
        """The path as a user would write it."""
        return self.path(name) if self.local else f"s3://{self.path(name)}"

    def child(self, name: str) -> Store:
        return Store(f"{self.url}/{name}")

    # ---- what is there

    def exists(self, name: str = "") -> bool:
        """Whether there is such a file, or a folder."""
        if self.local:
            return os.path.exists(self.path(name))
        return (bool(name) and self.objects.head(self.path(name)) is not None) or self.objects.any_below(
            f"{self.path(name)}/"
        )

    def is_file(self, name: str) -> bool:
        return self.find_size(name) is not None

    def find_size(self, name: str) -> int | None:
        """Bytes of a file; None where there is none."""
        if self.local:
            try:
                found_local = os.stat(self.path(name))
            except (FileNotFoundError, NotADirectoryError):
                return None
            return found_local.st_size if stat.S_ISREG(found_local.st_mode) else None
        found = self.objects.head(self.path(name))
        return found.size if found else None

    def size(self, name: str) -> int:
        """Raises: FileNotFoundError."""
        size = self.find_size(name)
        if size is None:
            raise FileNotFoundError(errno.ENOENT, "no such file", self.path(name))
        return size

    def list(self, folder: str = "", suffix: str = "") -> Names:
        """Names of the files directly in `folder` that end in `suffix`, sorted; empty when there is no such folder."""
        place = self.path(folder)
        if not self.local:
            return list(self.list_sizes(folder, suffix))
        if not os.path.isdir(place):
            return []
        with os.scandir(place) as entries:  # by the millions: an entry is dropped when its name was taken
            return sorted(e.name for e in entries if e.name.endswith(suffix) and e.is_file())

    def list_sizes(self, folder: str = "", suffix: str = "") -> dict[str, int]:
        """The same names in the same order with their sizes in bytes, from one listing."""
        place = self.path(folder)
        if not self.local:
            found = ((e.path[len(place) + 1 :], e.size) for e in self.objects.entries(f"{place}/"))
            return dict(sorted((n, size) for n, size in found if n and n.endswith(suffix)))
        if not os.path.isdir(place):
            return {}
        with os.scandir(place) as entries:
            sizes = {e.name: e.stat().st_size for e in entries if e.name.endswith(suffix) and e.is_file()}
        return {name: sizes[name] for name in sorted(sizes)}

    def list_modified(self, folder: str = "", suffix: str = "") -> dict[str, float]:
        """The same names with the time each was last written, in seconds since 1970 by the storage's clock."""
        place = self.path(folder)
        if not self.local:
            entries = ((e.path[len(place) + 1 :], e.modified) for e in self.objects.entries(f"{place}/"))
            return dict(sorted((n, at) for n, at in entries if n and n.endswith(suffix)))
        if not os.path.isdir(place):
            return {}
        with os.scandir(place) as found:
            return dict(sorted((e.name, e.stat().st_mtime) for e in found if e.name.endswith(suffix) and e.is_file()))

    def list_stamps(self, folder: str = "", suffix: str = "") -> dict[str, str]:
        """The same names with what changes when a file is replaced: its size, and when it was last written or its ETag."""
        place = self.path(folder)
        if not self.local:
            objects = ((e.path[len(place) + 1 :], f"{e.size}:{e.etag}") for e in self.objects.entries(f"{place}/"))
            return dict(sorted((n, stamp) for n, stamp in objects if n and n.endswith(suffix)))
        if not os.path.isdir(place):
            return {}
        with os.scandir(place) as entries:
            found = ((e.name, e.stat()) for e in entries if e.name.endswith(suffix) and e.is_file())
            return dict(sorted((name, f"{s.st_size}:{s.st_mtime_ns}:{s.st_ino}") for name, s in found))

    def folders(self, folder: str = "") -> Names:
        """Names of the folders directly in `folder`, sorted; empty when there is no such folder."""
        place = self.path(folder)
        if not self.local:
            return self.objects.folders(f"{place}/")
        return sorted(e.name for e in os.scandir(place) if e.is_dir()) if os.path.isdir(place) else []

    # ---- reading

    def read(self, name: str) -> bytes:
        """The whole content, held once. Raises: ShardError when there is no such file."""
        try:
            if self.local:
                with io.FileIO(self.path(name)) as file:  # less than half of what Path.read_bytes costs for a small one
                    return file.readall()
            sink = io.BytesIO()
            for block in self.blocks(name):
                sink.write(block)
            return sink.getvalue()  # shares the buffer
        except FileNotFoundError as error:
            raise ShardError(f"{self.shown(name)} does not exist") from error

    def find(self, name: str) -> bytes | None:
        """The whole content; None where there is no such file. One request."""
        try:
            return self.read(name)
        except ShardError as error:
            if isinstance(error.__cause__, FileNotFoundError):
                return None
            raise

    def read_range(self, name: str, offset: int, length: int) -> bytes:
        """`length` bytes from `offset`, fewer only at the end of the file."""
        if self.local:
            with open(self.path(name), "rb") as f:
                f.seek(offset)
                return f.read(length)
        return self.objects.get(self.path(name), offset, length).data

    def read_ranges(self, name: str, ranges: Sequence[Range]) -> Sequence[memoryview]:
        """The bytes of (offset, length) ranges, in the order given; neighbours come by one request, of which they are views.

        Raises: ShardError when the file ends inside a range.
        """
        parts = [memoryview(b"")] * len(ranges)
        requests = coalesce(ranges)
        read = in_order if len(requests) > 1 and not self.local else lambda tasks, ahead: (task() for task in tasks)
        answers = read((partial(self.read_range, name, r.offset, r.length) for r in requests), PARALLEL)
        for request, data in zip(requests, answers, strict=True):
            if len(data) != request.length:
                raise ShardError(f"{self.shown(name)} ends inside a range that is read; it was cut, restore the file")
            view = memoryview(data)
            for i in request.members:
                offset, length = ranges[i]
                parts[i] = view[offset - request.offset : offset - request.offset + length]
        return parts

    def blocks(self, name: str, size: int | None = None, block: int = BLOCK, ahead: int = PARALLEL) -> Iterator[bytes]:
        """The content in order, in blocks of `block` bytes, read up to `ahead` blocks before they are asked for.

        size: what the file must have. Raises: FileNotFoundError; ShardError when it has another size, or is replaced
        meanwhile.
        """
        if self.local:
            with open(self.path(name), "rb") as file:
                self._check_size(name, os.fstat(file.fileno()).st_size, size)
                while data := file.read(block):
                    yield data
            return
        first = self.objects.get(self.path(name), 0, block)
        self._check_size(name, first.total, size)
        yield first.data
        starts = range(len(first.data), first.total, block)
        if starts:
            tasks = (partial(self.objects.get, self.path(name), at, block, first.etag) for at in starts)
            for piece in in_order(tasks, ahead):
                yield piece.data

    def _check_size(self, name: str, found: int, expected: int | None) -> None:
        if expected is not None and found != expected:
            raise ShardError(
                f"{self.shown(name)} has {found} bytes, {expected} were recorded: it was cut or changed; restore the file"
            )

    def open(self, name: str, size: int | None = None) -> BinaryIO:
        """The file for reading and seeking. From an object store it is fetched first, whole, into a temporary file that has
        no name, so that nothing is left of it however its user ends.

        Raises: FileNotFoundError; StorageFullError; ShardError when it does not have the `size` given.
        """
        if self.local:
            file = open(self.path(name), "rb")  # noqa: SIM115
            self._check_size(name, os.fstat(file.fileno()).st_size, size)
            return file
        found = self.size(name) if size is None else size
        folder = tempfile.gettempdir()
        free = shutil.disk_usage(folder).free
        if free < found:
            raise StorageFullError(
                f"no space left on the device to fetch {self.shown(name)}: it has {found} bytes, {folder} has {free} free; "
                "free some, or set TMPDIR to a larger disk"
            )
        with storage_errors(f"a temporary file in {folder}"):
            spool = tempfile.TemporaryFile(prefix="villa-spool-")  # noqa: SIM115
            try:
                for data in self.blocks(name, found):
                    spool.write(data)
                spool.flush()
                spool.seek(0)
            except BaseException:
                spool.close()
                raise
        return spool  # type: ignore[return-value]

    # ---- writing

    def put(self, name: str, data: bytes) -> None:
        """Write or replace a whole object atomically."""
        if not self.local:
            self.objects.put(self.path(name), data)
            return
        final = Path(self.path(name))
        with storage_errors(str(final)):
            temporary = _write_temporary(final, data)
            try:
                os.replace(temporary, final)
            finally:
                temporary.unlink(missing_ok=True)
            fsync_folder(final.parent)

    def put_if_absent(self, name: str, data: bytes) -> bool:
        """Create `name` with `data` unless it exists. True for exactly one of any number of racing callers.

        Raises: GaveUp when an object store does not answer, so that it is unknown whether it stands.
        """
        if not self.local:
            return self.objects.put_if_absent(self.path(name), data)
        final = Path(self.path(name))
        with storage_errors(str(final)):
            temporary = _write_temporary(final, data)
            try:
                _create_whole(temporary, final, data)
            except FileExistsError:
                return False
            finally:
                temporary.unlink(missing_ok=True)
            fsync_folder(final.parent)
        return True

    def upload(self, local_path: str, name: str) -> None:
        """Bring a finished local file under `name` (a move where the store is local)."""
        if self.local:
            final = Path(self.path(name))
            with storage_errors(str(final)):
                final.parent.mkdir(parents=True, exist_ok=True)
                os.replace(local_path, final)
                fsync_folder(final.parent)
        else:
            self.objects.upload(local_path, self.path(name))

    def rename(self, source: str, target: str, size: int) -> None:
        """Move a file of `size` bytes; on an object store by a copy inside it, which appears whole, and a removal.

        Raises: FileNotFoundError when `source` is not there.
        """
        if self.local:
            final = Path(self.path(target))
            with storage_errors(str(final)):
                final.parent.mkdir(parents=True, exist_ok=True)
                os.replace(self.path(source), final)
                fsync_folder(final.parent)
        else:
            self.objects.copy(self.path(source), self.path(target), size)
            self.objects.remove([self.path(source)])

    def remove(self, name: str, *, recursive: bool = False) -> None:
        """Remove a file (or a folder); no error when it is gone already."""
        if not self.local:
            below = [e.path for e in self._below(name)] if recursive else []
            self.objects.remove(below + ([self.path(name)] if name else []))
            return
        try:
            if recursive:
                shutil.rmtree(self.path(name))
            else:
                os.unlink(self.path(name))
        except NotADirectoryError:
            os.unlink(self.path(name))
        except FileNotFoundError:
            pass

    def remove_files(self, names: Sequence[str]) -> None:
        """Remove many files; no error for those that are gone already."""
        if not self.local:
            self.objects.remove([self.path(n) for n in names])
            return
        for name in names:
            self.remove(name)

    def _below(self, name: str) -> Iterator[Stat]:
        """All objects below a folder."""
        if "/" not in self.path(name):
            raise VillaError(f"{self.shown(name)} is a whole bucket, which is not emptied; use a folder in it")
        return self.objects.entries(f"{self.path(name)}/", recursive=True)


def glob(pattern: str) -> Names:
    """Paths or URLs of the files that match, sorted."""
    local, path = place_of(pattern)
    matches = re.compile(glob_translate(path)).match
    if local:
        return sorted(found for found in LocalFileSystem().glob(path) if os.path.isfile(found))
    fixed = path[: min(path.index(c) for c in WILD if c in path)].rpartition("/")[0]
    found = Objects().entries(f"{fixed}/", recursive="**" in path or path.count("/") > fixed.count("/") + 1)
    return sorted(f"s3://{e.path}" for e in found if matches(e.path))


def _create_whole(temporary: Path, final: Path, data: bytes) -> None:
    """Raises: FileExistsError when `final` exists. By a hard link, so that the content is whole when the name appears; on
    file systems without links (some network and FUSE mounts) by an exclusive create, where a crash can leave a torn file,
    which its readers name as damaged."""
    try:
        os.link(temporary, final)
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS):
            raise
        with open(final, "xb") as f:
            f.write(data)
            f.flush()
            os.fsync(f.fileno())


def owner() -> str:
    """This process, as the names of its unfinished files say it."""
    return f"{socket.gethostname().replace('.', '-')}-{os.getpid()}"


def is_orphan(path: Path, owned_by: str) -> bool:
    """Whether an unfinished file's process is gone (on this host), or the file is a day old (of another host)."""
    host, _, pid = owned_by.rpartition("-")
    try:
        age = time.time() - path.stat().st_mtime
    except OSError:
        return False
    if host == socket.gethostname().replace(".", "-") and pid.isdigit() and Path("/proc/self").exists():
        return not Path(f"/proc/{pid}").exists()
    return age > ORPHAN_SECONDS


def remove_orphans(folder: Path) -> None:
    """Remove temporaries that writers which are gone have left directly in `folder`."""
    for path in folder.glob(".*.tmp"):
        if is_orphan(path, path.name.split(".")[-3] if path.name.count(".") >= 3 else ""):
            path.unlink(missing_ok=True)


def _write_temporary(final: Path, data: bytes) -> Path:
    final.parent.mkdir(parents=True, exist_ok=True)
    temporary = final.with_name(f".{final.name}.{owner()}.{secrets.token_hex(6)}.tmp")
    try:
        with open(temporary, "wb") as f:
            f.write(data)
            f.flush()
            os.fsync(f.fileno())
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return temporary


def fsync_folder(folder: Path) -> None:
    """Make a rename or link in `folder` survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
