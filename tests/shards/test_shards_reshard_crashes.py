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


@pytest.mark.parametrize("every", [pytest.param(97), pytest.param(1, marks=pytest.mark.slow)])
def test_a_kill_at_any_call_is_mended_by_a_rerun(tmp_path: Path, every: int) -> None:
    root = str(Path(__file__).parents[2])
    done = subprocess.run(
        [sys.executable, str(CHILD), str(tmp_path), str(every)],
        capture_output=True,
        text=True,
        timeout=800,
        env={**os.environ, "PYTHONPATH": root},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    report = json.loads(done.stdout.splitlines()[-1])
    assert min(report["points"].values()) > 300
    assert not report["failed"], (report["failed"], done.stderr[-2000:])
