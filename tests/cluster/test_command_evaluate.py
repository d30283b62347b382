"""`villa evaluate` looks at where the baseline shall be written before it evaluates."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cluster.commands.evaluate import evaluate
from shards.errors import VillaError
from villa_dist.config import Config


def no_stage(*_: Any) -> dict[str, Any]:
    raise AssertionError("evaluated before the place was looked at")


@pytest.mark.parametrize("place", ["folder", "file/baseline.json"])
def test_a_baseline_that_cannot_be_written_ends_before_the_evaluation(tmp_path: Path, place: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("x")
    with pytest.raises(VillaError, match=f"--write-baseline .*{place}.*; give a file"):
        evaluate(no_stage, Config(run=str(tmp_path / "run")), False, None, str(tmp_path / place))
