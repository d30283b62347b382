"""What several modules look at, made once: runs of which reports are written, and the data set of coloured squares."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from villa_dist.config import Config


@pytest.fixture(scope="session")
def measured_runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Config, Config]:
    """Two runs on the same images: ViLLA is worse in the second, the one-to-one VLM is the same. Not to be changed."""
    from report_run import measured_run

    folder = tmp_path_factory.mktemp("runs")
    good = measured_run(folder / "good", {"one_to_one": 1.5, "villa": 0.4})
    return good, measured_run(folder / "bad", {"one_to_one": 1.5, "villa": 1.2})


@pytest.fixture(scope="session")
def squares_made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ingested, with models of random weights; not to be changed."""
    from detection_run import prepared

    folder = tmp_path_factory.mktemp("squares")
    prepared(folder)
    return folder


@pytest.fixture
def folder(squares_made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it whose models are `Seer`s of the qualities in QUALITY."""
    from detection_run import QUALITY, Seer

    from villa_dist.evaluate.models_measured import Measured

    monkeypatch.setattr(Measured, "load", lambda self, config: Seer(QUALITY[self.name]))
    return Path(shutil.copytree(squares_made, tmp_path / "data"))
