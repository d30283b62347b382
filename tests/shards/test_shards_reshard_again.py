"""A finished reshard that is run again: it says so only while the data set is whole, and mends it when told to."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from reshard_data import data_set, run, some_samples

from shards.errors import ShardError, StaleStageError, VillaError
from shards.lock import lock

SHARDS = some_samples(5, 4, 20)


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


DAMAGE: dict[str, tuple[str, Callable[[Path], object], bool]] = {  # file, what is done to it, whether sizes alone tell
    "a tar is gone": ("base/000001.tar", Path.unlink, True),
    "a tar is cut": ("base/000001.tar", lambda p: p.write_bytes(p.read_bytes()[:-600]), True),
    "a tar has a flipped byte": ("base/000001.tar", flip, False),
    "a marker is gone": ("base/000001.done.json", Path.unlink, True),
    "a marker is damaged": ("base/000001.done.json", lambda p: p.write_bytes(b"{"), False),
    "a sidecar is gone": ("pairs/000000.parquet", Path.unlink, True),
    "the result is gone": ("reshard.json", Path.unlink, True),
}


def contents(root: Path) -> dict[str, bytes]:
    kept = (".tar", ".idx", ".parquet")
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.suffix in kept}


@pytest.mark.parametrize("what", DAMAGE)
def test_damage_is_told_and_mended_with_force(tmp_path: Path, what: str) -> None:
    name, spoil, seen = DAMAGE[what]
    src, dst = data_set(tmp_path / "src", SHARDS), tmp_path / "dst"
    first = run(src, dst, max_count=11)
    whole = contents(dst)
    spoil(dst / name)
    if seen:
        with pytest.raises(ShardError, match=r"--force") as told:
            run(src, dst, max_count=11)
        assert name.split("/")[-1].split(".")[0] in str(told.value)
    again = run(src, dst, max_count=11, force=True)
    assert contents(dst) == whole
    assert {k: v for k, v in again.items() if k != "seconds"} == {k: v for k, v in first.items() if k != "seconds"}
    assert run(src, dst, max_count=11) == again


def test_a_whole_one_is_told_again_wherever_it_stands(tmp_path: Path) -> None:
    src, dst = data_set(tmp_path / "src", SHARDS), tmp_path / "dst"
    first = run(src, dst)
    assert run(src, dst) == first
    moved = tmp_path / "moved"
    dst.rename(moved)
    assert run(src, moved) == {**first, "dataset": str(moved)}


def test_force_leaves_no_sidecar_of_another_base(tmp_path: Path) -> None:
    src, dst = data_set(tmp_path / "src", SHARDS), tmp_path / "dst"
    run(src, dst)
    assert (dst / "pairs").is_dir()
    with pytest.raises(StaleStageError, match="Give another DST"):
        run(src, dst, shuffle=3, sidecars=False)
    run(src, dst, shuffle=3, sidecars=False, force=True)
    assert not list((dst / "pairs").glob("*.parquet"))


def test_two_at_once_are_refused(tmp_path: Path) -> None:
    src, dst = data_set(tmp_path / "src", SHARDS), tmp_path / "dst"
    held = lock(str(dst), "give another DST")
    with pytest.raises(VillaError, match=r"another villa process .* give another DST"):
        run(src, dst)
    assert held
    held.release()
    run(src, dst)
    assert not (dst / ".lock").exists()
    assert json.loads((dst / "reshard.json").read_text())["conserved"]
