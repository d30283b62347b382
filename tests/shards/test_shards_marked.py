"""The table of a stage's markers, and its cache: never other than the markers themselves."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from shards import manifest, marked
from shards.commit import SUFFIX, Marker, StageFolder
from shards.errors import ShardError, StaleStageError

NAMES = [f"{n:06d}" for n in range(12)]


@pytest.fixture(params=["local", "s3"])
def stage(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StageFolder:
    monkeypatch.setattr(marked, "WORTH", 2)
    monkeypatch.setattr(marked, "TOGETHER", 5)
    url = str(tmp_path / "set") if request.param == "local" else request.getfixturevalue("s3").url("set")
    made = StageFolder(url, "pairs")
    bound = made.claim({"a": 1})
    for n, name in enumerate(NAMES):
        commit(made, name, bound, b"x" * n)
    return made


def commit(stage: StageFolder, name: str, bound: str, data: bytes, samples: int = 7) -> None:
    with stage.attempt(name) as attempt:
        attempt.write(f"{name}.parquet", data)
        attempt.commit(lambda outputs: Marker(name, "pairs", bound, "in", samples, "0" * 32, outputs, samples))


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The markers that are read from here on."""
    found: list[str] = []
    read = StageFolder.marker

    def counted(self: StageFolder, shard: str) -> Marker:
        found.append(shard)
        return read(self, shard)

    monkeypatch.setattr(StageFolder, "marker", counted)
    return found


def test_rows_are_what_the_markers_say_and_are_read_once(stage: StageFolder, asked: list[str]) -> None:
    shuffled = random.Random(0).sample(NAMES, len(NAMES))
    found = marked.rows(stage, shuffled, strict=True)
    assert found.select(manifest.SCHEMA.names).to_pylist() == [marked.row_of(stage.marker(n)) for n in NAMES]
    asked.clear()
    assert marked.rows(stage).equals(found) and asked == []
    assert marked.rows(stage, NAMES[3:5])["shard"].to_pylist() == NAMES[3:5] and asked == []
    commit(stage, "000099", stage.bound_to(), b"new")
    assert marked.rows(stage)["shard"].to_pylist() == [*NAMES, "000099"] and asked == ["000099"]


def test_a_marker_that_was_replaced_or_removed_is_read_anew(stage: StageFolder, asked: list[str]) -> None:
    bound = stage.bound_to()
    marked.rows(stage)
    for name in NAMES[2:4]:
        stage.store.remove(name + SUFFIX)
    commit(stage, NAMES[2], bound, b"yy", samples=9)  # a marker of the same length
    asked.clear()
    found = marked.rows(stage).to_pydict()
    assert asked == [NAMES[2]]
    assert found["samples"] == [9 if n == NAMES[2] else 7 for n in NAMES if n != NAMES[3]]
    with pytest.raises(ShardError, match=NAMES[3]):
        marked.rows(stage, NAMES, strict=True)


def test_a_damaged_marker_is_left_out_or_named(stage: StageFolder) -> None:
    marked.rows(stage)
    stage.store.put(NAMES[5] + SUFFIX, b"{}")
    assert marked.rows(stage)["shard"].to_pylist() == [n for n in NAMES if n != NAMES[5]]
    with pytest.raises(ShardError, match=f"{NAMES[5]}.*damaged"):
        manifest.write(stage, NAMES)
    assert not manifest.exists(stage)


def test_the_manifest_is_the_same_bytes_and_takes_the_place_of_the_cache(stage: StageFolder, asked: list[str]) -> None:
    manifest.write(stage, NAMES)
    plain = stage.store.read(manifest.NAME)
    assert not stage.store.exists(marked.NAME)
    marked.rows(stage)
    asked.clear()
    manifest.write(stage, NAMES)
    assert asked == [] and stage.store.read(manifest.NAME) == plain and not stage.store.exists(marked.NAME)


def test_no_cache_brings_in_what_another_config_made(stage: StageFolder) -> None:
    marked.rows(stage)
    stage.store.remove(NAMES[4] + SUFFIX)
    stage.store.put("config.json", b'{"a": 2}')
    with pytest.raises(StaleStageError, match="committed under another config"):
        manifest.write(stage, NAMES[:4])


@pytest.mark.parametrize("data", [b"", b"PAR1", None])
def test_a_cache_that_is_damaged_is_made_anew(stage: StageFolder, data: bytes | None, asked: list[str]) -> None:
    expected = marked.rows(stage)
    good = stage.store.read(marked.NAME)
    stage.store.put(marked.NAME, good[: len(good) // 2] + b"\xff" * 20 if data is None else data)
    asked.clear()
    assert marked.rows(stage).equals(expected) and sorted(asked) == NAMES
    assert stage.store.read(marked.NAME) != data


def test_what_is_sound_is_what_each_shard_is_by_itself(stage: StageFolder) -> None:
    bound, files = stage.bound_to(), stage.store
    marked.rows(stage)
    files.put(f"{NAMES[1]}.parquet", b"another size")
    files.remove(f"{NAMES[2]}.parquet")
    files.remove(NAMES[3] + SUFFIX)
    files.put(NAMES[4] + SUFFIX, b"{")
    files.remove(NAMES[6] + SUFFIX)
    other = StageFolder(stage.dataset_url, "pairs")
    files.put("config.json", b'{"a": 2}')
    commit(other, NAMES[6], other.bound_to(), b"made with another config")
    sizes = files.list_sizes()
    alone = {n for n in NAMES if not stage.damaged(n, content=False, bound=bound, sizes=sizes)}
    assert manifest.sound(stage, sizes, bound, NAMES) == alone == {NAMES[n] for n in (0, 5, *range(7, 12))}


def test_few_markers_leave_no_cache(stage: StageFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(marked, "WORTH", 100)
    assert len(marked.rows(stage)) == len(NAMES) and not stage.store.exists(marked.NAME)
    assert marked.rows(StageFolder(f"{stage.dataset_url}/nowhere", "pairs")).num_rows == 0


def test_a_file_is_read_whole_however_it_comes(tmp_path: Path) -> None:
    stage = StageFolder(str(tmp_path), "pairs")
    stage.store.put("a", b"1" * 100_000)
    assert stage.store.read("a") == b"1" * 100_000 and stage.store.find("b") is None
    os.mkfifo(tmp_path / "pairs/pipe")
    if not os.fork():
        with open(tmp_path / "pairs/pipe", "wb") as pipe:
            pipe.write(b"2" * 100_000)
        os._exit(0)
    assert stage.store.read("pipe") == b"2" * 100_000
    os.wait()
    with pytest.raises(IsADirectoryError):
        stage.store.read(".")
