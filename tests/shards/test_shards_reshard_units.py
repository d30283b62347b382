"""Small sources are scanned together: however they are grouped, the same bytes come out."""

from __future__ import annotations

import hashlib
import io
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reshard_data import data_set, foreign_tar, read_shards, run, some_samples

from shards.commit import StageFolder
from shards.errors import ShardError, VillaError
from shards.reshard import bucket, units
from shards.reshard.options import ReshardOptions
from shards.reshard.run import Reshard
from shards.reshard.units import Units, unit_name
from shards.store import Store
from shards.work import run_here

SHARDS = [*some_samples(11, 5, 9), [], *some_samples(12, 2, 30)]
for _at, _rows in enumerate(SHARDS):
    _rows[:] = [(f"{_at}/{key}", members) for key, members in _rows]
FOREIGN: dict[str, Any] = {"max_count": 7, "budget": 1.0}


def tree(root: Path) -> dict[str, str]:
    """Everything that does not name its claim or attempt."""
    kept = [p for p in root.rglob("*") if p.suffix in (".tar", ".idx", ".parquet") and p.name != "manifest.parquet"]
    return {str(p.relative_to(root)): hashlib.sha256(p.read_bytes()).hexdigest() for p in kept}


def foreign(root: Path) -> str:
    """Tars with links between members, one that is cut and one that is empty."""
    root.mkdir()
    for at, rows in enumerate(SHARDS):
        foreign_tar(root / f"{at}.tar", rows, between=[k for k, _ in rows[::3]])
    whole = (root / "4.tar").read_bytes()
    (root / "4.tar").write_bytes(whole[: len(whole) // 2])
    (root / "7.tar").write_bytes(b"")
    return str(root)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("data set", {"max_count": 7}),
        ("data set", {"max_count": 7, "dedupe": "content", "where": "pairs >= 1"}),
        ("data set", {"max_count": 7, "shuffle": 3, "dedupe": "image"}),
        ("foreign", FOREIGN),
        ("foreign", {**FOREIGN, "dedupe": "content"}),
        ("foreign", {**FOREIGN, "shuffle": 3, "hashed": False}),
        ("foreign", {**FOREIGN, "prefix_keys": True}),
    ],
)
def test_the_same_bytes_come_out_however_sources_are_grouped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, options: dict[str, Any]
) -> None:
    src = data_set(tmp_path / "src", SHARDS) if kind == "data set" else foreign(tmp_path / "src")
    found = []
    for most, size, open_at_once in ((1, 1 << 30, 256), (3, 1 << 30, 2), (256, 20_000, 1), (256, 1 << 30, 256)):
        monkeypatch.setattr(units, "UNIT_SOURCES", most)
        monkeypatch.setattr(units, "UNIT_BYTES", size)
        monkeypatch.setattr(bucket, "GROUP_SOURCES", open_at_once)
        out = tmp_path / f"out-{most}-{size}"
        result = run(src, out, **options)
        told = {k: v for k, v in result.items() if k not in ("dataset", "seconds")}
        found.append((told, tree(out)))
    assert found[0][0]["samples"] > 20 and len(found[0][1]) > 6
    if kind == "foreign":
        assert [n for n in found[0][1] if "quarantine" in n]
    assert all(each == found[0] for each in found[1:])


def test_indexes_without_digests_are_completed_one_by_one_in_a_unit(tmp_path: Path) -> None:
    src = data_set(tmp_path / "src", SHARDS)
    expected = run(src, tmp_path / "plain", max_count=7)
    run(src, tmp_path / "unhashed", max_count=7, hashed=False)
    again = run(str(tmp_path / "unhashed"), tmp_path / "again", max_count=11)
    direct = run(src, tmp_path / "direct", max_count=11)
    assert again["digest"] == direct["digest"] == expected["digest"]
    assert tree(tmp_path / "again") == tree(tmp_path / "direct")


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, 50 << 20), min_size=1, max_size=700))
def test_units_are_runs_of_bounded_size(sizes: list[int]) -> None:
    made = Units(sizes)
    seen = [at for _, first, stop in made for at in range(first, stop)]
    assert seen == list(range(len(sizes)))
    for name, first, stop in made:
        assert name == unit_name(first) and stop - first <= units.UNIT_SOURCES
        assert stop == first + 1 or sum(sizes[first:stop]) <= units.UNIT_BYTES
        assert made.of(first) == made.of(stop - 1) == (first, stop)
        assert np.array_equal(made.starts(first, stop), [sum(sizes[first:at]) for at in range(first, stop + 1)])


class Stopped(Exception):
    pass


def test_a_scan_goes_on_at_the_next_unit_and_work_of_another_layout_is_begun_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(units, "UNIT_SOURCES", 2)
    src, out = data_set(tmp_path / "src", SHARDS), tmp_path / "out"
    expected = run(src, tmp_path / "whole", max_count=7)
    asked: list[list[str]] = []

    def few(job: Any, names: Any, done: Any) -> None:
        asked.append(list(names))
        run_here(job, names[:2], done)
        raise Stopped

    def reshard(execute: Any) -> dict[str, Any]:
        return Reshard(src, ReshardOptions(str(out), max_count=7), execute, _Meter, False, 0.1).run()

    for _ in range(2):
        with pytest.raises(Stopped):
            reshard(few)
    assert [len(names) for names in asked] == [4, 2] and asked[0][2:] == asked[1]
    scan = StageFolder(str(out / ".work"), "scan")
    claimed = scan.claimed()
    assert claimed is not None and claimed.pop("layout") == units.LAYOUT
    scan.store.remove("config.json")
    scan.claim(claimed)
    with pytest.raises(Stopped):
        reshard(few)
    assert asked[2] == asked[0]
    assert reshard(run_here)["digest"] == expected["digest"]
    assert tree(out) == tree(tmp_path / "whole") and read_shards(out) == read_shards(tmp_path / "whole")


class _Meter:
    def __init__(self, *told: object) -> None: ...
    def __enter__(self) -> _Meter:
        return self

    def __exit__(self, *error: object) -> None: ...
    def advance(self, count: int = 1) -> None: ...


def test_a_tar_that_grew_since_it_was_listed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "src").mkdir()
    for at in range(3):
        foreign_tar(tmp_path / "src" / f"{at}.tar", [(f"{at}", {"jpg": b"x"})])
    listed = Store.list_sizes

    def then_grown(self: Store, *given: str) -> dict[str, int]:
        found = listed(self, *given)
        longer = io.BytesIO()
        with tarfile.open(fileobj=longer, mode="w") as tar:
            for n in range(30):
                info = tarfile.TarInfo(f"more{n}.jpg")
                info.size = 5000
                tar.addfile(info, io.BytesIO(bytes(5000)))
        (tmp_path / "src/1.tar").write_bytes(longer.getvalue())
        return found

    monkeypatch.setattr(Store, "list_sizes", then_grown)
    with pytest.raises(ShardError, match=r"src/1\.tar has \d+ bytes, \d+ when it was listed"):
        run(f"{tmp_path}/src/*.tar", tmp_path / "out")


@pytest.mark.parametrize(
    ("src", "dst", "says"),
    [
        ("in/*.tar", "in", r"in lies in the sources, .*/in; give a folder outside"),
        ("in/*.tar", "in/out", r"in/out lies in the sources, .*/in; give a folder outside"),
        ("{in,more}/0.tar", "more/out", r"more/out lies in the sources, .*/more"),
        ("{in,more}/{0..1}.tar", "in/x/y", r"lies in the sources"),
        ("more/../in/*.tar", "in/out", "lies in the sources"),
        ("in/*.tar", "linked/out", "lies in the sources"),
        ("linked/*.tar", "in/out", "lies in the sources"),
        ("*/*.tar", "in/out", "lies in the sources"),
        ("**/*.tar", "out", r"the pattern .*/\*\*/\*\.tar matches what will be written to .*/out/base"),
        ("{in,out/base}/*.tar", "out", r"the pattern .*/out/base/\*\.tar matches what will be written to"),
        ("*/*.tar", ".", r"matches what will be written to|lies in"),
        ("own/base/*.tar", "own", r"lie where DST .*/own keeps its own files, .*/own/base; give another folder"),
    ],
)
@pytest.mark.parametrize("place", ["local", "s3"])
def test_a_destination_that_would_become_a_source_is_refused(
    request: pytest.FixtureRequest, tmp_path: Path, place: str, src: str, dst: str, says: str
) -> None:
    names = ["in/0.tar", "in/1.tar", "more/0.tar", "more/1.tar", "own/base/0.tar"]
    foreign_tar(tmp_path / "made.tar", [("a", {"jpg": b"x"})])
    root = str(tmp_path / "root")
    if place == "s3":
        if "linked" in src + dst or "/../" in src:
            pytest.skip("an object store has no links and no ..")
        s3, root = request.getfixturevalue("s3"), request.getfixturevalue("s3").url("root")
        for name in names:
            s3.put(f"root/{name}", (tmp_path / "made.tar").read_bytes())
    else:
        for name in names:
            Path(root, name).parent.mkdir(parents=True, exist_ok=True)
            Path(root, name).write_bytes((tmp_path / "made.tar").read_bytes())
        Path(root, "linked").symlink_to(Path(root, "in"))
    with pytest.raises(VillaError, match=says):
        run(f"{root}/{src}", f"{root}/{dst}" if dst != "." else root, force=True)
    if place == "s3":
        assert sorted(s3.names("root/")) == sorted(f"root/{n}" for n in names)
    else:
        assert sorted(str(p.relative_to(root)) for p in Path(root).rglob("*") if p.is_file()) == sorted(
            n for n in [*names] if "linked" not in n
        )


def test_a_destination_beside_the_pattern_is_not_refused(tmp_path: Path) -> None:
    foreign_tar(tmp_path / "made.tar", [("a", {"jpg": b"x"})])
    for name in ("a/0.tar", "b/0.tar"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_bytes((tmp_path / "made.tar").read_bytes())
    for src, dst in (("?/*.tar", "out"), ("{a,b}/*.tar", "ab"), ("a*/*.tar", "b2")):
        assert run(f"{tmp_path}/{src}", tmp_path / dst, max_count=1)["samples"] >= 1
        assert run(f"{tmp_path}/{src}", tmp_path / dst, max_count=1)["samples"] >= 1
