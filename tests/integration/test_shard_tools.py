"""`villa shards verify, index, stats, show` from the command line: one result line, exit codes, the same on Ray."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
from PIL import Image
from runs import result_line, villa

sys.path.append(str(Path(__file__).parents[1] / "shards"))

from made_dataset import make


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("tools"))


@pytest.fixture
def damaged(dataset: Path, tmp_path: Path) -> Path:
    shutil.copytree(dataset, tmp_path / "train")
    for shard in ("000000", "000002"):
        (tmp_path / "train/base" / f"{shard}.tar").write_bytes((dataset / "base" / f"{shard}.tar").read_bytes()[:-512])
    return tmp_path / "train"


def test_verify_says_what_it_found_and_fails(dataset: Path, damaged: Path) -> None:
    found = result_line(villa("shards", "verify", str(dataset)))
    assert (found["clean"], found["errors"], found["shards"], found["samples"]) == (True, 0, 3, 12)
    ended = villa("shards", "verify", str(damaged), "--deep")
    assert ended.returncode == 1
    found = json.loads(ended.stdout)
    assert found["errors"] >= 2
    assert any(f["place"].endswith("000002.tar") and f["kind"] == "another size" for f in found["findings"])
    assert "Traceback" not in ended.stderr
    assert "error: another size" in ended.stderr


def test_a_mistake_is_one_line_and_exit_code_two(tmp_path: Path) -> None:
    for command in (("verify", str(tmp_path)), ("stats", str(tmp_path / "no")), ("show", str(tmp_path), "k")):
        ended = villa("shards", *command)
        assert (ended.returncode, ended.stdout) == (2, "")
        assert "Traceback" not in ended.stderr
        assert ended.stderr.startswith("error: ")


def test_index_stats_and_show(dataset: Path, tmp_path: Path) -> None:
    tars = tmp_path / "tars"
    tars.mkdir()
    shutil.copy(dataset / "base/000000.tar", tars / "x.tar")
    assert result_line(villa("shards", "index", str(tars)))["written"] == 1
    (tars / "y.tar").write_bytes(b"no tar")
    ended = villa("shards", "index", str(tars))
    assert (ended.returncode, json.loads(ended.stdout)["refused"]) == (1, 1)
    ended = villa("shards", "stats", str(dataset))
    assert result_line(ended)["stages"]["pairs"]["pairs"] == 36
    assert "bytes a pair" in ended.stderr
    out = tmp_path / "out" / "x.png"
    ended = villa("shards", "show", str(dataset), "000001/002", "--out", str(out), "--terminal")
    assert len(result_line(ended)["regions"]) == 3
    assert "▀" in ended.stderr
    assert Image.open(out).size[0] > 600


@pytest.mark.slow
def test_verify_on_ray_finds_the_same(damaged: Path) -> None:
    here, there = (villa("shards", "verify", str(damaged), "--workers", n) for n in ("1", "2"))
    assert json.loads(here.stdout) == json.loads(there.stdout)
    assert (here.returncode, there.returncode) == (1, 1)
