"""What the kinds of source share: listing, planning, and the samples that reading gives."""

from __future__ import annotations

import difflib
import hashlib
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

from shards.errors import VillaError
from shards.plan import Row

URL = re.compile(r"\s*([a-zA-Z][a-zA-Z0-9+.-]*)://")
MAX_MEMBER_BYTES = 256 << 20  # one image or text is held in memory; a larger one is refused unread


class Source(Protocol):
    """Something to pack. `root` is the folder that the rows' paths are relative to."""

    kind: str
    root: str
    warnings: list[str]  # what the listing left out; complete when `rows` has ended

    def claim(self) -> dict[str, Any]:
        """What a packing of this source is bound to: its place, a digest of its listing, and how it is read."""
        ...

    def rows(self) -> Iterator[Row]:
        """The samples in order, or the tars they are in. Raises: VillaError when the source as a whole is of no use."""
        ...


@dataclass
class Item:
    """One sample as it was read. file, member, row: where it is from (`shards.sidecar.ORIGIN`). refused, detail: why not."""

    key: str
    members: dict[str, bytes]
    file: str = ""
    member: str = ""
    row: int | None = None
    refused: str = ""
    detail: str = ""

    @property
    def place(self) -> str:
        """Where it is from, for a person."""
        parts = [self.file, f"row {self.row}" if self.row is not None else "", self.member]
        return ", ".join(p for p in parts if p)


@dataclass
class Listing:
    """Files by name and size, as a digest: neither their number nor their length costs memory."""

    files: int = 0
    bytes: int = 0
    _hash: Any = field(default_factory=lambda: hashlib.blake2b(digest_size=8))

    def add(self, name: str, size: int) -> None:
        self.files += 1
        self.bytes += max(size, 0)
        self._hash.update(os.fsencode(name) + b"\0" + str(size).encode() + b"\n")

    def claim(self) -> dict[str, Any]:
        return {"files": self.files, "bytes": self.bytes, "listing": self._hash.hexdigest()}


@dataclass
class LeftOut:
    """Files that no sample is made of, counted by suffix."""

    counts: dict[str, int] = field(default_factory=dict)

    def add(self, suffix: str) -> None:
        self.counts[suffix] = self.counts.get(suffix, 0) + 1

    def lines(self, what: str) -> list[str]:
        if not self.counts:
            return []
        often = sorted(self.counts.items(), key=lambda c: (-c[1], c[0]))
        more = f" and {len(often) - 8} other kinds" if len(often) > 8 else ""
        listed = ", ".join(f"{suffix} x {count}" for suffix, count in often[:8])
        return [f"{what} were left out: {listed}{more}"]


def nearest(name: str, names: Iterable[str]) -> str:
    """` (did you mean 'x'?)` where a name is near."""
    found = difflib.get_close_matches(name, list(names), 1, 0.5)
    return f" (did you mean {found[0]!r}?)" if found else ""


def folder_given(path: str, what: str) -> str:
    """A folder's absolute path. Raises: VillaError when it is missing or no folder."""
    if not os.path.exists(path):
        parent = os.path.dirname(os.path.abspath(path))
        near = nearest(os.path.basename(path.rstrip("/")), os.listdir(parent)) if os.path.isdir(parent) else ""
        raise VillaError(f"{what} {path!r} does not exist{near}")
    if not os.path.isdir(path):
        raise VillaError(f"{what} {path!r} is no folder")
    return os.path.realpath(path)


def unsafe_path(path: str) -> str:
    """Why a path that a list names is not followed, or an empty string: only files below the images folder are."""
    if not path or "\0" in path:
        return "an empty path, or one with a NUL"
    if os.path.isabs(path) or ".." in path.split("/"):
        return "only relative paths below the images folder are read"
    try:
        os.fsencode(path)
    except UnicodeEncodeError:
        return "no file name can hold it"
    return ""


def shown(text: str, limit: int = 200) -> str:
    """Text of unknown making, for a message or a detail."""
    plain = text.encode("utf-8", "backslashreplace").decode()
    return plain if len(plain) <= limit else plain[: limit - 1] + "…"
