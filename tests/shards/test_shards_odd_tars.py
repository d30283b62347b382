"""Hostile and unusual tars of other projects: a scan ends, raises nothing but ShardError, and writes nothing."""

from __future__ import annotations

import csv
import itertools
import shutil
import tarfile
from pathlib import Path

import pytest

from shards.errors import ShardError
from shards.reader import scan_tar
from shards.store import Store
from shards.tar import Sample, Scan, split_name

SHARED_DATA = Path(__file__).resolve().parents[2].parent / "shared" / "data"
FOLDER = SHARED_DATA / "odd_tars"
FILES = sorted(p.relative_to(FOLDER).as_posix() for p in FOLDER.rglob("*") if p.is_file()) if FOLDER.is_dir() else []
GNU_INCREMENTAL = (
    "go_archive_tar/gnu-incremental.tar",
    "tar_stream/gnu-incremental.tar",
)  # tarfile takes a time for a folder
LIMIT = 10_000

if not FILES:
    pytest.skip(f"no {FOLDER}: real data is not part of the project", allow_module_level=True)


def scan_copy(name: str, folder: Path) -> tuple[list[tuple[Sample, dict[str, bytes]]], Scan]:
    copy = folder / Path(name).name
    shutil.copyfile(FOLDER / name, copy)
    scan = Scan()
    return list(itertools.islice(scan_tar(Store(str(folder)), copy.name, scan), LIMIT)), scan


def members_by_tarfile(path: Path) -> list[tuple[str, int]]:
    """(name, size) of the regular members that the standard library lists, as the reader spells names."""
    with tarfile.open(path, "r:") as tar:
        return [(m.name.removeprefix("./"), m.size) for m in tar if m.type in (b"0", b"\0", b"7") and not m.issparse()]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.timeout(20)
def test_a_scan_ends_and_creates_nothing(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    try:
        found, _ = scan_copy(name, tmp_path)
    except ShardError:
        return
    finally:
        assert [p.name for p in tmp_path.iterdir()] == [Path(name).name]
    assert len(found) < LIMIT
    assert sum(len(data) for _, members in found for data in members.values()) <= (FOLDER / name).stat().st_size
    for sample, _ in found:
        assert not sample.key.startswith("/")
        assert ".." not in sample.key.split("/")


def test_what_tarfile_reads_whole_is_read_alike(tmp_path: Path) -> None:
    with open(FOLDER / "python_tarfile_verdicts.tsv", encoding="utf-8") as file:
        good = [row["file"] for row in csv.DictReader(file, delimiter="\t") if row["cpython_3.11_tarfile"] == "ok"]
    different = {}
    for name in (n for n in good if n.endswith(".tar") and n not in GNU_INCREMENTAL):
        expected = members_by_tarfile(FOLDER / name)
        found, scan = scan_copy(name, tmp_path)
        mine = [(m.name, m.size) for sample, _ in found for m in sample.members]
        refused = {n for n, _ in scan.refused}
        # without end-of-archive blocks the last sample may lack members: it is refused, under its key
        cut = {n for n, reason in scan.refused if reason == "incomplete_sample"}
        wanted = [
            (n, s) for n, s in expected if n not in refused and f"./{n}" not in refused and split_name(n)[0] not in cut
        ]
        if mine != wanted:
            different[name] = (scan.problem, [m for m in mine if m not in wanted], [w for w in wanted if w not in mine])
    assert not different


@pytest.mark.parametrize(
    ("name", "member"), list(zip(GNU_INCREMENTAL, ["test2/foo", "test.txt"], strict=True)), ids=GNU_INCREMENTAL
)
def test_members_behind_a_folder_dump_are_not_lost_silently(name: str, member: str, tmp_path: Path) -> None:
    found, scan = scan_copy(name, tmp_path)
    seen = [m.name for sample, _ in found for m in sample.members] + [n for n, _ in scan.refused]
    assert any(n.endswith(member) for n in seen) or scan.problem
