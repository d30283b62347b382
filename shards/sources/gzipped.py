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
from shards.tar import BLOCK, Member, Sample, Scan, group, padded, split_name

MOST_TIMES_LARGER = 100  # images hardly shrink; a bomb unpacks to 1,000 times its size
ALWAYS_ALLOWED = 64 << 20
CHUNK = 1 << 16
LONGEST_HEADER = 1 << 20
SPARSE_MORE_IN_HEADER, SPARSE_MORE_IN_BLOCK = 482, 504  # GNU: whether another block of the map follows
_WITHOUT_CONTENT = (
    tarfile.DIRTYPE,
    tarfile.LNKTYPE,
    tarfile.SYMTYPE,
    tarfile.CHRTYPE,
    tarfile.BLKTYPE,
    tarfile.FIFOTYPE,
)
BOMB = "unpacks to more than"


class _Bomb(Exception):
    pass


class _Bounded:
    """A gzip stream that unpacks at most `limit` bytes. given: how many it has handed out."""

    def __init__(self, file: BinaryIO, limit: int) -> None:
        self._file, self.limit, self.given = file, limit, 0

    def take(self, size: int) -> bytes:
        """Exactly `size` bytes. Raises: EOFError when fewer are left, _Bomb when they would pass the limit."""
        if self.given + size > self.limit:
            raise _Bomb
        parts, left = [], size
        while left:
            data = self._file.read(min(left, CHUNK))
            if not data:
                raise EOFError(f"{left} bytes are missing after byte {self.given} of its content")
            parts.append(data)
            left, self.given = left - len(data), self.given + len(data)
        return b"".join(parts)

    def skip(self, size: int) -> None:
        for at in range(0, size, CHUNK):
            self.take(min(CHUNK, size - at))

    def rest_is_zero(self) -> bool:
        while data := self._file.read(CHUNK):
            self.given += len(data)
            if self.given > self.limit:
                raise _Bomb
            if any(data):
                return False
        return True


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
    """Regular members, the content of those wanted put into `held` under their start. What is wrong goes into `scan`."""
    try:
        headers: dict[str, str] = {}
        while (found := _next(file, headers)) is not None:
            info, start = found
            name, offset = info.name.removeprefix("./"), file.given
            if info.isdir():
                continue
            sparse = info.type == tarfile.GNUTYPE_SPARSE
            regular = info.isreg() and not sparse
            wanted = regular and split_name(name)[1] in kept and info.size <= MAX_MEMBER_BYTES
            if wanted:
                held[start] = file.take(padded(info.size))[: info.size]
            else:
                file.skip(padded(info.size))
            if not regular:
                scan.refused.append((name, "sparse" if sparse else "link_or_device"))
                continue
            yield Member(name, start, offset, info.size)
        if not file.rest_is_zero():
            scan.problem = "members behind the end-of-archive block: a hole, or tars joined end to end"
    except _Bomb:
        scan.problem = f"{BOMB} {file.limit} bytes, {MOST_TIMES_LARGER} times its size: a decompression bomb"
    except EOFError as error:
        scan.problem = f"the gzip stream is cut: {error}"
    except (tarfile.TarError, zlib.error, gzip.BadGzipFile, ValueError) as error:
        scan.problem = f"not readable as a gzipped tar at byte {file.given} of its content: {error}"


def _next(file: _Bounded, every: dict[str, str]) -> tuple[tarfile.TarInfo, int] | None:
    """The next member's header, with what PAX and GNU headers before it say, and where these begin; None at the end.

    every: what global PAX headers say of all members, added to here. The content is next in `file`. Raises: ValueError
    and tarfile.HeaderError for a damaged header.
    """
    start, said, long = file.given, dict(every), ""
    while True:
        block = file.take(BLOCK)
        if not any(block):
            return None
        info = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        if info.size < 0:
            raise ValueError(f"a member of {info.size} bytes")
        if info.type in (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE):
            said.update(_pax_records(_small(file, info)))
        elif info.type == tarfile.XGLTYPE:
            every.update(_pax_records(_small(file, info)))
            said = {**every, **said}
        elif info.type == tarfile.GNUTYPE_LONGNAME:
            long = _small(file, info).split(b"\0")[0].decode("utf-8", "surrogateescape")
        elif info.type == tarfile.GNUTYPE_LONGLINK:
            _small(file, info)
        else:
            break
    if info.type == tarfile.GNUTYPE_SPARSE:
        more = block[SPARSE_MORE_IN_HEADER]
        while more:
            more = file.take(BLOCK)[SPARSE_MORE_IN_BLOCK]
    info.name = said.get("path", long) or info.name
    if "size" in said:
        info.size = int(said["size"])
    if any(key.startswith("GNU.sparse") for key in said):
        info.type = tarfile.GNUTYPE_SPARSE
    if info.type in _WITHOUT_CONTENT:
        info.size = 0
    return info, start


def _small(file: _Bounded, info: tarfile.TarInfo) -> bytes:
    if info.size > LONGEST_HEADER:
        raise ValueError(f"a header of {info.size} bytes")
    return file.take(padded(info.size))[: info.size]


def _pax_records(data: bytes) -> dict[str, str]:
    """`<length> <key>=<value>\n`, the length counting itself. Raises: ValueError."""
    found, at = {}, 0
    while at < len(data) and data[at]:
        space = data.find(b" ", at)
        length = int(data[at:space]) if space > at and data[at:space].isdigit() else 0
        record = data[space + 1 : at + length]
        if length <= space - at or not record.endswith(b"\n"):
            raise ValueError("a damaged PAX header")
        key, _, value = record[:-1].partition(b"=")
        found[key.decode("utf-8", "surrogateescape")] = value.decode("utf-8", "surrogateescape")
        at += length
    return found
