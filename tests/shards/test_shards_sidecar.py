"""Sidecars: ragged columns survive their file whatever the rows hold, and a row out of step is named."""

from __future__ import annotations

import itertools

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shards import sidecar
from shards.errors import ShardError

TYPES = {f.name: f.type for f in sidecar.PAIRS}
ROWS = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 6)), max_size=8)  # boxes and pairs of each image


def pairs_table(rows: list[tuple[int, int]], rng: np.random.Generator) -> tuple[pa.Table, dict[str, list[np.ndarray]]]:
    boxes = [rng.uniform(0, 100, (b, 4)).astype(np.float32) for b, _ in rows]
    region = [rng.integers(0, 60_000, p).astype(np.uint16) for _, p in rows]
    attribute = [rng.integers(0, 1 << 30, p).astype(np.int32) for _, p in rows]
    score = [rng.uniform(-1, 1, p).astype(np.float16) for _, p in rows]
    lengths = {"boxes": [b for b, _ in rows], **{n: [p for _, p in rows] for n in ("region", "attribute", "score")}}
    values = {"boxes": boxes, "region": region, "attribute": attribute, "score": score}
    empty = {
        "boxes": np.zeros((0, 4), np.float32),
        "region": np.uint16([]),
        "attribute": np.int32([]),
        "score": np.float16([]),
    }
    columns = {n: sidecar.ragged(TYPES[n], np.concatenate([empty[n], *v]), lengths[n]) for n, v in values.items()}
    return sidecar.table(sidecar.PAIRS, {"key": [f"k{i}" for i in range(len(rows))], **columns}), values


@given(rows=ROWS, seed=st.integers(0, 99))
def test_ragged_columns_survive_their_file(rows: list[tuple[int, int]], seed: int) -> None:
    made, values = pairs_table(rows, np.random.default_rng(seed))
    data = sidecar.to_bytes(made)
    assert data == sidecar.to_bytes(made)
    for table in (made, sidecar.from_bytes(data, "pairs/000000.parquet", sidecar.PAIRS)):
        assert len(table) == len(rows)
        for name, expected in values.items():
            found, at = sidecar.list_column(table, name)
            assert at[0] == 0
            assert len(at) == len(rows) + 1
            for i, row in enumerate(expected):
                assert np.array_equal(found[at[i] : at[i + 1]], row)


@given(rows=ROWS.filter(lambda r: len(r) > 2), cut=st.integers(1, 2))
def test_a_slice_of_a_table_is_read_like_a_table(rows: list[tuple[int, int]], cut: int) -> None:
    made, values = pairs_table(rows, np.random.default_rng(0))
    boxes, at = sidecar.list_column(made.slice(cut), "boxes")
    assert [boxes[a:b].tolist() for a, b in itertools.pairwise(at)] == [b.tolist() for b in values["boxes"][cut:]]


def test_lists_equal_those_a_plain_writer_makes() -> None:
    boxes = [[[0.0, 1.0, 2.0, 3.0], [4.0, 5.0, 6.0, 7.0]], [], [[8.0, 9.0, 10.0, 11.0]]]
    flat = np.array([b for row in boxes for b in row], np.float32)
    made = sidecar.ragged(TYPES["boxes"], flat, [2, 0, 1])
    assert made.to_pylist() == boxes
    assert made.type == TYPES["boxes"]


def test_boxes_of_a_writer_that_lost_the_fixed_length_are_read() -> None:
    table = pa.table({"boxes": pa.array([[[0.0, 1.0, 2.0, 3.0]], []], pa.list_(pa.list_(pa.float32())))})
    boxes, at = sidecar.list_column(table, "boxes")
    assert boxes.tolist() == [[0.0, 1.0, 2.0, 3.0]]
    assert at.tolist() == [0, 1, 1]


@pytest.mark.parametrize("data", [b"", b"PAR1", b"no parquet at all"])
def test_what_is_no_parquet_is_named(data: bytes) -> None:
    with pytest.raises(ShardError, match=r"pairs/000007\.parquet"):
        sidecar.from_bytes(data, "pairs/000007.parquet")


def test_damaged_parquet_is_a_shard_error_or_a_table() -> None:
    whole = sidecar.to_bytes(pairs_table([(2, 3), (0, 0), (1, 1)], np.random.default_rng(0))[0])
    for at in range(len(whole)):
        damaged = bytearray(whole)
        damaged[at] ^= 0x80
        try:
            sidecar.from_bytes(bytes(damaged), "pairs/000007.parquet", sidecar.PAIRS)
        except ShardError as error:
            assert "000007.parquet" in str(error)


def test_a_row_out_of_step_is_named_with_both_keys() -> None:
    table, _ = pairs_table([(1, 1)] * 4, np.random.default_rng(0))
    sidecar.check_aligned(table, ["k0", "k1", "k2", "k3"], "pairs/000007")
    with pytest.raises(ShardError, match=r"pairs/000007 row 2 has key 'k2', its base shard 'other'"):
        sidecar.check_aligned(table, ["k0", "k1", "other", "k3"], "pairs/000007")
    with pytest.raises(ShardError, match=r"pairs/000007 row 1 has key 'k1', its base shard 'k2'"):
        sidecar.check_aligned(table, ["k0", "k2", "k1", "k3"], "pairs/000007")
    with pytest.raises(ShardError, match=r"pairs/000007 has 4 rows, its base shard 3 samples"):
        sidecar.check_aligned(table, ["k0", "k1", "k2"], "pairs/000007")
