"""WebDataset tars: a deterministic writer and a header-walking reader.

Writer: ustar, members in the order given, mtime 0, no owner, so equal samples give equal bytes.
Reader: walks 512-byte headers over a memory map, plain ones many at a time. Headers it does not
know (PAX, GNU long names, base-256 sizes, sparse files) send the whole shard through `tarfile`, which is
slower and knows them all. Links, devices and keys with `..` are refused with a reason, never followed.

Layout legend: a *member* is one file in the tar; a *sample* is a run of members that share a key.
"""

from __future__ import annotations

import re
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import BinaryIO, NamedTuple

from shards.tar_headers import BLOCK as BLOCK
from shards.tar_headers import plain_run

END = b"\0" * (2 * BLOCK)
_CHECKSUM = slice(148, 156)
TOGETHER = 256  # plain headers looked at together
_SIGNS = ("..", "/.", "\n.", "\n/", "/\n", "\n\n")  # one is in any refused name, a folder's and one with ./ before it
_new = tuple.__new__  # of a named tuple, without the call between
_REGULAR = (b"0", b"\0", b"7")
_SKIPPED = (b"5",)  # a folder
_FALLBACK = (b"x", b"g", b"L", b"K", b"S", b"X", b"N", b"A")
LONGEST_EXTENSION = 1 << 20  # bytes of a PAX header or a GNU long name
_COMPRESSED = {b"\x1f\x8b\x08": "gzip", b"BZh": "bzip2", b"\xfd7zXZ\0": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
_LONG_NUMBER = re.compile(rb"\d{256}")
_REFUSED = {b"1": "link", b"2": "link", b"3": "device", b"4": "device", b"6": "device"}


class Member(NamedTuple):
    """One regular file in a tar: `start` is its header's offset, `offset`/`size` its content, in bytes."""

    name: str
    start: int
    offset: int
    size: int


class Sample(NamedTuple):
    """Members that share a key, in tar order. `suffixes` are lower case, without the first dot."""

    key: str
    members: tuple[Member, ...]
    suffixes: tuple[str, ...]

    @property
    def start(self) -> int:
        return self.members[0].start

    @property
    def stop(self) -> int:
        last = self.members[-1]
        return last.offset + padded(last.size)


@dataclass
class Scan:
    """What a walk over a tar met besides samples. Filled while `walk` runs."""

    refused: list[tuple[str, str]] = field(default_factory=list)  # (member name, reason)
    problem: str = ""  # why the walk ended early; empty for a whole tar


def padded(size: int) -> int:
    return (size + BLOCK - 1) // BLOCK * BLOCK


def header(name: str, size: int) -> bytes:
    """A ustar header (PAX for names over 100 bytes or outside ASCII, or sizes over 8 GiB)."""
    raw = name.encode("utf-8", "surrogateescape")
    if len(raw) > 100 or size >= 1 << 33 or not raw.isascii():
        info = tarfile.TarInfo(name)
        info.size, info.mode = size, 0o644
        return info.tobuf(tarfile.PAX_FORMAT)
    block = bytearray(BLOCK)
    block[: len(raw)] = raw
    block[100:156] = b"%07o\0%07o\0%07o\0%011o\0%011o\0" % (0o644, 0, 0, size, 0) + b" " * 8
    block[156:157] = b"0"
    block[257:265] = b"ustar\x00" + b"00"
    block[329:345] = b"%07o\0%07o\0" % (0, 0)
    block[_CHECKSUM] = b"%06o\0 " % sum(block)
    return bytes(block)


class TarWriter:
    """Writes samples to a binary file object; `offset` is the number of bytes so far."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.offset = 0

    def add(self, name: str, data: bytes | memoryview) -> Member:
        head = header(name, len(data))
        member = Member(name, self.offset, self.offset + len(head), len(data))
        self.file.write(head)
        self.file.write(data)
        self.file.write(b"\0" * (padded(len(data)) - len(data)))
        self.offset += len(head) + padded(len(data))
        return member

    def close(self) -> None:
        self.file.write(END)
        self.offset += len(END)


def split_name(name: str) -> tuple[str, str]:
    """WebDataset's rule: the key runs up to the first dot of the last path part; the rest is the suffix."""
    folder, slash, base = name.rpartition("/")
    stem, _, suffix = base.partition(".")
    return folder + slash + stem, suffix.lower()


def refusal(name: str) -> str:
    """Why a member's name is refused, or an empty string. Nothing is ever extracted to disk; the keys
    still become file names in other people's tools."""
    last = name
    if "/" in name:
        parts = name.split("/")
        last = parts[-1]
        if not parts[0] or ".." in parts:
            return "unsafe_key"
    elif name == "..":
        return "unsafe_key"
    if not name.isprintable():
        return "unprintable_key"
    if not last or last[0] == ".":
        return "no_key"
    return ""


def walk(data: memoryview, file: BinaryIO, scan: Scan) -> Iterator[Member]:
    """Regular members of a tar in order. `data` maps the same bytes as `file`.

    A damaged tar ends the walk and says so in `scan.problem`; members before the damage are sound.
    """
    for members, _ in _runs(data, file, scan):
        yield from members


def tar_samples(data: memoryview, file: BinaryIO, scan: Scan) -> Iterator[Sample]:
    """The samples of a tar: what `group` makes of `walk`."""
    return _group(_runs(data, file, scan), scan)


Run = tuple[Iterable[Member], bool]  # members that follow each other, and whether their names are known to be accepted


def _runs(data: memoryview, file: BinaryIO, scan: Scan) -> Iterator[Run]:
    total, at = len(data), 0
    for magic, name in _COMPRESSED.items():
        if data[: len(magic)] == magic:
            scan.problem = f"compressed by {name}, no plain tar; unpack it to a .tar first"
            return
    most = TOGETHER
    while at + BLOCK <= total:
        starts, sizes, names = plain_run(data, at, most)
        if starts:
            yield _members(starts, sizes, names)
            at = starts[-1] + BLOCK + padded(sizes[-1])
            most = min(2 * most, TOGETHER)
            continue
        most = 1  # few are plain here
        if data[at] == 0 and not any(data[at : at + BLOCK]):
            if not _rest_is_zero(data, at):
                scan.problem = (
                    f"members behind the end-of-archive block at byte {at}: a hole, or tars joined end to end"
                )
            return
        block = bytes(data[at : at + BLOCK])
        kind = block[156:157]
        if block[257:262] != b"ustar" or kind in _FALLBACK or block[124] & 0x80:
            yield _walk_tarfile(data, file, at, scan), False
            return
        try:
            recorded, size = octal(block[_CHECKSUM]), octal(block[124:136])
        except ValueError:
            scan.problem = f"damaged header at byte {at}"
            return
        if recorded != sum(block) - sum(block[_CHECKSUM]) + 8 * 32:
            scan.problem = f"bad header checksum at byte {at}"
            return
        name = block[:100].split(b"\0")[0].decode("utf-8", "surrogateescape")
        prefix = block[345:500].split(b"\0")[0].decode("utf-8", "surrogateescape")
        name = f"{prefix}/{name}" if prefix else name
        if kind in _REFUSED or kind in _SKIPPED:
            size = 0  # POSIX: only these have no content
        if at + BLOCK + size > total:
            scan.problem = f"cut at byte {total}, inside member {name!r} of {size} bytes at byte {at}"
            return
        if kind in _REGULAR and not name.endswith("/"):
            yield [Member(name.removeprefix("./"), at, at + BLOCK, size)], False
        elif kind not in _SKIPPED and not name.endswith("/"):
            scan.refused.append((name, _REFUSED.get(kind, "unknown_member_type")))
        at += BLOCK + padded(size)
    scan.problem = (
        f"cut at byte {total}: the end-of-archive blocks are missing" if total else "empty file, no tar header"
    )


def _members(starts: list[int], sizes: list[int], names: list[bytes]) -> Run:
    """Members with plain headers. Names are looked at together: a text without the signs of a refusal holds none."""
    text = b"\n".join(names).decode("utf-8", "surrogateescape")
    lines, framed = text.split("\n"), f"\n{text}\n"
    plain = len(lines) == len(names) and not any(sign in framed for sign in _SIGNS) and "".join(lines).isprintable()
    if plain:
        return [_new(Member, (n, at, at + BLOCK, size)) for n, at, size in zip(lines, starts, sizes, strict=True)], True
    decoded = (raw.decode("utf-8", "surrogateescape") for raw in names)
    return [
        Member(name.removeprefix("./"), at, at + BLOCK, size)
        for name, at, size in zip(decoded, starts, sizes, strict=True)
        if not name.endswith("/")  # a folder, as old writers have it
    ], False


def octal(digits: bytes) -> int:
    """A number field of a header. Raises: ValueError for anything but octal digits, which int() alone would let pass."""
    text = digits.split(b"\0")[0].strip()
    if text and not text.isdigit():
        raise ValueError(f"not an octal number: {text!r}")
    return int(text or b"0", 8)


def _rest_is_zero(data: memoryview, at: int, chunk: int = 1 << 20) -> bool:
    return not any(bytes(data[i : i + chunk]).strip(b"\0") for i in range(at, len(data), chunk))


class _HeaderFile:
    """What `tarfile` may read of a tar: headers, and their extensions up to a size, since it takes a size at its word and
    its patterns take quadratic time on long numbers."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.seek, self.tell = file.seek, file.tell

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= LONGEST_EXTENSION:
            raise tarfile.ReadError(f"a header extension of {size} bytes")
        data = self._file.read(size)
        if size > 16 * BLOCK and _LONG_NUMBER.search(data):
            raise tarfile.ReadError("a header extension with a number of many digits")
        return data


def _walk_tarfile(data: memoryview, file: BinaryIO, start: int, scan: Scan) -> Iterator[Member]:
    """The same walk by the standard library, from the header at `start` on. It ends in silence at a damaged header and at
    a missing end of archive, so where it ended is looked at."""
    total = len(data)
    file.seek(start)
    previous = start
    try:
        with tarfile.open(fileobj=_HeaderFile(file), mode="r:", errorlevel=2, encoding="utf-8") as tar:  # type: ignore[call-overload]
            for info in tar:
                if info.size < 0 or tar.offset <= previous:  # it would go round for ever
                    scan.problem = f"damaged header at byte {previous}: a negative size"
                    return
                if info.type in _REGULAR and not info.issparse():
                    if info.offset_data + info.size > total:
                        scan.problem = f"cut at byte {total}, inside member {info.name!r}"
                        return
                    yield Member(info.name.removeprefix("./"), previous, info.offset_data, info.size)
                elif not info.isdir():
                    scan.refused.append((info.name, "sparse" if info.issparse() else "link_or_device"))
                previous = tar.offset
    except (tarfile.TarError, EOFError, OverflowError, ValueError, UnicodeError, RecursionError) as error:
        scan.problem = f"not readable as a tar from byte {previous} on: {error}"
        return
    if previous + BLOCK > total:
        scan.problem = f"cut at byte {total}: the end-of-archive blocks are missing"
    elif not _rest_is_zero(data, previous):
        scan.problem = f"damaged header, or members behind the end of archive, at byte {previous}"


def group(members: Iterable[Member], scan: Scan) -> Iterator[Sample]:
    """Runs of members with one key. A suffix met twice in a run starts another sample of the same key.

    The last run of a damaged tar may lack members that came after the damage, so it is refused, not handed out.
    """
    return _group([(members, False)], scan)


def _group(runs: Iterable[Run], scan: Scan) -> Iterator[Sample]:
    key, run, suffixes = "", [], []  # type: tuple[str, list[Member], list[str]]
    for members, accepted in runs:
        for member in members:
            name = member[0]
            if not accepted and (reason := refusal(name)):
                scan.refused.append((name, reason))
                continue
            if "/" in name:
                member_key, suffix = split_name(name)
            else:
                member_key, _, suffix = name.partition(".")
                suffix = suffix.lower()
            if run and (member_key != key or suffix in suffixes):
                yield _new(Sample, (key, tuple(run), tuple(suffixes)))
                run, suffixes = [], []
            key = member_key
            run.append(member)
            suffixes.append(suffix)
    if run and scan.problem:
        scan.refused.append((key, "incomplete_sample"))
    elif run:
        yield Sample(key, tuple(run), tuple(suffixes))
