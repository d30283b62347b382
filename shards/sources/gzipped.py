"""Gzipped tars as a stream: one sample in memory, nothing on the disk, and a bound on what a file may unpack to."""

from __future__ import annotations

import gzip
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import BinaryIO

from shards.sources.base import MAX_MEMBER_BYTES
from shards.tar import BLOCK, Member, Sample, Scan, group, split_name

MOST_TIMES_LARGER = 100  # images hardly shrink; a bomb unpacks to 1,000 times its size
ALWAYS_ALLOWED = 64 << 20
READ = 20 * BLOCK
BOMB = "unpacks to more than"


class _Bomb(Exception):
    pass


class _Bounded:
    """A file that unpacks at most `limit` bytes; remembers how many it gave and the last of them."""

    def __init__(self, file: BinaryIO, limit: int) -> None:
        self._file, self.limit, self.given, self.tail = file, limit, 0, b""

    def read(self, size: int) -> bytes:
        data = self._file.read(size)
        self.given += len(data)
        if self.given > self.limit:
            raise _Bomb
        self.tail = (self.tail + data)[-4 * READ :]
        return data


@dataclass
class Streamed:
    """A sample whose wanted members have been read."""

    sample: Sample
    data: dict[int, bytes]

    @property
    def key(self) -> str:
        return self.sample.key

    @property
    def members(self) -> tuple[Member, ...]:
        return self.sample.members

    @property
    def suffixes(self) -> tuple[str, ...]:
        return self.sample.suffixes

    def load(self) -> dict[str, bytes]:
        pairs = zip(self.suffixes, self.members, strict=True)
        return {suffix: self.data[m.start] for suffix, m in pairs if m.start in self.data}


def is_gzipped(path: str) -> bool:
    """By content: names lie."""
    with open(path, "rb") as file:
        return file.read(2) == b"\x1f\x8b"


@contextmanager
def gzipped_samples(path: str, scan: Scan, kept: Sequence[str]) -> Iterator[Iterator[Streamed]]:
    """Samples of a gzipped tar, grouped and refused like those of a plain one; only members of `kept` suffixes are held."""
    with open(path, "rb") as raw, gzip.GzipFile(fileobj=raw) as unpacked:
        raw.seek(0, 2)
        limit = max(raw.tell() * MOST_TIMES_LARGER, ALWAYS_ALLOWED)
        raw.seek(0)
        held: dict[int, bytes] = {}
        bounded = _Bounded(unpacked, limit)  # type: ignore[arg-type]
        yield _grouped(group(_members(bounded, scan, kept, held), scan), held)


def _grouped(samples: Iterator[Sample], held: dict[int, bytes]) -> Iterator[Streamed]:
    for sample in samples:
        yield Streamed(sample, {m.start: held[m.start] for m in sample.members if m.start in held})
        for member in sample.members:
            held.pop(member.start, None)


def _members(file: _Bounded, scan: Scan, kept: Sequence[str], held: dict[int, bytes]) -> Iterator[Member]:
    at = 0
    try:
        with tarfile.open(fileobj=file, mode="r|", bufsize=READ, errorlevel=2) as tar:  # type: ignore[call-overload]
            while (info := tar.next()) is not None:
                if info.isreg() and not info.issparse() and info.type in (tarfile.REGTYPE, tarfile.AREGTYPE):
                    name = info.name.removeprefix("./")
                    if split_name(name)[1] in kept and info.size <= MAX_MEMBER_BYTES:
                        held[info.offset] = tar.extractfile(info).read()
                        if len(held[info.offset]) != info.size:
                            raise EOFError(f"inside member {name!r}")
                    yield Member(name, info.offset, info.offset_data, info.size)
                elif not info.isdir():
                    scan.refused.append((info.name, "sparse" if info.issparse() else "link_or_device"))
                at = tar.offset
                tar.members.clear()  # it keeps every header it has met
        scan.problem = _end(file, at)
    except _Bomb:
        scan.problem = f"{BOMB} {file.limit} bytes, {MOST_TIMES_LARGER} times its size: a decompression bomb"
    except EOFError as error:
        scan.problem = f"the gzip stream is cut: {error}"
    except (tarfile.TarError, zlib.error, gzip.BadGzipFile, ValueError, OverflowError, RecursionError) as error:
        scan.problem = f"not readable as a gzipped tar from byte {at} of its content on: {error}"


def _end(file: _Bounded, at: int) -> str:
    """What is wrong after the last member, which ended at `at`: only zeros may follow, two blocks of them at least."""
    unread = file.given - at
    if unread > len(file.tail):
        return "the tar has an unreadable end"
    rest = file.tail[len(file.tail) - unread :] if unread > 0 else b""
    if any(rest):
        return f"damaged header, or members behind the end of archive, at byte {at} of its content"
    zeros = len(rest)
    while data := file.read(READ):
        if any(data):
            return f"members behind the end-of-archive block at byte {at} of its content"
        zeros += len(data)
    return "" if zeros >= BLOCK else f"cut at byte {file.given} of its content: the end-of-archive blocks are missing"
