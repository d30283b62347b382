"""What SRC stands for: a data set, a folder of tars, a glob, or a list in braces; local or s3://."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from itertools import islice

import pyarrow as pa
from braceexpand import UnbalancedBracesError, braceexpand  # type: ignore[attr-defined]

from shards import manifest, sidecar
from shards.commit import StageFolder
from shards.digest import fingerprint
from shards.errors import ShardError, VillaError
from shards.reader import BaseShard, read_sidecar
from shards.store import WILD, Store, glob

BASE = "base"
SCHEMA = pa.schema([("url", pa.string()), ("name", pa.string()), ("size", pa.int64()), ("sha256", pa.string())])
MOST_SOURCES = 20_000_000


@dataclass(frozen=True)
class Sources:
    """The tars that are resharded, in order. dataset: the data set they are the base shards of; empty for foreign tars.

    sidecars: stages of the data set whose rows move with their samples.
    """

    dataset: str
    url: tuple[str, ...]  # folder of each tar
    name: tuple[str, ...]  # file name; of a data set, the shard's name without `.tar`
    size: tuple[int, ...]  # bytes
    sha256: tuple[str, ...]  # as the manifest says; empty for foreign tars
    sidecars: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.name)

    @cached_property
    def fingerprint(self) -> str:
        return fingerprint([self.dataset, self.url, self.name, self.size, self.sha256, self.sidecars])

    def place(self, at: int) -> str:
        return f"{self.url[at]}/{self.name[at]}" + (".tar" if self.dataset else "")

    def check_size(self, at: int, found: int) -> None:
        """Raises: ShardError when a foreign tar has other bytes than it had when it was listed."""
        if not self.dataset and found != self.size[at]:
            raise ShardError(
                f"{self.place(at)} has {found} bytes, {self.size[at]} when it was listed; restore it, or reshard into "
                "another folder"
            )

    def base(self, at: int) -> BaseShard:
        return BaseShard(StageFolder(self.dataset, BASE), self.name[at])

    def rows(self, at: int, stage: str) -> pa.Table:
        """The sidecar of one source, checked against the base shard's keys by the caller."""
        return read_sidecar(StageFolder(self.dataset, stage), self.name[at], pa.schema([]))

    def to_bytes(self) -> bytes:
        columns = {"url": self.url, "name": self.name, "size": self.size, "sha256": self.sha256}
        told = {b"dataset": self.dataset.encode(), b"sidecars": ",".join(self.sidecars).encode()}
        return sidecar.to_bytes(sidecar.table(SCHEMA, columns).replace_schema_metadata(told))

    @classmethod
    def from_bytes(cls, data: bytes, place: str) -> Sources:
        table = sidecar.from_bytes(data, place, SCHEMA)
        told = table.schema.metadata or {}
        names = told.get(b"sidecars", b"").decode()
        url, name, size, digest = (tuple(table[n].to_pylist()) for n in SCHEMA.names)
        stages = tuple(names.split(",")) if names else ()
        return cls(told.get(b"dataset", b"").decode(), url, name, size, digest, stages)


def resolve(src: str) -> Sources:
    """Raises: VillaError when there is nothing at SRC, or a data set there is not complete."""
    if "{" in src or any(c in src for c in WILD):
        return _foreign(sorted_paths(src), src)
    if _is_file(src):
        return _foreign([src], src)
    store = Store(src)
    if not store.exists():
        raise VillaError(f"{src} does not exist; give a data set, a folder of tars, a glob or a {{000..123}} list")
    if store.exists(f"{BASE}/{manifest.NAME}"):
        return _dataset(src)
    if store.list(BASE, ".done.json"):
        raise VillaError(
            f"{src} is a data set that is not complete: {BASE}/{manifest.NAME} is missing; finish what makes it first (the "
            "same command resumes)"
        )
    if store.exists(manifest.NAME) and src.rstrip("/").endswith(f"/{BASE}"):
        return _dataset(src.rstrip("/").removesuffix(f"/{BASE}"))
    return _foreign([f"{store.url}/{n}" for n in store.list("", ".tar")], src)


def _is_file(src: str) -> bool:
    folder, _, name = src.rpartition("/")
    return bool(name) and not folder.endswith(":/") and Store(folder or ".").is_file(name)


def _dataset(src: str) -> Sources:
    url = Store(src).url
    found = manifest.read(StageFolder(url, BASE))
    place = f"{url}/{BASE}"
    return Sources(url, (place,) * len(found.shards), found.shards, found.bytes, found.sha256, _aligned(url))


def _aligned(dataset: str) -> tuple[str, ...]:
    """Complete stages of a data set that have one row an image, so that their rows can move with the samples."""
    names = []
    for name in Store(dataset).folders():
        folder = StageFolder(dataset, name)
        if name == BASE or name.startswith(".") or not manifest.exists(folder):
            continue
        shards = manifest.read(folder).shards
        if shards and "key" in read_sidecar(folder, shards[0], pa.schema([])).column_names:
            names.append(name)
    return tuple(sorted(names))


def _foreign(paths: list[str], src: str) -> Sources:
    if not paths:
        raise VillaError(f"{src} holds no .tar; give a data set, a folder of tars, a glob or a {{000..123}} list")
    if len(paths) > MOST_SOURCES:
        raise VillaError(f"{src} stands for {len(paths)} tars, over the cap of {MOST_SOURCES}; reshard it in parts")
    folders: dict[str, dict[str, int]] = {}
    for path in paths:
        folders.setdefault(path.rpartition("/")[0] or ".", {})
    for folder in folders:
        store = Store(folder)
        folders[folder] = store.list_sizes()
    urls, names, sizes = [], [], []
    for path in paths:
        folder, _, name = path.rpartition("/")
        if name not in folders[folder or "."]:
            raise VillaError(f"{path} does not exist; it is named by {src}")
        urls.append(Store(folder or ".").url)
        names.append(name)
        sizes.append(folders[folder or "."][name])
    return Sources("", tuple(urls), tuple(names), tuple(sizes), ("",) * len(names))


def sorted_paths(pattern: str) -> list[str]:
    """Paths of a pattern: braces in the order given, and each glob's matches sorted.

    Raises: VillaError for braces that are not closed, or a tar named twice.
    """
    paths: list[str] = []
    try:
        for part in islice(braceexpand(pattern), MOST_SOURCES):
            paths += glob(part) if any(c in part for c in WILD) else [part]
    except UnbalancedBracesError as error:
        raise VillaError(f"{pattern} has a brace that is not closed") from error
    if len(set(paths)) != len(paths):
        twice = next(path for path, count in Counter(paths).items() if count > 1)
        raise VillaError(f"{pattern} names {twice} twice; its samples would be counted twice")
    return paths
