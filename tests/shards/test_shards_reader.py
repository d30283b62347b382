"""The index and random access: any sample alone equals the same sample in the sequential read; damage is an error."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from shard_samples import NON_ASCII, PLAIN, commit_base, marker, scanned, written

from shards import sidecar
from shards.commit import StageFolder
from shards.errors import ShardError
from shards.index import ShardIndex
from shards.reader import BaseShard, embeddings_of, read_sidecar
from shards.tar import Member, Sample

ALL = PLAIN + NON_ASCII


def index_of_two() -> ShardIndex:
    one = Sample("a", (Member("a.jpg", 0, 512, 700), Member("a.txt", 1536, 2048, 3)), ("jpg", "txt"))
    two = Sample("b/ä", (Member("b/ä.png", 2560, 4096, 0),), ("png",))
    return ShardIndex.of([one, two])


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 0x01
    path.write_bytes(bytes(data))


def test_an_index_survives_its_file() -> None:
    index = index_of_two()
    again = ShardIndex.from_bytes(index.to_bytes(), "000000.idx")
    assert index.to_bytes() == again.to_bytes()
    assert (len(again), again.keys) == (2, ["a", "b/ä"])
    assert (again.offsets.tolist(), again.lengths.tolist()) == ([0, 2560], [2560, 1536])
    assert again.members(0) == [("jpg", 512, 700), ("txt", 2048, 3)]
    assert again.members(1) == [("png", 4096, 0)]


def test_an_index_of_no_sample_is_an_index() -> None:
    assert len(ShardIndex.from_bytes(ShardIndex.of([]).to_bytes(), "empty.idx")) == 0


@pytest.mark.parametrize("data", [b"", b"PAR1", b"PAR1" + b"x" * 100 + b"PAR1", b"not parquet"])
def test_a_file_that_is_no_index_is_named(data: bytes) -> None:
    with pytest.raises(ShardError, match=r"place/000003\.idx"):
        ShardIndex.from_bytes(data, "place/000003.idx")


def test_a_damaged_index_is_a_shard_error_or_an_index() -> None:
    whole = index_of_two().to_bytes()
    for at in range(len(whole)):
        damaged = bytearray(whole)
        damaged[at] ^= 0x80
        try:
            ShardIndex.from_bytes(bytes(damaged), "000003.idx")
        except ShardError as error:
            assert "000003.idx" in str(error)


def test_another_table_is_no_index() -> None:
    other = sidecar.to_bytes(sidecar.table(sidecar.QUARANTINE, {n: [] for n in sidecar.QUARANTINE.names}))
    with pytest.raises(ShardError, match="columns"):
        ShardIndex.from_bytes(other, "000003.idx")


def test_random_access_equals_the_sequential_read(tmp_path: Path) -> None:
    stage = StageFolder(str(tmp_path), "base")
    commit_base(stage, "000000", ALL)
    shard = BaseShard(stage, "000000")
    assert shard.keys == [key for key, _ in ALL]
    assert list(shard.samples()) == ALL
    assert [shard.sample(row) for row in (7, 0, 3, 5, 1, 2, 6, 4)] == [ALL[row][1] for row in (7, 0, 3, 5, 1, 2, 6, 4)]
    assert scanned(tmp_path, (tmp_path / "base/000000.tar").read_bytes())[0] == ALL
    assert (tmp_path / "base/000000.tar").read_bytes() == written(ALL)


def test_an_empty_shard_is_a_shard(tmp_path: Path) -> None:
    stage = StageFolder(str(tmp_path), "base")
    commit_base(stage, "000000", [])
    assert list(BaseShard(stage, "000000").samples()) == []


def test_a_shard_that_changed_after_its_commit_is_an_error(tmp_path: Path) -> None:
    stage = StageFolder(str(tmp_path), "base")
    commit_base(stage, "000000", ALL)
    path = tmp_path / "base/000000.tar"
    whole = path.read_bytes()
    path.write_bytes(whole[:-512])
    with pytest.raises(ShardError, match=r"000000\.tar has .* bytes, its marker says"):
        BaseShard(stage, "000000")
    path.write_bytes(whole)
    flip(path, 600)
    with pytest.raises(ShardError, match="no longer has the content"):
        list(BaseShard(stage, "000000").samples())
    path.unlink()
    with pytest.raises(ShardError, match=r"000000\.tar is missing"):
        BaseShard(stage, "000000")


def test_an_index_that_changed_after_its_commit_is_an_error(tmp_path: Path) -> None:
    """A wrong offset would hand out other bytes than the sample's."""
    stage = StageFolder(str(tmp_path), "base")
    commit_base(stage, "000000", ALL)
    other = ShardIndex.of([Sample("z", (Member("z.jpg", 0, 0, 5),), ("jpg",))] * len(ALL)).to_bytes()
    (tmp_path / "base/000000.idx").write_bytes(other)
    with pytest.raises(ShardError, match=r"000000\.idx"):
        BaseShard(stage, "000000")


QUARANTINED = {"key": ["a", "b"], "reason": ["r", "r"], "detail": ["d", "d"], "digest": ["0", "1"]}


def commit_sidecar(stage: StageFolder) -> Path:
    data = sidecar.to_bytes(sidecar.table(sidecar.QUARANTINE, QUARANTINED))
    with stage.attempt("000000") as attempt:
        attempt.write("000000.parquet", data)
        attempt.commit(lambda outputs: marker("000000", outputs))
    return Path(stage.store.path("000000.parquet"))


def test_a_committed_sidecar_is_read(tmp_path: Path) -> None:
    stage = StageFolder(str(tmp_path), "regions")
    with pytest.raises(ShardError, match=r"'regions' has not committed shard 000000"):
        read_sidecar(stage, "000000", sidecar.QUARANTINE)
    commit_sidecar(stage)
    assert read_sidecar(stage, "000000", sidecar.QUARANTINE).to_pydict() == QUARANTINED
    with pytest.raises(ShardError, match=r"lacks the columns \['boxes'"):
        read_sidecar(stage, "000000", pa.schema([sidecar.PAIRS.field("key"), sidecar.PAIRS.field("boxes")]))


def test_a_sidecar_that_was_cut_is_an_error(tmp_path: Path) -> None:
    stage = StageFolder(str(tmp_path), "regions")
    path = commit_sidecar(stage)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ShardError, match=r"000000\.parquet no longer has the content its marker recorded \(\d+ bytes"):
        read_sidecar(stage, "000000", sidecar.QUARANTINE)


def test_a_sidecar_that_changed_at_its_length_is_an_error(tmp_path: Path) -> None:
    stage = StageFolder(str(tmp_path), "regions")
    path = commit_sidecar(stage)
    whole = path.read_bytes()
    unnoticed = []
    for at in range(0, len(whole), 7):
        path.write_bytes(whole)
        flip(path, at)
        try:
            read_sidecar(stage, "000000", sidecar.QUARANTINE)
            unnoticed.append(at)
        except ShardError:
            pass
    assert not unnoticed


@given(counts=st.lists(st.integers(0, 4), max_size=6), dim=st.integers(1, 5))
def test_embeddings_come_back_row_by_row(counts: list[int], dim: int) -> None:
    rows = np.repeat(np.arange(len(counts)), counts)
    values = np.arange(len(rows) * dim, dtype=np.float16).reshape(len(rows), dim)
    flat = pa.array(values.reshape(-1), pa.float16())
    columns = {
        "row": rows.tolist(),
        "region": [0] * len(rows),
        "embedding": pa.FixedSizeListArray.from_arrays(flat, dim),
    }
    schema = sidecar.embeddings_schema(dim)
    stored = sidecar.from_bytes(sidecar.to_bytes(sidecar.table(schema, columns)), "e.parquet", schema)
    found_rows, found = embeddings_of(stored)
    assert found_rows.tolist() == rows.tolist()
    assert found.dtype == np.float16
    assert np.array_equal(found, values)
