"""Run as a program by the crash tests of packing; forks packers that die, or race, and reports as JSON.

pack_crash_child.py sweep SRC ROOT   kill a packing before and after every call that changes the disk, run it again
pack_crash_child.py race SRC ROOT    several packings of one source into one data set at once, in several rounds
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from functools import partial
from pathlib import Path

from crash_child import Killer, in_child
from pack_samples import contents, pack

OPTIONS = {"max_count": 2}
RACERS, ROUNDS = 4, 4


def wrong(root: str, expected: dict[str, str]) -> list[str]:
    """What differs from an undisturbed packing; work in progress of dead packers must be gone too."""
    found = contents(root)
    bad = [f"{name} is missing or differs" for name in expected if found.get(name) != expected[name]]
    return bad + [f"left over: {name}" for name in found if name not in expected]


def packed(src: str, root: str, killer_at: int = -1, log: Path | None = None, order: int = 1) -> int:
    """The exit status of a packing in a forked process that dies at a point; `log` gets the names of all points."""

    def job() -> None:
        killer = Killer(killer_at) if killer_at >= 0 else None
        pack(src, root, OPTIONS, order=order)
        if killer and log:
            log.write_text("\n".join(killer.names[:]))

    return in_child(job)


def sweep(src: str, root: str, every: int = 1) -> dict[str, object]:
    pack(src, f"{root}-warm", OPTIONS)  # what is imported here once, no child imports again
    undisturbed, log = f"{root}-undisturbed", Path(f"{root}.points")
    assert packed(src, undisturbed, 0, log) == 0
    expected, names, failed = contents(undisturbed), log.read_text().splitlines(), {}
    for at, name in enumerate(names, 1):
        if at % every and "link" not in name and "replace" not in name:
            continue
        shutil.rmtree(root, ignore_errors=True)
        died = packed(src, root, at)
        bad = [] if died == -signal.SIGKILL else [f"exit status {died}"]
        bad += [] if packed(src, root) == 0 else ["the rerun failed"]
        bad += wrong(root, expected)
        if bad:
            failed[f"{at} {name}"] = bad
    return {"points": names, "failed": failed}


def race(src: str, root: str) -> dict[str, object]:
    pack(src, f"{root}-undisturbed", OPTIONS)
    expected, failed = contents(f"{root}-undisturbed"), {}
    for number in range(ROUNDS):
        reader, writer = os.pipe()
        children = []
        for racer in range(RACERS):
            pid = os.fork()
            if pid == 0:
                os.close(writer)
                os.read(reader, 1)  # returns for all when the parent closes its end
                os._exit(packed(src, f"{root}-{number}", order=1 - 2 * (racer % 2)))
            children.append(pid)
        os.close(reader)
        os.close(writer)
        codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children]
        bad = wrong(f"{root}-{number}", expected)
        if any(codes) or bad:
            failed[str(number)] = {"codes": codes, "bad": bad}
    return {"failed": failed, "files": sorted(expected)}


if __name__ == "__main__":
    os.fsync = lambda handle: None  # a killed process loses nothing that the system has, and the real one is slow
    jobs = {"all": sweep, "some": partial(sweep, every=7), "race": race}
    print(json.dumps(jobs[sys.argv[1]](sys.argv[2], sys.argv[3])))
