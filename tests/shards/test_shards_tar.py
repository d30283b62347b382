"""Tars: what is written opens everywhere, what is read equals tarfile, and damage is always noticed."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from shard_samples import NON_ASCII, PLAIN, Samples, archived, scanned, written

from shards.tar import BLOCK, END, header, refusal, split_name

KEYS = st.from_regex(r"[a-z0-9äé写]{1,8}(/[a-z0-9.ö]{1,6}[a-z])?", fullmatch=True).map(lambda k: split_name(k)[0])
KEYS = KEYS.filter(lambda key: not refusal(f"{key}.jpg"))
MEMBERS = st.dictionaries(st.sampled_from(["jpg", "txt", "json", "seg.png"]), st.binary(max_size=1100), min_size=1)
SAMPLES = st.dictionaries(KEYS, MEMBERS, max_size=6).map(lambda d: list(d.items()))


def by_tarfile(data: bytes) -> list[tuple[str, bytes]]:
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        return [(m.name, tar.extractfile(m).read()) for m in tar if m.isreg()]  # type: ignore[union-attr]


def names(samples: Samples) -> list[tuple[str, bytes]]:
    return [(f"{key}.{suffix}", data) for key, members in samples for suffix, data in members.items()]


def with_checksum(block: bytearray) -> bytes:
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


@pytest.mark.parametrize("samples", [PLAIN, NON_ASCII, []], ids=["plain", "non-ascii-and-long", "empty"])
def test_a_written_tar_is_deterministic_and_opens_in_tarfile(samples: Samples) -> None:
    data = written(samples)
    assert data == written(samples)
    assert by_tarfile(data) == names(samples)
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        assert all((m.mtime, m.uid, m.gid, m.uname, m.mode) == (0, 0, 0, "", 0o644) for m in tar)


def test_a_written_tar_opens_in_webdataset(tmp_path: Path) -> None:
    webdataset = pytest.importorskip("webdataset")
    path = tmp_path / "000000.tar"
    path.write_bytes(written(PLAIN + NON_ASCII))
    found = []
    for sample in webdataset.WebDataset(str(path), shardshuffle=False, empty_check=False):
        found.append((sample["__key__"], {k: v for k, v in sample.items() if not k.startswith("__")}))
    assert found == PLAIN + NON_ASCII


@given(samples=SAMPLES)
def test_any_samples_survive_writing_and_reading(samples: Samples, tmp_path: Path) -> None:
    data = written(samples)
    assert by_tarfile(data) == names(samples)
    found, scan = scanned(tmp_path, data)
    assert found == samples
    assert (scan.problem, scan.refused) == ("", [])


@pytest.mark.parametrize(
    "form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT], ids=["ustar", "gnu", "pax"]
)
@pytest.mark.parametrize("samples", [PLAIN, PLAIN + NON_ASCII], ids=["plain", "mixed"])
def test_the_walk_equals_tarfile(samples: Samples, form: int, tmp_path: Path) -> None:
    if form == tarfile.USTAR_FORMAT:
        samples = [(k, m) for k, m in samples if len(k) < 100]
    data = archived(samples, form)
    found, scan = scanned(tmp_path, data)
    assert names(found) == by_tarfile(data) == names(samples)
    assert (scan.problem, scan.refused) == ("", [])


def test_a_ustar_prefix_is_part_of_the_name(tmp_path: Path) -> None:
    key = "/".join(["folder" * 4] * 5) + "/image"
    found, scan = scanned(tmp_path, archived([(key, {"jpg": b"1"})], tarfile.USTAR_FORMAT))
    assert (found, scan.problem) == ([(key, {"jpg": b"1"})], "")


@pytest.mark.parametrize(
    "data",
    [written(PLAIN), written(NON_ASCII), archived(NON_ASCII, tarfile.GNU_FORMAT)],
    ids=["plain", "pax", "gnu-long"],
)
def test_a_cut_is_noticed_at_every_block_and_yields_no_wrong_sample(data: bytes, tmp_path: Path) -> None:
    whole, scan = scanned(tmp_path, data)
    assert scan.problem == ""
    content = len(data.rstrip(b"\0"))
    end = (content + BLOCK - 1) // BLOCK * BLOCK  # where the end-of-archive blocks begin
    missed, wrong = [], []
    for cut in sorted({*range(0, end + 1, BLOCK), *range(1, end, 397), end + 1, end + BLOCK - 1}):
        found, scan = scanned(tmp_path, data[:cut])
        if not scan.problem:
            missed.append(cut)
        if found != whole[: len(found)]:
            wrong.append((cut, [(key, sorted(members)) for key, members in found][-1]))
    assert not missed, f"cuts that were not noticed: {missed}"
    assert not wrong, f"cuts that yield half a sample: {wrong}"


def test_a_cut_between_the_two_end_blocks_loses_nothing(tmp_path: Path) -> None:
    found, _ = scanned(tmp_path, written(PLAIN)[:-BLOCK])
    assert found == PLAIN


def test_samples_behind_a_zeroed_block_are_not_lost_silently(tmp_path: Path) -> None:
    """A hole in the middle (a resumed download, two tars end to end) looks like the end of the archive."""
    joined = written(PLAIN[:2]) + written(PLAIN[2:])
    found, scan = scanned(tmp_path, joined)
    assert found == PLAIN or scan.problem


@pytest.mark.parametrize("samples", [PLAIN, NON_ASCII], ids=["plain", "pax"])
def test_a_flipped_byte_in_a_header_is_noticed(samples: Samples, tmp_path: Path) -> None:
    data = written(samples)
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        third = list(tar)[2]
    places = {third.offset, third.offset_data - BLOCK}  # PAX: a header before the header
    for at in sorted(place + offset for place in places for offset in (0, 124, 150)):
        damaged = bytearray(data)
        damaged[at] ^= 0x15
        found, scan = scanned(tmp_path, bytes(damaged))
        assert scan.problem, f"byte {at}"
        assert found == scanned(tmp_path, data)[0][: len(found)]


@pytest.mark.parametrize(
    "size", [b"-0000001000\0", b"-0000000001\0", b"0o000000017\0", b"00000000_17\0", b"9999999999 \0"]
)
@pytest.mark.timeout(20)
def test_a_size_that_is_no_octal_number_is_damage(size: bytes, tmp_path: Path) -> None:
    block = bytearray(header("b.jpg", 0))
    block[124:136] = size
    before = written([("a", {"jpg": b"1"})])[: 2 * BLOCK]
    found, scan = scanned(tmp_path, before + with_checksum(block) + b"\0" * 4 * BLOCK)
    assert scan.problem
    assert all(key == "a" for key, _ in found)


@pytest.mark.timeout(60)
def test_thousands_of_nested_headers_are_damage_and_no_crash(tmp_path: Path) -> None:
    long_name = header("././@LongLink", 6)
    block = bytearray(long_name)
    block[156:157] = b"L"
    nested = (with_checksum(block) + b"a.jpg\0".ljust(BLOCK, b"\0")) * 3000
    found, scan = scanned(tmp_path, nested + header("a.jpg", 0) + END)
    assert scan.problem or [key for key, _ in found] == ["a"]


def special(kind: bytes, name: str) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, "/etc/passwd"
    return info


@pytest.mark.parametrize(
    "form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT], ids=["ustar", "gnu", "pax"]
)
@pytest.mark.parametrize("first", ["plain.jpg", "ä.jpg"], ids=["fast", "maybe-by-tarfile"])
def test_what_could_escape_is_refused_with_a_reason(form: int, first: str, tmp_path: Path) -> None:
    sink = io.BytesIO()
    kinds = {
        "link.jpg": tarfile.SYMTYPE,
        "hard.jpg": tarfile.LNKTYPE,
        "char.jpg": tarfile.CHRTYPE,
        "block.jpg": tarfile.BLKTYPE,
        "fifo.jpg": tarfile.FIFOTYPE,
    }
    unsafe = [
        "../up.jpg",
        "a/../../up.jpg",
        "/etc/absolute.jpg",
        ".//etc/absolute.jpg",
        "..",
        "new\nline.jpg",
        "esc\x1b[2J.jpg",
    ]
    with tarfile.open(fileobj=sink, mode="w", format=form) as tar:
        tar.addfile(tarfile.TarInfo(first))
        for name, kind in kinds.items():
            tar.addfile(special(kind, name))
        for name in unsafe:
            tar.addfile(tarfile.TarInfo(name))
        folder = tarfile.TarInfo("folder")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
        tar.addfile(tarfile.TarInfo("last.jpg"))
    found, scan = scanned(tmp_path, sink.getvalue())
    assert [key for key, _ in found] == [first.removesuffix(".jpg"), "last"]
    assert scan.problem == ""
    assert len(scan.refused) == len(kinds) + len(unsafe), "a folder is no sample; all else that is left out is counted"
    assert all(reason for _, reason in scan.refused)
    assert {name for name, _ in scan.refused} >= set(kinds)


def test_a_member_of_unknown_type_does_not_hide_what_follows(tmp_path: Path) -> None:
    """POSIX: an unknown type has content like a regular file. GNU's folder dumps (type D) are such members."""
    block = bytearray(header("dump", 20))
    block[156:157] = b"D"
    data = with_checksum(block) + b"Yfile\0\0".ljust(BLOCK, b"\0") + written(PLAIN)
    found, scan = scanned(tmp_path, data)
    assert found == PLAIN
    assert scan.problem == ""
    assert [name for name, _ in scan.refused] == ["dump"]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a.jpg", ("a", "jpg")),
        ("a/b.jpg", ("a/b", "jpg")),
        ("v1.2/set.a/0001.jpg", ("v1.2/set.a/0001", "jpg")),
        ("a/0001.seg.png", ("a/0001", "seg.png")),
        ("a/0001.JPG", ("a/0001", "jpg")),
        ("a.b/README", ("a.b/README", "")),
    ],
)
def test_a_key_ends_at_the_first_dot_of_the_last_part(name: str, expected: tuple[str, str]) -> None:
    assert split_name(name) == expected


def test_members_group_by_key_and_a_repeated_suffix_starts_another_sample(tmp_path: Path) -> None:
    sink = io.BytesIO()
    order = [
        "v1.0/a.jpg",
        "v1.0/a.txt",
        "v1.0/b.jpg",
        "v2.0/b.jpg",
        "v2.0/b.txt",
        "c.jpg",
        "c.jpg",
        "c.txt",
        "v1.0/a.json",
    ]
    with tarfile.open(fileobj=sink, mode="w") as tar:
        for number, name in enumerate(order):
            info = tarfile.TarInfo(name)
            info.size = 1
            tar.addfile(info, io.BytesIO(b"%d" % number))
    found, _ = scanned(tmp_path, sink.getvalue())
    assert found == [
        ("v1.0/a", {"jpg": b"0", "txt": b"1"}),
        ("v1.0/b", {"jpg": b"2"}),
        ("v2.0/b", {"jpg": b"3", "txt": b"4"}),
        ("c", {"jpg": b"5"}),
        ("c", {"jpg": b"6", "txt": b"7"}),
        ("v1.0/a", {"json": b"8"}),
    ]


@pytest.mark.parametrize("data", [b"", b"not a tar", b"\x1f\x8b\x08" + b"z" * 2000, b"\0" * 100, b"x" * 5000])
def test_what_is_no_tar_is_damage(data: bytes, tmp_path: Path) -> None:
    found, scan = scanned(tmp_path, data)
    assert found == []
    assert scan.problem


@given(at=st.integers(0, 6000), value=st.integers(0, 255), pax=st.booleans())
def test_any_flipped_byte_ends_in_samples_or_damage(at: int, value: int, pax: bool, tmp_path: Path) -> None:
    data = bytearray(written(NON_ASCII if pax else PLAIN))
    data[at % len(data)] = value
    scanned(tmp_path, bytes(data))  # ends, without an exception
