"""A folder on a local disk or an object store, with the one primitive commits need: put-if-absent.

Local folders and s3:// behave alike: whole objects appear atomically or not at all. Listings are
never cached, since a stale listing is how work gets done twice.
"""

from __future__ import annotations

import errno
import os
import secrets
import socket
import time
from pathlib import Path
from typing import Any, BinaryIO

import fsspec
from fsspec.implementations.local import LocalFileSystem

from shards.errors import ShardError, VillaError, storage_errors

ORPHAN_SECONDS = 24 * 3600.0


def filesystem(url: str) -> tuple[Any, str]:
    """The fsspec filesystem of `url` and the path inside it. Credentials come from the environment only.

    Raises: VillaError when the scheme is unknown or its package is not installed.
    """
    options: dict[str, Any] = {"use_listings_cache": False} if url.startswith("s3://") else {}
    try:
        fs, path = fsspec.core.url_to_fs(url, **options)
    except (ValueError, ImportError) as error:
        raise VillaError(f"cannot open {url!r}: {error}; use a local path or s3://bucket/prefix") from error
    return fs, path


class Store:
    """Files below one root. Names are relative, with `/` between parts."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/") or "/"
        self.fs, self.root = filesystem(self.url)
        self.local = isinstance(self.fs, LocalFileSystem)

    def __reduce__(self) -> tuple[type[Store], tuple[str]]:
        return Store, (self.url,)  # a pickled filesystem would carry credentials

    def path(self, name: str = "") -> str:
        return f"{self.root}/{name}" if name else self.root

    def child(self, name: str) -> Store:
        return Store(f"{self.url}/{name}")

    def exists(self, name: str = "") -> bool:
        if self.local:
            return os.path.exists(self.path(name))
        return bool(self.fs.exists(self.path(name)))

    def size(self, name: str) -> int:
        return os.path.getsize(self.path(name)) if self.local else int(self.fs.size(self.path(name)))

    def list(self, folder: str = "", suffix: str = "") -> list[str]:
        """Names of the files directly in `folder` that end in `suffix`, sorted; empty when there is no such folder."""
        place = self.path(folder)
        if self.local:
            if not os.path.isdir(place):
                return []
            return sorted(e.name for e in os.scandir(place) if e.name.endswith(suffix) and e.is_file())
        try:
            found = self.fs.ls(place, detail=True, refresh=True)
        except FileNotFoundError:
            return []
        names = (e["name"].rsplit("/", 1)[-1] for e in found if e["type"] == "file")
        return sorted(n for n in names if n.endswith(suffix))

    def list_sizes(self, folder: str = "", suffix: str = "") -> dict[str, int]:
        """Name -> size in bytes of the files directly in `folder`, from one listing."""
        place = self.path(folder)
        if self.local:
            if not os.path.isdir(place):
                return {}
            with os.scandir(place) as found:
                return {e.name: e.stat().st_size for e in found if e.name.endswith(suffix) and e.is_file()}
        try:
            listed = self.fs.ls(place, detail=True, refresh=True)
        except FileNotFoundError:
            return {}
        sizes = {e["name"].rsplit("/", 1)[-1]: int(e["size"]) for e in listed if e["type"] == "file"}
        return {n: size for n, size in sizes.items() if n.endswith(suffix)}

    def folders(self) -> tuple[str, ...]:
        """Names of the folders directly below the root, sorted."""
        if not self.exists():
            return ()
        found = self.fs.ls(self.path(), detail=True)
        names = (e["name"].rstrip("/").rsplit("/", 1)[-1] for e in found if e["type"] == "directory")
        return tuple(sorted(names))

    def is_file(self) -> bool:
        return bool(self.fs.isfile(self.path()))

    def read(self, name: str) -> bytes:
        try:
            if self.local:
                return Path(self.path(name)).read_bytes()
            return bytes(self.fs.cat_file(self.path(name)))
        except FileNotFoundError as error:
            raise ShardError(f"{self.path(name)} does not exist") from error

    def read_range(self, name: str, offset: int, length: int) -> bytes:
        if self.local:
            with open(self.path(name), "rb") as f:
                f.seek(offset)
                return f.read(length)
        return bytes(self.fs.cat_file(self.path(name), start=offset, end=offset + length))

    def open(self, name: str) -> BinaryIO:
        if self.local:
            return open(self.path(name), "rb")
        return self.fs.open(self.path(name), "rb")  # type: ignore[no-any-return]

    def put(self, name: str, data: bytes) -> None:
        """Write or replace a whole object atomically."""
        if not self.local:
            self.fs.pipe_file(self.path(name), data)
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
        """Create `name` with `data` unless it exists. True for exactly one of any number of racing callers."""
        if not self.local:
            try:
                self.fs.pipe_file(self.path(name), data, mode="create")
            except FileExistsError:
                return False
            return True
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
            self.fs.put_file(local_path, self.path(name))

    def rename(self, source: str, target: str) -> None:
        if self.local:
            final = Path(self.path(target))
            with storage_errors(str(final)):
                final.parent.mkdir(parents=True, exist_ok=True)
                os.replace(self.path(source), final)
                fsync_folder(final.parent)
        else:
            self.fs.mv(self.path(source), self.path(target))

    def remove(self, name: str, *, recursive: bool = False) -> None:
        """Remove a file (or a folder); no error when it is gone already."""
        try:
            self.fs.rm(self.path(name), recursive=recursive)
        except FileNotFoundError:
            pass


def glob(pattern: str) -> list[str]:
    """Paths or URLs of the files that match, sorted."""
    fs, path = filesystem(pattern)
    scheme = pattern.partition("://")[0] + "://" if "://" in pattern else ""
    return sorted(scheme + found for found in fs.glob(path) if fs.isfile(found))


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
