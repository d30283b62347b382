"""index and stats: what they write and say, against counts made by hand."""

from __future__ import annotations

import shutil
from pathlib import Path

import made_dataset
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_dataset import IMAGES, REGIONS, SHARDS, make, samples, tar_and_index
from shard_samples import NON_ASCII, PLAIN, written

from shards.errors import VillaError
from shards.histogram import Histogram
from shards.index import ShardIndex
from shards.indexing import index_tars
from shards.stats import spaced, stats, summary
from shards.work import run_here


@pytest.fixture
def tars(tmp_path: Path) -> Path:
    folder = tmp_path / "tars"
    (folder / "deep").mkdir(parents=True)
    (folder / "a.tar").write_bytes(written(PLAIN))
    (folder / "b.tar").write_bytes(written(NON_ASCII))
    (folder / "deep" / "c.tar").write_bytes(written(PLAIN[:1]))
    return folder


def listing(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def test_an_index_gets_every_member_of_every_sample(tars: Path) -> None:
    done = index_tars(str(tars), run_here)
    assert (done.tars, done.written, done.there, done.refused, done.samples) == (2, 2, 0, 0, 8)
    for name, made in (("a", PLAIN), ("b", NON_ASCII)):
        data = (tars / f"{name}.tar").read_bytes()
        index = ShardIndex.from_bytes((tars / f"{name}.idx").read_bytes(), name)
        read = [
            (key, {s: data[at : at + size] for s, at, size in index.members(row)}) for row, key in enumerate(index.keys)
        ]
        assert read == made
        assert index.tar_bytes == len(data)


def test_indices_go_under_another_folder_and_the_tars_stay_as_they_are(tars: Path, tmp_path: Path) -> None:
    before = listing(tars)
    done = index_tars(f"{tars}/**/*.tar", run_here, out=str(tmp_path / "out"))
    assert (done.tars, done.written) == (3, 3)
    assert listing(tmp_path / "out") == ["a.idx", "b.idx", "deep/c.idx"]
    assert listing(tars) == before


def test_a_second_run_makes_only_what_is_missing(tars: Path) -> None:
    index_tars(str(tars), run_here)
    first = (tars / "a.idx").stat()
    (tars / "b.idx").unlink()
    done = index_tars(str(tars), run_here)
    assert (done.written, done.there, done.samples) == (1, 1, 8)
    assert ((tars / "a.idx").stat().st_ino, (tars / "a.idx").stat().st_mtime_ns) == (first.st_ino, first.st_mtime_ns)


def test_a_damaged_tar_gets_no_index_and_the_others_do(tars: Path) -> None:
    (tars / "a.tar").write_bytes(written(PLAIN)[:-1024])
    done = index_tars(str(tars), run_here)
    assert (done.written, done.refused) == (1, 1)
    assert not (tars / "a.idx").exists()
    assert done.findings.counts["error", "damaged tar"] == 1


def test_an_index_of_another_tar_is_not_taken_for_this_ones(tars: Path) -> None:
    index_tars(str(tars), run_here)
    (tars / "a.tar").write_bytes(written(PLAIN[:2]))
    (tars / "b.idx").write_bytes(b"v1.1 3\n")  # some tools write text files of that name
    done = index_tars(str(tars), run_here)
    assert (done.written, done.there, done.refused) == (0, 0, 2)
    assert set(done.findings.counts) == {("error", "index of another tar"), ("error", "another file")}
    done = index_tars(str(tars), run_here, force=True)
    assert (done.written, done.findings.clean) == (2, True)
    assert len(ShardIndex.from_bytes((tars / "a.idx").read_bytes(), "a")) == 2


def test_committed_shards_are_not_indexed_anew(tmp_path: Path) -> None:
    with pytest.raises(VillaError, match="committed shards"):
        index_tars(str(make(tmp_path)), run_here)


# ---- stats


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("stats"))


def test_the_counts_of_a_data_set(dataset: Path) -> None:
    found = summary(stats(str(dataset), run_here))
    images, total = IMAGES * len(SHARDS), IMAGES * len(SHARDS) * REGIONS
    assert (found["kind"], found["shards"], found["samples"]) == ("dataset", 3, images)
    assert found["suffixes"] == {"png": images, "txt": images}
    assert found["refused"] == {"no_text": 2, "no_image": 1}
    assert found["text_words"]["p50"] == 2
    assert (found["image_width"]["min"], found["image_height"]["max"]) == (20, 16)
    tars = [tar_and_index(samples(s))[0] for s in SHARDS]
    assert found["sample_bytes"]["mean"] == round((sum(map(len, tars)) - 3 * 1024) / images, 2)
    pairs = found["stages"]["pairs"]
    assert (pairs["pairs"], pairs["regions"], pairs["attributes"]) == (total, total, REGIONS)
    assert pairs["pairs_per_image"]["p50"] == REGIONS
    assert pairs["most_frequent"] == {"p0": images, "p1": images, "p2": images}
    size = sum((dataset / f"pairs/{s}.parquet").stat().st_size for s in SHARDS)
    assert pairs["bytes_per_pair"] == round(size / total, 2)
    assert found["stages"]["regions"]["mentions"] == total


def test_a_sample_of_shards_is_the_same_each_time_and_evenly_spaced(dataset: Path) -> None:
    assert spaced([str(n) for n in range(100)], 4) == ["12", "37", "62", "87"]
    assert spaced(["a", "b"], 8) == ["a", "b"]
    assert spaced([], 8) == []
    found = summary(stats(str(dataset), run_here, sample=1))
    assert (found["sampled_shards"], found["sampled_samples"]) == (1, IMAGES)
    assert summary(stats(str(dataset), run_here, sample=0))["text_words"] == {}


def test_stats_of_one_stage_and_of_foreign_tars(dataset: Path, tars: Path) -> None:
    assert list(summary(stats(str(dataset / "truth"), run_here))["stages"]) == ["truth"]
    found = summary(stats(str(tars), run_here))
    assert (found["kind"], found["shards"], found["samples"]) == ("tars", 2, 8)
    assert found["suffixes"]["jpg"] == 6


def test_a_damaged_index_is_an_error_that_names_it(dataset: Path, tmp_path: Path) -> None:
    shutil.copytree(dataset, tmp_path / "copy")
    (tmp_path / "copy/base/000000.idx").write_bytes(b"x")
    with pytest.raises(VillaError, match=r"000000\.idx"):
        stats(str(tmp_path / "copy"), run_here)
    assert made_dataset.IMAGES


@given(
    values=st.lists(st.one_of(st.integers(0, 10**9), st.integers(0, 99)), min_size=1, max_size=300),
    cut=st.integers(0, 300),
)
def test_percentiles_are_within_one_percent_of_the_exact_ones(values: list[int], cut: int) -> None:
    first, second = Histogram(), Histogram()
    first.add(values[:cut])
    second.add(values[cut:])
    first.merge(Histogram.from_json(second.to_json()))
    assert first.count == len(values)
    for share in (1, 5, 25, 50, 75, 95, 99, 100):
        exact = float(np.percentile(values, share, method="inverted_cdf"))
        assert first.percentile(share) == pytest.approx(exact, rel=0.0101)
