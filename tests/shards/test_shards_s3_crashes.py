"""Real processes on S3: killed at any step, or racing through a network that fails, and mended by a rerun."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from faults.s3 import S3, environment

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")]
CHILD = Path(__file__).with_name("s3_crash_child.py")


def child(s3: S3, *job: str) -> dict[str, Any]:
    root = str(Path(__file__).parents[2])
    env = {**os.environ, **environment(s3.proxy.url), "PYTHONPATH": root}
    command = [sys.executable, str(CHILD), job[0], s3.url("run"), *job[1:]]
    done = subprocess.run(command, capture_output=True, text=True, timeout=800, env=env)
    assert done.returncode == 0, done.stderr
    report: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    report["stderr"] = done.stderr[-2000:]
    return report


@pytest.mark.parametrize("first", range(1, 5))  # of every four points, so that each part stays under the time limit
def test_a_kill_at_any_step_is_mended_by_a_rerun(s3: S3, first: int) -> None:
    report = child(s3, "sweep", str(first), "4")
    assert report["points"] > 24
    assert not report["failed"], report


def test_eight_processes_through_faults_leave_one_output(s3: S3) -> None:
    choose = random.Random(0)
    for kind in ("status", "lose_response", "cut_request", "lose_response", "delay") * 4:
        s3.fail(kind, choose.choice(["PUT", ""]), skip=choose.randrange(300), seconds=0.05)  # type: ignore[arg-type]
    for number in range(4):
        s3.fail("lose_response", "PUT", rf"{number}/race/000000\.done\.json", skip=choose.randrange(8))
    report = child(s3, "race")
    assert not report["failed"], report
