"""Run as a program by the S3 crash tests: forks workers that are killed, or race, at chosen requests; reports as JSON.

    s3_crash_child.py sweep RUN FIRST STEP    SIGKILL a worker before and after every request and write of a commit (each
                                              STEP-th, from FIRST on), then rerun
    s3_crash_child.py race RUN                eight processes commit one shard at once, in several rounds

The endpoint and credentials come from the environment. Everything is forked, so that a crash costs no import.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

import crash_child
from crash_child import in_child, marker

import shards.session
from shards.commit import StageFolder
from shards.digest import fingerprint
from shards.outfile import HashingFile

CONFIG = {"epsilon": 0.2}
RACERS, ROUNDS = 8, 4
SHARD = "000000"


def work(run: str) -> None:
    """What a stage does: claim, finish what a crash left, then the missing shard."""
    stage = StageFolder(run, "base")
    stage.claim(CONFIG)
    stage.settle_all()
    if SHARD not in stage.shards_done():
        with stage.attempt(SHARD) as attempt:
            for name, data in crash_child.content(SHARD).items():
                file = attempt.open(name)
                file.write(data[: len(data) // 2])
                file.write(data[len(data) // 2 :])
            attempt.commit(lambda outputs: marker(SHARD, outputs))


def crash(run: str, at: int) -> int:
    """The exit status of a worker that is killed at its point number `at`: before or after a request or a write."""
    count = 0

    def point() -> None:
        nonlocal count
        count += 1
        if count == at:
            os.kill(os.getpid(), signal.SIGKILL)

    def wrap(call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            point()
            result = call(*args, **kwargs)
            point()
            return result

        return wrapped

    def job() -> None:
        shards.session.sync = wrap(shards.session.sync)
        HashingFile.write = wrap(HashingFile.write)  # type: ignore[method-assign]
        work(run)

    return in_child(job)


def troubles(run: str, *, recovered: bool) -> list[str]:
    """What is lost, doubled, corrupt or left over."""
    stage, bad = StageFolder(run, "base"), []
    expected = crash_child.content(SHARD)
    for shard in stage.shards_done():
        for output in stage.marker(shard).outputs:
            if stage.store.read(stage.locate(output)) != expected[output.file]:
                bad.append(f"committed {output.file} is not whole")
    if recovered:
        now = time.time
        time.time = lambda: now() + 25 * 3600
        stage.settle_all()
        time.time = now
        place = stage.store.path() + "/"
        found = sorted(e.path[len(place) :] for e in stage.store.objects.entries(place, recursive=True))
        if found != sorted([*expected, "config.json", f"{SHARD}.done.json"]):
            bad.append(f"the folder holds {found}")
    return bad


def sweep(root: str, first: str, step: str) -> dict[str, object]:
    failed, at = {}, 0
    for at in itertools.count(int(first), int(step)):
        run = f"{root}/{at}"
        died = crash(run, at)
        bad = [] if died in (0, -signal.SIGKILL) else [f"exit status {died}"]
        bad += troubles(run, recovered=False)
        bad += [] if in_child(lambda run=run: work(run)) == 0 else ["the rerun failed"]
        bad += troubles(run, recovered=True)
        if bad:
            failed[str(at)] = bad
        if died == 0:
            break
    return {"points": at - 1, "failed": failed}


def race(root: str) -> dict[str, object]:
    failed: dict[str, object] = {}
    for number in range(ROUNDS):
        run = f"{root}/{number}"
        reader, writer = os.pipe()
        children = []
        for racer in range(RACERS):
            pid = os.fork()
            if pid == 0:
                os.close(writer)
                os.read(reader, 1)  # returns for all when the parent closes its end
                os._exit(0 if crash_child.run_racer(run, SHARD, racer) else 1)
            children.append(pid)
        os.close(reader)
        os.close(writer)
        codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children]
        stage = StageFolder(run, "race")
        data = stage.store.read(f"{SHARD}.bin")
        stands = stage.marker(SHARD).outputs[0]
        whole = hashlib.sha256(data).hexdigest() == stands.sha256 and len(set(data)) == 1
        place = stage.store.path() + "/"
        files = sorted(e.path[len(place) :] for e in stage.store.objects.entries(place, recursive=True))
        if any(codes) or not whole or files != [f"{SHARD}.bin", f"{SHARD}.done.json"]:
            failed[str(number)] = {"codes": codes, "bytes": len(data), "files": files}
    return {"failed": failed}


if __name__ == "__main__":
    assert fingerprint(CONFIG) == fingerprint(crash_child.CONFIG)
    print(json.dumps({"sweep": sweep, "race": race}[sys.argv[1]](*sys.argv[2:])))
