"""The lease of a run: one of any number of drivers has it, it ends with its holder, and a holder that lost it stops."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from faults.s3 import S3
from hypothesis import given
from hypothesis import strategies as st

from cluster import lease
from cluster.lease import FOLDER, Generations, HeldLease, Holder, Lease, LostLease, Terms, acquire, held
from shards.errors import VillaError
from shards.retry import GaveUp
from shards.store import Store

ROOT = Path(__file__).parents[2]
QUICK = Terms(1.0)
ELSEWHERE = Holder("theirs", "other-host", 4711, 99, "other-host boot pid:[1]")


def until(condition: Callable[[], Any], seconds: float = 20.0) -> None:
    ends = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < ends
        time.sleep(0.01)


def of_another(run: str, expires: float, number: int = 1, holder: Holder = ELSEWHERE) -> None:
    assert Generations(run, 1.0).create(number, Lease(holder, time.time() - 60, expires))


def child(code: str, *arguments: str) -> subprocess.Popen[str]:
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen([sys.executable, "-c", code, *arguments], stdout=subprocess.PIPE, text=True, env=env)


# ---- who gets it


def test_a_second_driver_of_this_machine_is_refused_at_once_and_let_in_after(tmp_path: Path) -> None:
    run = str(tmp_path)
    with held(run, "use another run"):
        began = time.monotonic()
        with pytest.raises(VillaError, match=rf"pid {os.getpid()} on .*, since .*use another run"):
            acquire(run, "use another run")
        assert time.monotonic() - began < 1.0
    began = time.monotonic()
    acquire(run, "").release()
    assert time.monotonic() - began < 1.0
    assert len(Store(run).list(FOLDER)) == 1  # the highest number stays


HOLD = """
import sys, time
from cluster.lease import acquire
held = acquire(sys.argv[1], "")
print("held", flush=True)
time.sleep(60)
"""


def test_a_killed_driver_of_this_machine_frees_its_run_at_once(tmp_path: Path) -> None:
    holder = child(HOLD, str(tmp_path))
    try:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        with pytest.raises(VillaError, match=f"pid {holder.pid} "):
            acquire(str(tmp_path), "")
        holder.send_signal(signal.SIGKILL)
        until(lambda: lease.born(holder.pid) is None)  # a zombie by then
        began = time.monotonic()
        acquire(str(tmp_path), "").release()
        assert time.monotonic() - began < 1.0
    finally:
        holder.kill()
        holder.wait(timeout=30)


def test_a_pid_that_was_given_to_another_process_is_not_the_holder(tmp_path: Path) -> None:
    me = lease.myself()
    of_another(str(tmp_path), time.time() + 3600, holder=replace(me, born=me.born - 1))
    acquire(str(tmp_path), "").release()


def test_a_driver_elsewhere_is_refused_when_it_renews(tmp_path: Path) -> None:
    run = str(tmp_path)
    of_another(run, time.time() + 3600)
    timer = threading.Timer(0.4, of_another, (run, time.time() + 3600, 2))
    timer.start()
    with pytest.raises(VillaError, match="4711 on other-host"):
        acquire(run, "", QUICK)
    timer.join()


def test_a_driver_elsewhere_that_is_dead_is_waited_for_and_followed(tmp_path: Path) -> None:
    run, began = str(tmp_path), time.time()
    of_another(run, began + 0.5)
    mine = acquire(run, "", QUICK)
    assert began + 0.5 + QUICK.margin <= time.time() < began + 10
    mine.release()


def test_a_clock_that_is_hours_ahead_is_told_and_not_waited_for(tmp_path: Path) -> None:
    of_another(str(tmp_path), time.time() + 7200)
    with pytest.raises(VillaError, match=r"set the clocks .* remove .*\.lease"):
        acquire(str(tmp_path), "", QUICK)


def test_a_torn_file_is_held_until_it_is_as_old_as_a_lease(tmp_path: Path) -> None:
    (tmp_path / FOLDER).mkdir()
    torn = tmp_path / FOLDER / "000007.json"
    torn.write_text('{"holder": {')
    assert Generations(str(tmp_path), 1.0).newest()[1].expires > time.time()
    os.utime(torn, (time.time() - 5, time.time() - 5))
    mine = acquire(str(tmp_path), "", QUICK)
    assert mine.number == 8
    mine.release()


def racers(run: str, seconds: float, env: dict[str, str]) -> list[str]:
    command = [sys.executable, str(Path(__file__).with_name("lease_child.py")), run, "8", str(seconds)]
    ended = subprocess.run(
        command, capture_output=True, text=True, timeout=120, env={**os.environ, "PYTHONPATH": str(ROOT), **env}
    )
    assert ended.returncode == 0, ended.stderr
    said = ended.stdout.splitlines()
    assert len(said) == 8, ended.stdout
    return said


@pytest.mark.parametrize("stale", [False, True])
def test_of_eight_processes_one_gets_the_run(tmp_path: Path, stale: bool) -> None:
    if stale:
        of_another(str(tmp_path), time.time() - 60, number=41)
    said = racers(str(tmp_path), 1.5, {})
    assert sum(line.startswith("held") for line in said) == 1, said
    assert sum(line.startswith("refused another villa") for line in said) == 7, said


def test_of_eight_processes_on_an_object_store_one_takes_over(s3: S3) -> None:
    of_another(s3.url("run"), time.time() - 60, number=41)
    said = racers(s3.url("run"), 3.0, {})
    assert sum(line.startswith("held") for line in said) == 1, said
    assert sum(line.startswith("refused another villa") for line in said) == 7, said


@given(st.integers(1, 6), st.integers(1, 8), st.data())
def test_whoever_looked_long_ago_never_gets_in(seen: int, renewals: int, data: st.DataObject) -> None:
    """Any number of renewals and clean-ups between a look and the create that follows it."""
    generations, later = Generations("/none", 1.0), seen + renewals
    kept = data.draw(st.integers(seen + 1, later))
    generations.store = Memory({f"{FOLDER}/{n:06d}.json" for n in range(kept, later + 1)})
    before = set(generations.store.names)
    state = Lease(ELSEWHERE, 0.0, 0.0)
    assert not generations.create(seen + 1, state) and generations.store.names == before
    assert generations.create(later + 1, state) and not generations.create(later + 1, state)


class Memory:
    """The part of a store that generations use."""

    def __init__(self, names: set[str]) -> None:
        self.names = names

    def put_if_absent(self, name: str, data: bytes) -> bool:
        made = name not in self.names
        self.names.add(name)
        return made

    def remove(self, name: str) -> None:
        self.names.discard(name)

    def list(self, folder: str, suffix: str) -> list[str]:
        return sorted(n.removeprefix(f"{folder}/") for n in self.names)


# ---- how it is kept and lost


def lone(run: str, given: Terms, told: list[str]) -> HeldLease:
    mine = acquire(run, "", given)
    mine.on_loss = lambda lost: told.append(lost.lost)
    return mine


def test_it_is_renewed_and_leaves_two_files_at_most(tmp_path: Path) -> None:
    told: list[str] = []
    mine = lone(str(tmp_path), QUICK, told)
    until(lambda: mine.number >= 4)
    assert len(Store(str(tmp_path)).list(FOLDER, ".json")) <= 3  # one may be on its way
    mine.release()
    time.sleep(0.4)
    number, state = Generations(str(tmp_path), 1.0).newest()
    assert not told and state is not None and state.expires == 0.0
    assert len(Store(str(tmp_path)).list(FOLDER, ".json")) == 1 and number > 4


def test_a_holder_that_was_taken_over_is_told_and_leaves_the_other_alone(tmp_path: Path) -> None:
    told: list[str] = []
    mine = lone(str(tmp_path), QUICK, told)
    of_another(str(tmp_path), time.time() + 60, number=mine.number + 1)
    until(lambda: told)
    assert "taken over by another villa process (pid 4711 on other-host" in told[0]
    mine.release()
    state = Generations(str(tmp_path), 1.0).newest()[1]
    assert state is not None and state.holder == ELSEWHERE and state.expires


def test_a_storage_that_is_away_longer_than_the_lease_ends_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    mine = lone(str(tmp_path), QUICK, told)

    def away(self: Store, name: str, data: bytes) -> bool:
        time.sleep(0.3)
        raise GaveUp("no answer")

    monkeypatch.setattr(Store, "put_if_absent", away)
    until(lambda: told)
    assert "could not be renewed" in told[0]
    mine.release()


def test_a_lost_answer_to_a_renewal_is_no_loss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    mine = lone(str(tmp_path), QUICK, told)
    real, calls = Store.put_if_absent, []

    def lossy(self: Store, name: str, data: bytes) -> bool:
        made = real(self, name, data)
        calls.append(name)
        if len(calls) == 1:
            raise GaveUp("the answer was lost")
        return made

    monkeypatch.setattr(Store, "put_if_absent", lossy)
    until(lambda: len(calls) >= 4)
    assert not told and not mine.lost
    mine.release()


def test_a_run_that_is_removed_takes_its_lease_along(tmp_path: Path) -> None:
    told: list[str] = []
    mine = lone(str(tmp_path / "run"), QUICK, told)
    Store(str(tmp_path / "run")).remove("", recursive=True)
    time.sleep(0.6)
    mine.release()
    assert not told and not (tmp_path / "run").exists()


WORK = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.SIG_IGN)  # as a shell does for what it starts in the background
from cluster.lease import LostLease, held
try:
    with held(sys.argv[1], "") as lease:
        print(lease.number, flush=True)
        time.sleep(60)
except LostLease as error:
    print(error, flush=True)
"""


def test_a_driver_that_lost_its_lease_is_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(lease.SECONDS_VARIABLE, "1")
    driver = child(WORK, str(tmp_path))
    try:
        assert driver.stdout is not None
        number = int(driver.stdout.readline())
        ends = time.monotonic() + 20
        while not Generations(str(tmp_path), 1.0).create(number + 1, Lease(ELSEWHERE, 0.0, time.time() + 60)):
            number = Generations(str(tmp_path), 1.0).newest()[0]
            assert time.monotonic() < ends
        said, _ = driver.communicate(timeout=20)
        assert "taken over" in said and "the same command goes on" in said and "Traceback" not in said
    finally:
        driver.kill()
        driver.wait(timeout=30)


def test_a_loss_replaces_the_interruption_it_causes(tmp_path: Path) -> None:
    with pytest.raises(LostLease, match="stops"), held(str(tmp_path), "", QUICK) as mine:
        mine.on_loss = lambda lost: None
        of_another(str(tmp_path), time.time() + 60, number=mine.number + 1)
        until(lambda: mine.lost)
        raise KeyboardInterrupt


def test_a_wrong_length_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(lease.SECONDS_VARIABLE, "soon")
    with pytest.raises(VillaError, match="VILLA_LEASE_SECONDS='soon'"):
        lease.terms()
