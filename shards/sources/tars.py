"""WebDataset tars of other writers (img2dataset among them), plain or gzipped.

A tar's samples get the keys `<tar's name>/<their key>`, so equal keys of two tars stay apart; a key met twice in one tar is
refused as duplicate_key. Plain tars are cut into shards by samples where they are too large; gzipped ones are read as a
stream and stay whole. Nothing of a tar is written to the disk but into the shard.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from shards.decode import IMAGE_SUFFIXES, TEXT_SUFFIXES
from shards.errors import ShardError, VillaError
from shards.plan import UNKNOWN, Row
from shards.sources.base import MAX_MEMBER_BYTES, Item, Listing, shown
from shards.sources.gzipped import BOMB, gzipped_samples, is_gzipped
from shards.sources.names import Names
from shards.tar import Sample, Scan, tar_samples

KEPT = IMAGE_SUFFIXES + TEXT_SUFFIXES
SUFFIXES = (".tar", ".tgz", ".tar.gz")


@dataclass
class TarSource:
    """files: paths relative to `root`, in order. max_count: samples a shard, where a tar is to be cut by number;
    max_bytes: a plain tar over it is cut."""

    root: str
    files: tuple[str, ...]
    max_bytes: int
    max_count: int | None = None
    kind: str = "tars"
    warnings: list[str] = field(default_factory=list)

    def claim(self) -> dict[str, Any]:
        listing = Listing()
        for name in self.files:
            listing.add(name, os.path.getsize(os.path.join(self.root, name)))
        return {"kind": self.kind, "place": self.root, **listing.claim()}

    def rows(self) -> Iterator[Row]:
        names = Names()
        for name in self.files:
            path = os.path.join(self.root, name)
            size = os.path.getsize(path)
            whole = Row("tar", names.give(_stem(name)), name, size=size, samples=UNKNOWN, row=size)
            large = size > self.max_bytes or self.max_count is not None
            if large and not is_gzipped(path):
                yield from self._cut(whole, path)
            else:
                yield whole

    def _cut(self, whole: Row, path: str) -> Iterator[Row]:
        """Rows of one tar, each of at most a shard's size, from its headers."""
        first = count = size = 0
        with plain_samples(path, Scan()) as samples:
            for index, sample in enumerate(samples):
                more = sum(m.size for m in sample.members)
                if count and (size + more > self.max_bytes or count == (self.max_count or UNKNOWN)):
                    yield replace(whole, first=first, last=index, size=size, samples=count)
                    first, count, size = index, 0, 0
                count, size = count + 1, size + more
        yield replace(whole, first=first, size=size, samples=count)


def _stem(name: str) -> str:
    for suffix in SUFFIXES:
        if name.endswith(suffix):
            return name.removesuffix(suffix)
    return name


@contextmanager
def plain_samples(path: str, scan: Scan) -> Iterator[Iterator[_Loaded]]:
    """Samples of a plain tar with a way to their members' bytes, from a memory map."""
    if os.path.getsize(path) == 0:
        scan.problem = "empty file, no tar header"
        yield iter(())
        return
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        view = memoryview(mapped)
        found = tar_samples(view, file, scan)
        try:
            yield (_Loaded(sample, view) for sample in found)
        finally:
            found.close()  # type: ignore[attr-defined]
            view.release()


class _Loaded:
    """A sample of a plain tar; `load` copies its members out of the map."""

    def __init__(self, sample: Sample, view: memoryview) -> None:
        self.sample, self._view = sample, view
        self.key, self.members, self.suffixes = sample.key, sample.members, sample.suffixes

    def load(self) -> dict[str, bytes]:
        return {
            suffix: bytes(self._view[m.offset : m.offset + m.size])
            for suffix, m in zip(self.suffixes, self.members, strict=True)
            if suffix in KEPT and m.size <= MAX_MEMBER_BYTES
        }


class TarReader:
    """Reads the tar rows of one unit; `warnings` says what was damaged or left out."""

    def __init__(self, root: str) -> None:
        self.root = root
        self.warnings: list[str] = []

    def read(self, row: Row) -> Iterator[Item]:
        """Samples `first` to `last` of the tar, then what of that range never became a sample.

        Raises: ShardError when the tar is gone, or no longer what was planned.
        """
        path = os.path.join(self.root, row.file)
        if not os.path.isfile(path) or os.path.getsize(path) != row.row:
            raise ShardError(f"{path} has changed, or is gone, since it was listed; restore it, or repeat with --force")
        scan, left_out = Scan(), dict[str, int]()
        count = refused = 0
        try:
            with _samples(path, scan) as samples:
                for count, item in enumerate(self._items(row, samples, left_out), 1):
                    if count <= row.first:
                        refused = len(scan.refused)
                        continue
                    yield item
                    if count == row.last:
                        break
        except OSError as error:
            raise VillaError(f"cannot read {path}: {error.strerror or error}") from error
        if row.samples != UNKNOWN and count - row.first != row.samples:
            raise ShardError(f"{path} has other samples than were listed; restore it, or repeat with --force")
        yield from self._aftermath(row, scan, refused)
        if left_out:
            listed = ", ".join(f".{shown(s, 40)} x {n}" for s, n in sorted(left_out.items()))
            self.warnings.append(f"{path}: members that are neither image nor text were left out: {listed}")

    def _items(self, row: Row, samples: Iterator[Any], left_out: dict[str, int]) -> Iterator[Item]:
        names, met = Names(), set[str]()
        file = shown(row.file)
        for index, loaded in enumerate(samples):
            wanted = index >= row.first
            item = Item(f"{row.key}/{names.give(loaded.key)}", {}, file, shown(loaded.members[0].name))
            if wanted:
                item.members = loaded.load()
                for suffix in (s for s in loaded.suffixes if s not in KEPT):
                    left_out[suffix] = left_out.get(suffix, 0) + 1
                large = [m for m in loaded.members if m.size > MAX_MEMBER_BYTES]
                if large:
                    item.refused, item.detail = "too_many_bytes", f"{large[0].size} bytes, {MAX_MEMBER_BYTES} at most"
                if loaded.key in met:
                    item.refused = "duplicate_key"
                    item.detail = f"an earlier sample of this tar has the key {shown(loaded.key)!r} too; it is kept"
            met.add(loaded.key)
            yield item

    def _aftermath(self, row: Row, scan: Scan, before: int) -> Iterator[Item]:
        """Members that never became samples, and a damaged end, as refused samples."""
        file = shown(row.file)
        for name, reason in scan.refused[before:]:
            detail = f"member {shown(name)!r}"
            yield Item(f"{row.key}/{Names().give(name)}", {}, file, shown(name), refused=reason, detail=detail)
        if scan.problem:
            bomb = scan.problem.startswith(BOMB)
            reason = "decompression_bomb" if bomb else "damaged_shard"
            yield Item(f"{row.key}/(end)", {}, file, refused=reason, detail=scan.problem)
            self.warnings.append(
                f"{os.path.join(self.root, row.file)}: {scan.problem}; the good samples before that are kept, what came "
                "after is lost. Fetch the tar again and repeat with --force to have it whole"
            )


@contextmanager
def _samples(path: str, scan: Scan) -> Iterator[Iterator[Any]]:
    if is_gzipped(path):
        with gzipped_samples(path, scan, KEPT) as samples:
            yield samples
    else:
        with plain_samples(path, scan) as samples:
            yield samples
