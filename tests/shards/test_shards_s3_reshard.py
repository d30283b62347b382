"""Resharding from and to S3 gives what it gives on a local disk, whatever fails on the way."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from faults.s3 import S3
from reshard_data import data_set, foreign_tar, run, some_samples

from shards.errors import VillaError

SHARDS = some_samples(7, 4, 14)
FLAT = [s for rows in SHARDS for s in rows]
SHUFFLED: dict[str, Any] = {"max_count": 9, "shuffle": 1, "dedupe": "content", "where": "pairs >= 1"}


def tree(root: Path) -> dict[str, bytes]:
    """What is written locally, but for what names the sources or the attempt."""
    kept = [p for p in root.rglob("*") if p.suffix in (".tar", ".idx", ".parquet") and p.name != "manifest.parquet"]
    return {str(p.relative_to(root)): p.read_bytes() for p in kept}


def objects(s3: S3, prefix: str) -> dict[str, bytes]:
    names = [n for n in s3.names(f"{prefix}/") if n.endswith((".tar", ".idx", ".parquet")) and "manifest" not in n]
    return {n.removeprefix(f"{prefix}/"): s3.get(n) for n in names}


def without_places(found: dict[str, bytes]) -> dict[str, bytes]:
    """Without quarantine files, which say where a source lies."""
    return {n: d for n, d in found.items() if "quarantine" not in n}


@pytest.mark.parametrize("options", [{"max_count": 9}, SHUFFLED], ids=["in order", "shuffled"])
def test_s3_to_s3_is_as_on_a_local_disk(s3: S3, tmp_path: Path, options: dict[str, Any]) -> None:
    local = run(data_set(tmp_path / "src", SHARDS), tmp_path / "out", **options)
    remote = run(data_set(s3.url("src"), SHARDS), s3.url("out"), **options)  # type: ignore[arg-type]
    for told in ("dataset", "seconds"):
        local.pop(told), remote.pop(told)
    assert remote == local
    assert objects(s3, "out") == tree(tmp_path / "out")
    assert not [n for n in s3.names("out/") if "/.work/" in n or "/.attempts/" in n]
    assert run(s3.url("src"), s3.url("out"), **options)["digest"] == local["digest"]


def test_foreign_tars_come_from_s3_and_go_there(s3: S3, tmp_path: Path) -> None:
    (tmp_path / "src").mkdir()
    for at, rows in enumerate(SHARDS):
        foreign_tar(tmp_path / "src" / f"{at:03d}.tar", rows, between=[rows[0][0]] if rows else [])
        s3.put(f"src/{at:03d}.tar", (tmp_path / "src" / f"{at:03d}.tar").read_bytes())
    options: dict[str, Any] = {"max_count": 9, "budget": 1.0}
    expected = run(str(tmp_path / "src"), tmp_path / "out", **options)
    for src, dst in (
        (s3.url("src/{000..003}.tar"), s3.url("one")),
        (s3.url("src/*.tar"), str(tmp_path / "two")),
        (str(tmp_path / "src"), s3.url("three")),
    ):
        result = run(src, dst, **options)
        assert result["digest"] == expected["digest"] and result["quarantined"] == expected["quarantined"]
        found = tree(tmp_path / "two") if dst.endswith("two") else objects(s3, dst.rpartition("/")[2])
        assert without_places(found) == without_places(tree(tmp_path / "out"))
    with pytest.raises(VillaError, match="does not exist"):
        run(s3.url("src/{000..009}.tar"), s3.url("four"))


@pytest.mark.parametrize("seed", range(2))
def test_faults_on_the_way_change_nothing(s3: S3, tmp_path: Path, seed: int) -> None:
    choose = random.Random(seed)
    options = SHUFFLED if seed else {"max_count": 9}
    data_set(s3.url("src"), SHARDS)  # type: ignore[arg-type]
    expected = run(s3.url("src"), tmp_path / "out", **options)
    kinds = ("status", "lose_response", "cut_request", "cut_response", "short_response", "delay")
    faults = [s3.fail(k, skip=choose.randrange(150), seconds=0.02) for k in kinds * 3]  # type: ignore[arg-type]
    found = run(s3.url("src"), s3.url("out"), **options)
    assert sum(f.met for f in faults) > 12
    assert found["digest"] == expected["digest"]
    assert objects(s3, "out") == tree(tmp_path / "out")
    assert not s3.uploads()


def test_a_storage_that_stays_away_is_named_and_a_rerun_goes_on(s3: S3, tmp_path: Path) -> None:
    data_set(s3.url("src"), SHARDS)  # type: ignore[arg-type]
    away = s3.fail("status", "PUT", r"out/base/\.attempts/000002", times=10_000)
    with pytest.raises(VillaError, match=r"out/base/"):
        run(s3.url("src"), s3.url("out"), max_count=5)
    done = [n for n in s3.names("out/base/") if n.endswith(".done.json")]
    assert done and not [n for n in done if "000002" in n]
    away.times = 0
    run(s3.url("src"), s3.url("out"), max_count=5)
    run(s3.url("src"), tmp_path / "out", max_count=5)
    assert objects(s3, "out") == tree(tmp_path / "out")
