"""Fuzz for a while: `python tests/fuzz/fuzz_run.py --seconds 60 --seed 1 [--targets tar,index] [--keep FOLDER]`.

Every input that met a defect is kept as FOLDER/<target>-<kind of defect>-<number>.bin, the smallest of its kind. Inputs run
in a child process, so that a crash or a hang of a library is a find like any other.
"""

from __future__ import annotations

import argparse
import json
import mmap
import multiprocessing
import random
import re
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[2])]

import fuzz_targets  # noqa: E402

HANG_SECONDS = 5
LARGEST = 1 << 20


def defect(error: BaseException) -> str:
    """A name for the kind of a defect: where it was raised and what."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if "/tests/fuzz/" not in f.filename]
    at = f"{Path(frames[-1].filename).stem}-{frames[-1].name}" if frames else "oracle"
    line = traceback.extract_tb(error.__traceback__)[-1].lineno if not frames else ""
    return re.sub(r"[^\w-]", "", f"{type(error).__name__}-{at}{line}").lower()


class Hang(BaseException):
    pass


def _alarm(signum: int, frame: object) -> None:
    raise Hang


def child(name: str, seed: int, seconds: float, current: str, report: Any) -> None:
    """Fuzz one target; what is being tried lies in `current`, for the parent to find after a crash."""
    signal.signal(signal.SIGALRM, _alarm)
    target = fuzz_targets.targets()[name]
    file = open(current, "r+b")  # noqa: SIM115
    latest = mmap.mmap(file.fileno(), LARGEST)  # outlives a crash, and costs no system call
    rng = random.Random(seed)
    runs, values, found = 0, 0, {}
    stop = time.monotonic() + seconds
    while time.monotonic() < stop:
        data = target.mutate(rng)
        latest[:8], latest[8 : 8 + len(data)] = len(data).to_bytes(8, "big"), data
        signal.alarm(HANG_SECONDS)
        try:
            values += fuzz_targets.outcome(target, data) == "value"
        except Hang:
            found.setdefault("hang", data)
        except BaseException as error:
            kind = defect(error)
            if kind not in found or len(found[kind]) > len(data):
                found[kind] = data
        finally:
            signal.alarm(0)
        runs += 1
    report.put((runs, values, found))


def fuzz(name: str, seed: int, seconds: float, scratch: Path) -> tuple[int, int, dict[str, bytes]]:
    """(inputs, inputs that gave a value, defect -> an input)."""
    context = multiprocessing.get_context("spawn")
    report, current = context.Queue(), scratch / f"{name}.current"
    current.write_bytes(bytes(LARGEST))
    process = context.Process(target=child, args=(name, seed, seconds, str(current), report))
    process.start()
    while process.is_alive() and report.empty():
        time.sleep(0.05)
        process.join(0.05)
    if not report.empty() or process.exitcode == 0:
        result: tuple[int, int, dict[str, bytes]] = report.get(timeout=10)
        process.join()
        return result
    left = current.read_bytes()
    return 0, 0, {f"crash{process.exitcode}": left[8 : 8 + int.from_bytes(left[:8], "big")]}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--targets", default=",".join(fuzz_targets.targets()))
    parser.add_argument("--keep", default="")
    given = parser.parse_args()
    names = given.targets.split(",")
    keep = Path(given.keep or ".")
    keep.mkdir(parents=True, exist_ok=True)
    for name in names:
        runs, values, found = fuzz(name, given.seed, given.seconds / len(names), keep)
        print(json.dumps({"target": name, "inputs": runs, "values": values, "defects": sorted(found)}), flush=True)
        for kind, data in found.items():
            (keep / f"{name}-{kind}-{given.seed}.bin").write_bytes(data)


if __name__ == "__main__":
    main()
