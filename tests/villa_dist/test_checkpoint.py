"""Checkpoints that are whole or do not exist, and the schedule that needs no state."""

from __future__ import annotations

import logging
import math
from pathlib import Path

import pytest

from shards.errors import StorageFullError
from villa_dist.train import checkpoint
from villa_dist.train.checkpoint import MARKER, TrainState, newest, problem, prune, seal, tag
from villa_dist.train.schedule import warmup_cosine


def state(step: int) -> TrainState:
    return TrainState(step, 7, 64, "manifest-digest", "config-fingerprint")


def make(folder: Path, step: int, *, sealed: bool = True) -> Path:
    place = folder / tag(step)
    (place / "zero").mkdir(parents=True)
    (place / "model.pt").write_bytes(b"weights %d " % step * 100)
    (place / "zero/rank0.pt").write_bytes(b"optimizer %d" % step)
    (place / "empty").write_bytes(b"")
    if sealed:
        seal(place, state(step))
    return place


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 0x01
    path.write_bytes(bytes(data))


DAMAGE = {
    "no marker": lambda place: (place / MARKER).unlink(),
    "empty marker": lambda place: (place / MARKER).write_bytes(b""),
    "cut marker": lambda place: (place / MARKER).write_bytes((place / MARKER).read_bytes()[:60]),
    "marker of another kind": lambda place: (place / MARKER).write_bytes(b"[]"),
    "null marker": lambda place: (place / MARKER).write_bytes(b"null"),
    "marker without a state": lambda place: (place / MARKER).write_bytes(b'{"files": {}}'),
    "marker with files of another kind": lambda place: (place / MARKER).write_bytes(b'{"files": [1], "state": {}}'),
    "flipped byte": lambda place: flip(place / "model.pt", 500),
    "cut file": lambda place: (place / "model.pt").write_bytes((place / "model.pt").read_bytes()[:-1]),
    "longer file": lambda place: (place / "model.pt").write_bytes((place / "model.pt").read_bytes() + b"\0"),
    "missing file": lambda place: (place / "zero/rank0.pt").unlink(),
    "a folder for a file": lambda place: [(place / "empty").unlink(), (place / "empty").mkdir()],
}


def test_a_sealed_checkpoint_is_whole(tmp_path: Path) -> None:
    place = make(tmp_path, 300)
    assert problem(place) == ""
    assert newest(tmp_path) == (place, state(300))
    assert not list(place.glob("*.tmp"))


def test_the_newest_is_by_step_and_not_by_time(tmp_path: Path) -> None:
    for step in (900, 100, 1000, 20):
        make(tmp_path, step)
    assert newest(tmp_path) == (tmp_path / tag(1000), state(1000))


def test_where_there_is_none_there_is_none(tmp_path: Path) -> None:
    assert newest(tmp_path) is None
    assert newest(tmp_path / "nowhere") is None


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_torn_newest_falls_back_to_the_one_before_and_says_so(
    damage: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint.LOG, "propagate", True)
    before, torn = make(tmp_path, 100), make(tmp_path, 200)
    DAMAGE[damage](torn)
    with caplog.at_level(logging.WARNING, logger=checkpoint.LOG.name):
        assert newest(tmp_path) == (before, state(100))
    assert problem(torn)
    assert str(torn) in caplog.text
    assert "is passed over" in caplog.text
    DAMAGE[damage](before)
    assert newest(tmp_path) is None


def test_a_byte_flipped_anywhere_in_a_marker_never_changes_the_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint.LOG, "disabled", True)
    before, last = make(tmp_path, 100), make(tmp_path, 200)
    whole = (last / MARKER).read_bytes()
    wrong = []
    for at in range(len(whole)):
        (last / MARKER).write_bytes(whole)
        flip(last / MARKER, at)
        try:
            found = newest(tmp_path)
        except Exception as error:
            wrong.append((at, repr(error)))
            continue
        if found not in ((last, state(200)), (before, state(100))):
            wrong.append((at, repr(found)))
    assert not wrong, f"{len(wrong)} of {len(whole)} places, such as {wrong[0]}"


def test_a_crash_while_sealing_leaves_no_marker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before, place = make(tmp_path, 100), make(tmp_path, 200, sealed=False)

    def crash(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint.os, "replace", crash)
    with pytest.raises(KeyboardInterrupt):
        seal(place, state(200))
    monkeypatch.undo()
    assert newest(tmp_path) == (before, state(100))
    seal(place, state(200))
    assert newest(tmp_path) == (place, state(200))


def test_a_full_device_while_sealing_is_a_storage_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = make(tmp_path, 200, sealed=False)

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint.os, "fsync", full)
    with pytest.raises(StorageFullError, match=tag(200)):
        seal(place, state(200))
    assert newest(tmp_path) is None


def test_sealing_again_takes_in_what_changed(tmp_path: Path) -> None:
    place = make(tmp_path, 200)
    (place / "model.pt").write_bytes(b"other")
    assert problem(place)
    seal(place, state(200))
    assert problem(place) == ""


def left(folder: Path) -> list[int]:
    return sorted(int(p.name.removeprefix("step-")) for p in folder.iterdir())


def test_pruning_keeps_the_newest_whole_ones_and_what_may_still_be_written(tmp_path: Path) -> None:
    for step in (100, 200, 300, 400):
        make(tmp_path, step)
    make(tmp_path, 150, sealed=False)
    make(tmp_path, 350, sealed=False)
    make(tmp_path, 500, sealed=False)
    prune(tmp_path, 2)
    assert left(tmp_path) == [300, 350, 400, 500]
    prune(tmp_path, 2)
    assert left(tmp_path) == [300, 350, 400, 500]


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_pruning_never_removes_more_than_asked(tmp_path: Path, keep: int) -> None:
    make(tmp_path, 50, sealed=False)
    for step in (100, 200):
        make(tmp_path, step)
    prune(tmp_path, keep)
    assert [s for s in left(tmp_path) if s >= 100] == [100, 200][-keep:]
    assert newest(tmp_path) == (tmp_path / tag(200), state(200))


def test_warmup_then_cosine_by_hand() -> None:
    assert [warmup_cosine(s, 100, 4, 1.0) for s in (0, 1)] == pytest.approx(
        [0.25, 0.5 * 0.5 * (1 + math.cos(math.pi / 100))]
    )
    assert warmup_cosine(50, 100, 4, 3.0) == pytest.approx(1.5)
    assert warmup_cosine(100, 100, 4, 3.0) == pytest.approx(0.0)
    assert warmup_cosine(0, 100, 0, 3.0) == 3.0
    rates = [warmup_cosine(s, 100, 10, 1.0) for s in range(100)]
    assert rates[:10] == sorted(rates[:10])
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert all(0 < r <= 1 for r in rates)


def test_a_full_device_while_torch_writes_is_a_storage_error() -> None:
    said = "[enforce fail at inline_container.cc:672] . unexpected pos 13696 vs 13592"
    with pytest.raises(StorageFullError, match="step-00000002"), checkpoint.save_errors("step-00000002"):
        raise RuntimeError(said)
    with pytest.raises(RuntimeError, match="another"), checkpoint.save_errors("step-00000002"):
        raise RuntimeError("another trouble")
