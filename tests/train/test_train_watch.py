"""Who is named when ranks stand still, by a clock of the test's own."""

from __future__ import annotations

import logging
import os
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from villa_dist.names import RANKS
from villa_dist.observe import LOG
from villa_dist.train import pulse, stalls
from villa_dist.train.pulse import Pulse, standing
from villa_dist.train.stalls import ABORT, Beat, Stalls, read


def beat(rank: int, *, count: int = 1, step: int = 5, phase: str = "step", waits: bool = True, place: str = "") -> Beat:
    return Beat(rank, f"node{rank}", 100 + rank, count, step, phase, waits, place)


def after(seconds: float, watch: Stalls, beats: list[Beat], silent: tuple[int, ...] = ()) -> stalls.Stall | None:
    """What is found when the ranks have said the same for so long, those in `silent` nothing at all."""
    for now in (0.0, seconds):
        watch.see({b.rank: b if b.rank in silent else replace(b, count=int(now) + 1) for b in beats}, now)
    return watch.found(seconds)


def test_all_is_well_while_steps_are_made() -> None:
    watch = Stalls(600.0)
    for step in range(50):
        watch.see({r: beat(r, count=step, step=step, waits=False) for r in range(3)}, 29.0 * step)
        assert watch.found(29.0 * step) is None


def test_a_silent_rank_is_named_within_a_minute() -> None:
    found = after(31, Stalls(600.0), [beat(0), beat(1, waits=False), beat(2)], silent=(1,))
    assert found is not None and found.rank == 1 and found.seconds == 31
    assert "rank 1 on node1 (pid 101) has not finished step 5" in found.text and "stopped" in found.text
    assert after(29, Stalls(600.0), [beat(0), beat(1, waits=False), beat(2)], silent=(1,)) is None


def test_a_rank_that_others_wait_for_is_named_with_its_place() -> None:
    busy = beat(2, phase="data", waits=False, place="villa_dist/data/loader.py:221")
    found = after(40, Stalls(600.0), [beat(0), beat(1), busy])
    assert (
        found is not None
        and found.rank == 2
        and "loader.py:221" in found.text
        and "the others wait for it" in found.text
    )
    ahead = [beat(0, step=6), beat(1, step=6)]
    found = after(40, Stalls(600.0), [*ahead, busy])
    assert found is not None and found.rank == 2 and "others are at step 6" in found.text


@pytest.mark.parametrize("phase", ["save", "start", "end"])
def test_what_may_take_long_is_no_stall(phase: str) -> None:
    assert after(10_000, Stalls(600.0), [beat(0, phase=phase, waits=False), beat(1, phase=phase)]) is None


def test_nobody_is_named_while_two_are_busy_and_the_group_ends_when_all_stand_still() -> None:
    busy = [beat(0), beat(1, waits=False), beat(2, waits=False)]
    assert after(500, Stalls(600.0), busy) is None
    found = after(601, Stalls(600.0), busy)
    assert found is not None and "no rank has finished step 5 for 601 s" in found.text
    assert after(10_000, Stalls(None), busy) is None
    assert after(500, Stalls(600.0), [beat(0, waits=False)]) is None, "a lone rank may take its time"
    assert after(601, Stalls(600.0), [beat(0, waits=False)]) is not None


def test_ranks_that_are_started_again_are_looked_at_anew() -> None:
    watch = Stalls(600.0)
    after(40, watch, [beat(0), beat(1)], silent=(1,))
    watch.see({}, 41.0)
    assert watch.found(41.0) is None
    watch.see({0: beat(0), 1: beat(1)}, 50.0)
    assert watch.found(51.0) is None


def test_the_group_is_ended_once_and_the_rank_named_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LOG, "propagate", True)
    clock = [0.0]
    monkeypatch.setattr(stalls.time, "monotonic", lambda: clock[0])
    watch = Stalls(60.0)

    def write(count: int) -> None:
        for b in (beat(0, count=count), beat(1)):
            (tmp_path / str(b.rank)).write_text(__import__("json").dumps(b.__dict__).ljust(512))

    with caplog.at_level(logging.WARNING, logger=LOG.name):
        for clock[0] in (0.0, 10.0, 31.0, 40.0, 59.0):
            write(int(clock[0]))
            watch.look(tmp_path)
        assert len(caplog.records) == 1 and not (tmp_path / ABORT).exists()
        for clock[0] in (61.0, 70.0):
            write(int(clock[0]))
            watch.look(tmp_path)
    assert len(caplog.records) == 2
    assert "rank 1 on node1" in (tmp_path / ABORT).read_text()
    (tmp_path / "2").write_text('{"rank": 2, "ho')  # being written
    assert set(read(tmp_path)) == {0, 1}


def test_a_rank_says_where_it_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pulse, "BEAT_SECONDS", 0.01)
    with Pulse(tmp_path, 3, 7) as own:
        for step, _ in own.each([(7, "a"), (8, "b")]):
            own._write()
            assert (found := read(tmp_path / RANKS)[3]).step == step + 1 and found.phase == "step"
            assert found.pid == os.getpid() and not found.waits
        with own.during("save"):
            own._write()
            assert read(tmp_path / RANKS)[3].phase == "save"
        first = read(tmp_path / RANKS)[3].count
        until = time.monotonic() + 5
        while read(tmp_path / RANKS)[3].count <= first and time.monotonic() < until:
            time.sleep(0.01)
        assert read(tmp_path / RANKS)[3].count > first
    assert not list((tmp_path / RANKS).iterdir())


def test_a_thread_in_a_collective_waits(tmp_path: Path) -> None:
    held = threading.Event()
    there = tmp_path / "torch/distributed"
    there.mkdir(parents=True)
    (there / "made.py").write_text("def barrier(event):\n    event.wait()\n")
    scope: dict = {}
    exec(compile((there / "made.py").read_text(), str(there / "made.py"), "exec"), scope)
    waiting = threading.Thread(target=scope["barrier"], args=(held,))
    other = threading.Thread(target=held.wait)
    for thread in (waiting, other):
        thread.start()
    time.sleep(0.05)
    try:
        assert standing(waiting.ident or 0)[0] is True
        assert standing(other.ident or 0)[0] is False
    finally:
        held.set()
