"""A worker may die at any call, and any number may race: the output is there once, whole, and nothing else is."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from shards.commit import StageFolder

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
CHILD = Path(__file__).with_name("crash_child.py")


def child(job: str, root: Path) -> dict[str, Any]:
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, str(CHILD), job, str(root)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=env)
    assert done.returncode == 0, done.stderr
    report: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    report["stderr"] = done.stderr[-2000:]
    return report


def test_a_crash_at_any_call_is_mended_by_a_rerun(tmp_path: Path) -> None:
    report = child("sweep", tmp_path / "run")
    called = set(report["points"])
    for needed in (
        "before flush",
        "after flush",
        "before os.fsync",
        "after os.link",
        "before os.replace",
        "after os.replace",
    ):
        assert needed in called, f"the sweep never passes {needed!r}"
    assert len(report["points"]) > 60
    assert not report["failed"], report["stderr"]


def test_everything_is_on_the_disk_before_its_marker_appears(tmp_path: Path) -> None:
    """Against a power cut, which no kill can imitate: both outputs and the marker are flushed before each link."""
    points = child("points", tmp_path / "run")["points"]
    links = [at for at, name in enumerate(points) if name == "before os.link"]
    assert len(links) == 3  # the claim and two shards
    for start, stop in itertools.pairwise(links):
        assert points[start:stop].count("after os.fsync") >= 1 + 3  # the folder of the link before, and three files


def test_a_crash_of_the_recovery_is_mended_too(tmp_path: Path) -> None:
    report = child("again", tmp_path / "run")
    assert report["tried"] > 20
    assert not report["failed"], report["stderr"]


def test_eight_racing_workers_leave_one_marker_and_its_output(tmp_path: Path) -> None:
    report = child("race", tmp_path / "run")
    assert not report["failed"], report["stderr"]
    shards = StageFolder(str(tmp_path / "run"), "race").shards_done()
    assert report["files"] == sorted(name for s in shards for name in (f"{s}.bin", f"{s}.done.json"))
    assert len(shards) == 12
