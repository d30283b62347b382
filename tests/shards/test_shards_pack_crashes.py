"""A packing may die at any call, and several may work on one data set: a rerun gives the bytes of an undisturbed one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pack_samples import image, photos, write

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
CHILD = Path(__file__).with_name("pack_crash_child.py")


def child(job: str, tmp_path: Path) -> dict[str, Any]:
    src = write(photos(tmp_path / "src", 3), {"d/bare.png": image(1)})  # the last one is refused
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, str(CHILD), job, str(src), str(tmp_path / "dst")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=800, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    report: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    report["stderr"] = done.stderr[-3000:]
    return report


@pytest.mark.parametrize("points", ["some", pytest.param("all", marks=pytest.mark.slow)])
def test_a_crash_at_any_call_is_mended_by_a_rerun(tmp_path: Path, points: str) -> None:
    report = child(points, tmp_path)
    for needed in ("before os.link", "after os.link", "before os.replace", "after os.replace", "after write"):
        assert needed in report["points"], f"the sweep never passes {needed!r}"
    assert len(report["points"]) > 200
    assert not report["failed"], report["stderr"]


def test_packings_at_once_leave_one_data_set(tmp_path: Path) -> None:
    report = child("race", tmp_path)
    assert "base/000001.tar" in report["files"] and "base/quarantine/000001.parquet" in report["files"]
    assert not report["failed"], (report["failed"], report["stderr"])
