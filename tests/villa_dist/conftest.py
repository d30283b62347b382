"""Runs that several modules of reports look at, made once."""

from __future__ import annotations

import pytest
from report_run import measured_run

from villa_dist.config import Config


@pytest.fixture(scope="session")
def measured_runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Config, Config]:
    """Two runs on the same images: ViLLA is worse in the second, the one-to-one VLM is the same. Not to be changed."""
    folder = tmp_path_factory.mktemp("runs")
    good = measured_run(folder / "good", {"one_to_one": 1.5, "villa": 0.4})
    return good, measured_run(folder / "bad", {"one_to_one": 1.5, "villa": 1.2})
