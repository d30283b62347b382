"""A reshard may be killed at any call: run again, it leaves byte for byte what an undisturbed one does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
CHILD = Path(__file__).with_name("reshard_crash_child.py")


PARTS = 6  # of the whole sweep, so that each stays under the time limit


@pytest.mark.parametrize(
    ("first", "every"), [(1, 97), *(pytest.param(n, PARTS, marks=pytest.mark.slow) for n in range(1, PARTS + 1))]
)
def test_a_kill_at_any_call_is_mended_by_a_rerun(tmp_path: Path, first: int, every: int) -> None:
    root = str(Path(__file__).parents[2])
    done = subprocess.run(
        [sys.executable, str(CHILD), str(tmp_path), str(first), str(every)],
        capture_output=True,
        text=True,
        timeout=800,
        env={**os.environ, "PYTHONPATH": root},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    report = json.loads(done.stdout.splitlines()[-1])
    assert min(report["points"].values()) > 300
    assert not report["failed"], (report["failed"], done.stderr[-2000:])
