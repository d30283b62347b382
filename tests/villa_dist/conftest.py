"""The data set of coloured squares, with models that know some of the colours."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest


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
