"""Run as a program by the crash tests: forks workers that die, or race, at chosen calls, and reports as JSON.

    crash_child.py points ROOT   name every call that changes the disk
    crash_child.py sweep ROOT    kill a worker before and after every call that changes the disk, then recover
    crash_child.py again ROOT    kill the recovery itself at every such call, then recover once more
    crash_child.py race ROOT     eight workers commit one shard at once, in several rounds

Forking from one process that has imported `shards` makes a crash cost milliseconds.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

from shards.commit import Marker, Output, StageFolder
from shards.digest import fingerprint
from shards.outfile import HashingFile

SHARDS = ("000000", "000001")
CONFIG = {"epsilon": 0.2}
CALLS = ("link", "replace", "rename", "fsync", "mkdir", "rmdir", "unlink", "open")
RACERS, ROUNDS = 8, 12


def content(shard: str) -> dict[str, bytes]:
    return {f"{shard}.bin": shard.encode() * 5000, f"quarantine/{shard}.bin": b"refused " + shard.encode()}


def expected() -> dict[str, bytes]:
    return {name: data for shard in SHARDS for name, data in content(shard).items()}


def marker(shard: str, outputs: tuple[Output, ...]) -> Marker:
    return Marker(shard, "base", fingerprint(CONFIG), "in", 1, "0", outputs, 1)


def work(root: str) -> None:
    """What a stage does: claim, finish what a crash left, then each missing shard."""
    stage = StageFolder(root, "base")
    stage.claim(CONFIG)
    stage.settle_all()
    done = stage.shards_done()
    for shard in SHARDS:
        if shard in done:
            continue
        with stage.attempt(shard) as attempt:
            for name, data in content(shard).items():
                file = attempt.open(name)
                file.write(data[: len(data) // 2])
                file.flush()
                file.write(data[len(data) // 2 :])
            attempt.commit(lambda outputs, shard=shard: marker(shard, outputs))  # type: ignore[misc]


class Killer:
    """Counts calls that change the disk, and kills this process at the chosen one (before it, or after it)."""

    def __init__(self, at: int) -> None:
        self.at, self.count = at, 0
        self.names: list[str] = []
        for name in CALLS:
            setattr(os, name, self.wrap(f"os.{name}", getattr(os, name)))
        HashingFile.write = self.wrap("write", HashingFile.write)  # type: ignore[method-assign]
        HashingFile.flush = self.wrap("flush", HashingFile.flush)  # type: ignore[method-assign]

    def wrap(self, name: str, call: Callable[..., object]) -> Callable[..., object]:
        def wrapped(*args: object, **kwargs: object) -> object:
            self.point(f"before {name}")
            result = call(*args, **kwargs)
            self.point(f"after {name}")
            return result

        return wrapped

    def point(self, name: str) -> None:
        self.count += 1
        self.names.append(name)
        if self.count == self.at:
            os.kill(os.getpid(), signal.SIGKILL)


def in_child(job: Callable[[], None]) -> int:
    """The exit status of `job` in a forked process; negative for a signal."""
    pid = os.fork()
    if pid == 0:
        try:
            job()
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def crash(root: str, at: int) -> int:
    def job() -> None:
        Killer(at)
        work(root)

    return in_child(job)


def points(root: str) -> list[str]:
    """Names of the points of one run, in order."""
    log = Path(root).with_suffix(".points")

    def job() -> None:
        killer = Killer(0)
        work(root)
        log.write_text("\n".join(killer.names[:]))

    assert in_child(job) == 0
    return log.read_text().splitlines()


def committed_is_whole(root: str) -> list[str]:
    """Every marker that stands must lead to the whole output, also before any recovery."""
    stage, bad = StageFolder(root, "base"), []
    for shard in stage.shards_done():
        for output in stage.marker(shard).outputs:
            data = stage.store.read(stage.locate(output))
            if hashlib.sha256(data).hexdigest() != output.sha256 or data != content(shard)[output.file]:
                bad.append(f"committed {output.file} is not whole")
    return bad


def after_recovery(root: str) -> list[str]:
    stage = StageFolder(root, "base")
    assert in_child(stage.settle_all) == 0
    found = {str(p.relative_to(f"{root}/base")): p.read_bytes() for p in Path(root, "base").rglob("*") if p.is_file()}
    bad = [f"{name} is missing or differs" for name, data in expected().items() if found.get(name) != data]
    known = {*expected(), "config.json", *(f"{s}.done.json" for s in SHARDS)}
    bad += [f"orphan {name}" for name in sorted(set(found) - known)]
    bad += ["no marker of " + s for s in SHARDS if f"{s}.done.json" not in found]
    return bad + committed_is_whole(root)


def sweep(root: str) -> dict[str, object]:
    names, failed = points(root), {}
    for at, name in enumerate(names, 1):
        shutil.rmtree(root)
        died = crash(root, at)
        bad = [] if died == -signal.SIGKILL else [f"exit status {died}"]
        bad += committed_is_whole(root)
        bad += [] if in_child(lambda: work(root)) == 0 else ["the rerun failed"]
        bad += after_recovery(root)
        if bad:
            failed[f"{at} {name}"] = bad
    return {"points": names, "failed": failed}


def again(root: str) -> dict[str, object]:
    """Crash in the middle of settling the second shard, where recovery has most to do; then crash the recovery."""
    names = points(root)
    last = max(at for at, name in enumerate(names, 1) if name == "after os.link")
    settling = last + names[last:].index("before os.replace") + 1
    failed, tried = {}, 0
    for first in (last, settling):
        at, more = 0, True
        while more:
            at += 1
            shutil.rmtree(root)
            crash(root, first)
            more = crash(root, at) == -signal.SIGKILL
            bad = committed_is_whole(root)
            bad += [] if in_child(lambda: work(root)) == 0 else ["the rerun failed"]
            bad += after_recovery(root)
            tried += 1
            if bad:
                failed[f"{names[first - 1]}, then call {at} of the recovery"] = bad
    return {"tried": tried, "failed": failed}


def race(root: str) -> dict[str, object]:
    """Every racer writes other bytes, so that a marker of one with the output of another would show."""
    failed: dict[str, object] = {}
    winners = []
    for number in range(ROUNDS):
        shard = f"{number:06d}"
        reader, writer = os.pipe()
        children = []
        for racer in range(RACERS):
            pid = os.fork()
            if pid == 0:
                os.close(writer)
                os.read(reader, 1)  # returns for all when the parent closes its end
                os._exit(0 if run_racer(root, shard, racer) else 1)
            children.append(pid)
        os.close(reader)
        os.close(writer)
        codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children]
        stage = StageFolder(root, "race")
        data = Path(root, "race", f"{shard}.bin").read_bytes()
        stands = stage.marker(shard).outputs[0]
        winners.append(data[:1].decode())
        if any(codes) or hashlib.sha256(data).hexdigest() != stands.sha256 or len(set(data)) != 1:
            failed[shard] = {"codes": codes, "bytes": len(data)}
    stage.settle_all()
    files = sorted(str(p.relative_to(f"{root}/race")) for p in Path(root, "race").rglob("*") if p.is_file())
    return {"failed": failed, "files": files, "winners": winners}


def run_racer(root: str, shard: str, racer: int) -> bool:
    try:
        stage = StageFolder(root, "race")
        with stage.attempt(shard) as attempt:
            attempt.write(f"{shard}.bin", b"%d" % racer * 20_000)
            mine = attempt.commit(lambda outputs: marker(shard, outputs))
        return mine == stage.marker(shard)  # the loser is told what stands
    except BaseException:
        traceback.print_exc()
        return False


if __name__ == "__main__":
    os.fsync = lambda handle: None  # a killed process loses nothing that the system has, and the real one is slow
    job = {"points": lambda root: {"points": points(root)}, "sweep": sweep, "again": again, "race": race}[sys.argv[1]]
    print(json.dumps(job(sys.argv[2])))
