"""Manifests: derived from markers, rebuilt at will, and named by a digest that follows the data."""

from __future__ import annotations

from pathlib import Path

import pytest
from shard_samples import PLAIN, Samples, commit_base, marker

from shards import manifest
from shards.commit import StageFolder
from shards.digest import fingerprint, keys_digest
from shards.errors import ShardError, StaleStageError


def dataset(folder: Path, shards: dict[str, Samples]) -> manifest.Manifest:
    stage = StageFolder(str(folder), "base")
    for shard, samples in shards.items():
        commit_base(stage, shard, samples)
    return manifest.write(stage, list(shards))


def test_a_manifest_lists_shards_in_order_with_their_counts(tmp_path: Path) -> None:
    made = dataset(tmp_path, {"000001": PLAIN[2:], "000000": PLAIN[:1]})
    assert made.shards == ("000000", "000001")
    assert (made.samples, made.total) == ((1, 3 - 1), 3)
    assert (made.came_in, made.refused) == (3, 0)
    assert made.bytes == tuple((tmp_path / f"base/{s}.tar").stat().st_size for s in made.shards)
    assert made.keys == keys_digest(["a/000", "a/002", "b"])


def test_its_digest_follows_the_data_and_nothing_else(tmp_path: Path) -> None:
    first = dataset(tmp_path / "1", {"000000": PLAIN[:2], "000001": PLAIN[2:]})
    same = dataset(tmp_path / "2", {"000001": PLAIN[2:], "000000": PLAIN[:2]})
    assert same.digest == first.digest
    (tmp_path / "1/base/manifest.parquet").unlink()
    assert manifest.write(StageFolder(str(tmp_path / "1"), "base"), ["000001", "000000"]).digest == first.digest
    others = [
        dataset(tmp_path / "3", {"000000": PLAIN[2:], "000001": PLAIN[:2]}),
        dataset(tmp_path / "4", {"000000": PLAIN[:2]}),
        dataset(tmp_path / "5", {"000000": PLAIN[:2], "000001": [("b/2", PLAIN[2][1]), PLAIN[3]]}),
        dataset(tmp_path / "6", {"000000": PLAIN[:1], "000001": PLAIN[1:]}),
    ]
    assert len({m.digest for m in [first, *others]}) == 5


def test_an_uncommitted_shard_cannot_be_listed(tmp_path: Path) -> None:
    stage = StageFolder(str(tmp_path), "base")
    commit_base(stage, "000000", PLAIN)
    with pytest.raises(ShardError, match=r"000001\.done\.json does not exist"):
        manifest.write(stage, ["000000", "000001"])
    assert not manifest.exists(stage)


def test_a_marker_of_another_config_is_never_mixed_in(tmp_path: Path) -> None:
    """Such as one that a late worker of an earlier config has committed after --force."""
    stage = StageFolder(str(tmp_path), "base")
    bound = fingerprint({"epsilon": 0.2})
    for shard, made_with in (("000000", bound), ("000001", "another")):
        with stage.attempt(shard) as attempt:
            attempt.write(f"{shard}.bin", b"x")
            attempt.commit(lambda outputs, s=shard, f=made_with: marker(s, outputs, bound=f))  # type: ignore[misc]
    assert stage.claim({"epsilon": 0.2}) == bound
    with pytest.raises(StaleStageError, match="000001"):
        manifest.write(stage, ["000000", "000001"])
    assert not manifest.exists(stage)
    assert manifest.write(stage, ["000000"]).shards == ("000000",)


def test_a_stage_without_a_manifest_is_not_complete(tmp_path: Path) -> None:
    with pytest.raises(ShardError, match=r"the stage 'regions' is not complete; run it first"):
        manifest.read(StageFolder(str(tmp_path), "regions"))
    (tmp_path / "regions").mkdir()
    (tmp_path / "regions/manifest.parquet").write_bytes(b"no parquet")
    with pytest.raises(ShardError, match=r"regions/manifest\.parquet"):
        manifest.read(StageFolder(str(tmp_path), "regions"))


def test_what_is_sound_is_known_from_the_manifest_and_one_listing(tmp_path: Path) -> None:
    dataset(tmp_path, {"000000": PLAIN[:1], "000001": PLAIN[1:2], "000002": PLAIN[2:3], "000003": PLAIN[3:]})
    stage = StageFolder(str(tmp_path), "base")
    bound = stage.marker("000000").fingerprint
    names = {"000000", "000001", "000002", "000003"}
    assert manifest.sound(stage, stage.store.list_sizes(), bound) == names
    assert manifest.sound(stage, stage.store.list_sizes(), "another") == set()
    tar = tmp_path / "base/000001.tar"
    tar.write_bytes(tar.read_bytes()[:-512])
    (tmp_path / "base/000002.done.json").unlink()
    (tmp_path / "base/000003.idx").unlink()
    assert manifest.sound(stage, stage.store.list_sizes(), bound) == {"000000"}
    (tmp_path / "base/manifest.parquet").write_bytes(b"PAR1")
    assert manifest.sound(stage, stage.store.list_sizes(), bound) == set()
