"""While a stage runs, the driver keeps a table of its markers, so that a run that is cut off has few to read again."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from shards import manifest, marked
from shards.commit import Marker, StageFolder
from shards.errors import ShardError
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


class FarStage:
    """A stage's folder on an object store that takes `latency` for a marker; has none of `missing`."""

    def __init__(self, latency: float, missing: str = "") -> None:
        self.store = SimpleNamespace(local=False, find=lambda name: None)
        self.latency, self.missing = latency, missing
        self.at_once, self.most = 0, 0
        self._lock = threading.Lock()

    def marker(self, shard: str) -> Marker:
        with self._lock:
            self.at_once += 1
            self.most = max(self.most, self.at_once)
        time.sleep(self.latency)
        with self._lock:
            self.at_once -= 1
        if shard == self.missing:
            raise ShardError(f"{shard} does not exist")
        return Marker(shard, "pairs", "", "", 7, "0" * 32, (), 7, counts={"pairs": 3})


def test_markers_on_an_object_store_are_read_beside_the_runner() -> None:
    stage: Any = FarStage(0.1)
    names, start = [f"{n:06d}" for n in range(40)], time.monotonic()
    with progress.StageProgress("pairs", stage, len(names), 0) as shown:
        for name in names:
            shown.done(name)
    assert shown.images == 7 * 40 and shown.counts == {"pairs": 120} and shown.progress.done == 40, "all are told"
    assert 1 < stage.most <= progress.READERS and time.monotonic() - start < 0.1 * 40


@pytest.mark.parametrize("at", [0, 20, 39])
def test_a_marker_that_is_gone_ends_the_stage(at: int) -> None:
    stage: Any = FarStage(0.001, missing=f"{at:06d}")
    with pytest.raises(ShardError, match=f"{at:06d}"), progress.StageProgress("pairs", stage, 40, 0) as shown:
        for n in range(40):
            shown.done(f"{n:06d}")


def test_another_error_does_not_wait_for_markers() -> None:
    stage: Any = FarStage(0.5, missing="000000")
    start = time.monotonic()
    with pytest.raises(KeyError), progress.StageProgress("pairs", stage, 40, 0) as shown:
        for n in range(progress.READERS):
            shown.done(f"{n:06d}")
        raise KeyError
    assert time.monotonic() - start < 0.4
