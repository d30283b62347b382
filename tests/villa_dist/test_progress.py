"""While a stage runs, the driver keeps a table of its markers, so that a run that is cut off has few to read again."""

from __future__ import annotations

from pathlib import Path

import pytest

from shards import manifest, marked
from shards.commit import Marker, StageFolder
from villa_dist.stages import progress

NAMES = [f"{n:06d}" for n in range(12)]


def test_a_stage_keeps_its_markers_as_it_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(marked, "WORTH", 2)
    monkeypatch.setattr(progress, "KEEP_EVERY", 3)
    stage = StageFolder(str(tmp_path), "pairs")
    bound = stage.claim({})
    with progress.StageProgress("pairs", stage, len(NAMES), 0) as shown:
        for name in NAMES[:8]:
            with stage.attempt(name) as attempt:
                attempt.write(f"{name}.parquet", b"x")
                attempt.commit(lambda outputs, name=name: Marker(name, "pairs", bound, "", 7, "0" * 32, outputs, 7))
            shown.done(name)
    read: list[str] = []
    monkeypatch.setattr(
        StageFolder, "marker", lambda self, s: read.append(s) or Marker.from_bytes(self.store.read(f"{s}.done.json"), s)
    )
    assert manifest.sound(stage, stage.store.list_sizes(), bound, NAMES) == set(NAMES[:8])
    assert read == NAMES[6:8]
