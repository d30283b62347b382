"""A file written past the page cache holds what a plain one would, whatever the pieces and the file system."""

from __future__ import annotations

import errno
import hashlib
import mmap
import os
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shards import outfile
from shards.errors import ShardError, StorageFullError
from shards.outfile import HashingFile, batches, cut

SOURCE = random.Random(0).randbytes(6 << 20)


@pytest.fixture(scope="module")
def mapped(tmp_path_factory: pytest.TempPathFactory) -> memoryview:
    path = tmp_path_factory.mktemp("outfile") / "source"
    path.write_bytes(SOURCE)
    with open(path, "rb") as file:
        return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))


def pieces(rng: random.Random, view: memoryview, unit: int) -> list[memoryview]:
    found, count = [], rng.choice([1, 3, 1500])
    for _ in range(count):
        low = rng.randrange(len(view) // unit)
        high = min(low + rng.choice([1, 2, 9] if count > 3 else [1, 9, 5000]), len(view) // unit)
        found.append(view[low * unit : high * unit])
    return found


def written(path: Path, view: memoryview, seed: int, direct: bool) -> bytes:
    """What went in; the file is held against it."""
    rng, expected = random.Random(seed), bytearray()
    file = HashingFile(str(path), direct=direct)
    for _ in range(4):
        small = rng.randbytes(rng.choice([0, 1, 512, 5000]))
        file.write(small)
        views = pieces(rng, view, rng.choice([512, 512, 512, 7]))
        file.write_views(views)
        expected += small + b"".join(views)
        assert file.tell() == len(expected)
    file.close()
    assert file.sha256 == hashlib.sha256(expected).hexdigest() and file.bytes == len(expected)
    return bytes(expected)


@pytest.mark.parametrize("direct", [True, False])
@pytest.mark.parametrize("seed", range(8))
def test_any_pieces_arrive_in_order(tmp_path: Path, mapped: memoryview, seed: int, direct: bool) -> None:
    expected = written(tmp_path / "file", mapped, seed, direct)
    assert (tmp_path / "file").read_bytes() == expected


@pytest.mark.skipif(not hasattr(os, "O_DIRECT"), reason="needs O_DIRECT")
@pytest.mark.parametrize("where", ["open", "write", "third write", "short"])
def test_a_file_system_that_takes_no_direct_writes(
    tmp_path: Path, mapped: memoryview, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    monkeypatch.setattr(outfile, "BATCH_BYTES", 1 << 20)
    real_open, real_write, handles, calls = os.open, os.pwritev, set(), [0]

    def opened(path: Any, flags: int, *more: Any, **named: Any) -> int:
        if flags & os.O_DIRECT and where == "open":
            raise OSError(errno.EINVAL, "no")
        handle = real_open(path, flags, *more, **named)
        if flags & os.O_DIRECT:
            handles.add(handle)
        return handle

    def put(handle: int, views: list[memoryview], at: int) -> int:
        calls[0] += handle in handles
        if handle in handles and (where == "write" or (where == "third write" and calls[0] == 3)):
            raise OSError(errno.EINVAL, "no")
        if where == "short":
            views = cut(views, 0, max(sum(len(v) for v in views) // 2 // 512 * 512, 1))
        return real_write(handle, views, at)

    monkeypatch.setattr(os, "open", opened)
    monkeypatch.setattr(os, "pwritev", put)
    file = HashingFile(str(tmp_path / "file"), direct=True)
    file.write_views([mapped[512 : 5 << 20], mapped[: 1 << 20]])
    file.write_views([mapped[: 2 << 20]])
    file.close()
    assert (tmp_path / "file").read_bytes() == SOURCE[512 : 5 << 20] + SOURCE[: 1 << 20] + SOURCE[: 2 << 20]
    assert calls[0] >= (where != "open")


def test_failures_are_told(tmp_path: Path, mapped: memoryview, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "source"
    source.write_bytes(SOURCE)
    with open(source, "r+b") as file:
        view = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        file.truncate(1 << 20)
    for direct in (True, False):
        out = HashingFile(str(tmp_path / f"out{direct}"), hashed=False, direct=direct)
        with pytest.raises(ShardError, match="was cut while it was copied"):
            out.write_views([view])
        out.close()

    def full(*given: Any) -> int:
        raise OSError(errno.ENOSPC, "no space left")

    monkeypatch.setattr(os, "pwritev", full)
    out = HashingFile(str(tmp_path / "full"), direct=True)
    with pytest.raises(StorageFullError):
        out.write_views([mapped])


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(1, 30), max_size=40), st.integers(0, 400), st.integers(0, 400), st.sampled_from([1, 4, 8]))
def test_cuts_and_batches_are_the_same_bytes(sizes: list[int], low: int, more: int, aligned: int) -> None:
    data = memoryview(random.Random(1).randbytes(4 * 30 * 40))
    views, at = [], 0
    for size in sizes:
        views.append(data[at : at + 4 * size])
        at += 4 * size
    assert b"".join(cut(views, low, low + more)) == bytes(data[:at])[low : low + more]
    assert b"".join(cut(views, low, None)) == bytes(data[:at])[low:]
    before = outfile.BATCH_BYTES, outfile.BATCH_VIEWS
    outfile.BATCH_BYTES, outfile.BATCH_VIEWS = 64, 5
    try:
        found = list(batches(views, aligned))
    finally:
        outfile.BATCH_BYTES, outfile.BATCH_VIEWS = before
    assert b"".join(b"".join(part) for part in found) == data[:at]
    assert all(sum(map(len, part)) % aligned == 0 for part in found[:-1])
    assert all(0 < sum(map(len, part)) <= 64 and len(part) <= 5 for part in found)
