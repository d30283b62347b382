"""What a path given to a shard tool holds: a data set, one stage of it, or tars of others."""

from __future__ import annotations

import hashlib
import io
import mmap
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import BinaryIO

from shards import manifest
from shards.commit import SUFFIX, StageFolder
from shards.errors import ShardError, VillaError
from shards.reshard.sources import sorted_paths
from shards.store import Store

CHUNK = 1 << 23
WILD = "*?[{"
RESHARDED = "reshard.json"  # the result of the reshard that made a data set


@dataclass(frozen=True)
class Place:
    """kind: dataset (url its folder, stages its folders), stage (likewise, with one of them) or tars (url the folder that
    the names in `tars` are below)."""

    kind: str
    url: str
    stages: tuple[str, ...] = ()
    tars: tuple[str, ...] = ()


def look_at(path: str) -> Place:
    """Raises: VillaError when `path` holds no shards, with what it holds instead."""
    url = path.rstrip("/") or "/"
    if any(c in url for c in WILD):
        return _tars(url, *_listed(url))
    store = Store(url)
    if url.endswith(".tar") and _is_file(store):
        parent, _, name = url.rpartition("/")
        return Place("tars", parent or ".", tars=(name,))
    if is_stage(store):
        parent, _, name = store.url.rpartition("/")
        return Place("stage", parent or ".", (name,))
    stages = stages_of(store)
    if stages:
        return Place("dataset", url, stages)
    return _tars(url, url, store.list("", ".tar"))


def find_tars(path: str) -> Place:
    """The tars of a folder, of a glob, or the one named. Raises: VillaError where there are none, or committed shards."""
    place = look_at(path)
    if place.kind != "tars":
        raise VillaError(
            f"{path!r} is a {place.kind} of committed shards, whose indices are written with them; name foreign tars"
        )
    return place


def is_stage(store: Store) -> bool:
    files = store.list("")
    return any(f in ("config.json", manifest.NAME) or f.endswith(SUFFIX) for f in files)


def stages_of(dataset: Store) -> tuple[str, ...]:
    """Names of a data set's stages, base first. What `pack` works by is none of them."""
    names = [n for n in folders(dataset) if not n.startswith(".") and n != "plan" and is_stage(dataset.child(n))]
    return tuple(sorted(names, key=lambda n: (n != "base", n)))


def made_in(dataset: str) -> list[StageFolder]:
    """The stages of a data set that hold committed shards: what may be cleared when its base is replaced, and no folder of
    others that has a config.json too."""
    found = (StageFolder(dataset, stage) for stage in stages_of(Store(dataset)))
    return [folder for folder in found if folder.shards_done()]


def folders(store: Store, folder: str = "") -> list[str]:
    """Names of the folders directly in `folder`, sorted; empty when there is no such folder."""
    place = store.path(folder)
    try:
        found = store.fs.ls(place, detail=True)
    except (FileNotFoundError, NotADirectoryError):
        return []
    names = (e["name"].rstrip("/").rsplit("/", 1)[-1] for e in found if e["type"] == "directory")
    return sorted(n for n in names if n)


def _is_file(store: Store) -> bool:
    return bool(store.fs.isfile(store.path()))


def _listed(url: str) -> tuple[str, list[str]]:
    """(folder before the first wild part, names below it) of a glob or a list in braces."""
    parts = url.split("/")
    fixed = next(i for i, part in enumerate(parts) if any(c in part for c in WILD))
    root = "/".join(parts[:fixed]) or ("/" if url.startswith("/") else ".")
    store = Store(root)
    folder = store.path() if store.local else store.url
    paths = sorted_paths(f"{folder}/{'/'.join(parts[fixed:])}")
    return root, [path.removeprefix(folder).lstrip("/") for path in paths]


def _tars(path: str, root: str, names: list[str]) -> Place:
    if not names:
        store = Store(root)
        inside = [n for n in folders(store) if stages_of(store.child(n))] if root == path else []
        if inside:
            raise VillaError(
                f"{path!r} holds several data sets; name one of them: {', '.join(f'{path}/{n}' for n in inside)}"
            )
        there = "holds neither committed stages nor .tar shards" if store.exists() else "does not exist"
        raise VillaError(
            f"{path!r} {there}; name a data set (the folder with base/), one of its stages, or a folder of tars"
        )
    return Place("tars", root, tars=tuple(names))


@contextmanager
def open_tar(store: Store, name: str) -> Iterator[tuple[memoryview, BinaryIO]]:
    """A tar's bytes as a read-only map, and as a file. From an object store it is first brought to a temporary file.

    Raises: ShardError where there is no such file.
    """
    with _local(store, name) as file:
        if not file.seek(0, io.SEEK_END):
            yield memoryview(b""), io.BytesIO()
            return
        file.seek(0)
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
            view = memoryview(mapped)
            try:
                yield view, file
            finally:
                view.release()


@contextmanager
def _local(store: Store, name: str) -> Iterator[BinaryIO]:
    try:
        source = store.open(name)
    except FileNotFoundError as error:
        raise ShardError(f"{store.path(name)} is gone since it was listed; restore it") from error
    with source:
        if store.local:
            yield source
            return
        with tempfile.TemporaryFile(prefix="villa-tar-") as copy:
            while chunk := source.read(CHUNK):
                copy.write(chunk)
            copy.flush()
            yield copy  # type: ignore[misc]


def sha256_of(view: memoryview) -> str:
    digest = hashlib.sha256()
    for at in range(0, len(view), CHUNK):
        digest.update(view[at : at + CHUNK])
    return digest.hexdigest()
