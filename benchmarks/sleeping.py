"""A job that only sleeps, for measurements of what Ray, the pool and the driver add: any number of workers fits a core.

Each unit is committed by a file that is created exclusively; a second file says when its last try began. What shall go
wrong is part of the job, so that a run can be repeated and simulated.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class SleepJob:
    """seconds: of a unit. dies: units whose first try ends in a SIGKILL of the worker, half-way. slow: how many times
    longer all units take with the first worker that is made."""

    folder: str
    seconds: float
    dies: tuple[str, ...] = ()
    slow: float = 1.0

    def worker(self) -> Sleeper:
        return Sleeper(self)


class Sleeper:
    def __init__(self, job: SleepJob) -> None:
        self.job, self.folder = job, Path(job.folder)
        self.seconds = job.seconds * (job.slow if job.slow != 1.0 and created(self.folder / "slow") else 1.0)

    def process(self, unit: str) -> None:
        (self.folder / f"{unit}.try").write_text(f"{time.time():.6f}")
        if unit in self.job.dies and created(self.folder / f"{unit}.died"):
            time.sleep(self.seconds / 2)
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(self.seconds)
        created(self.folder / f"{unit}.done")


def created(path: Path) -> bool:
    """Whether this call made the file; one of any number of racing workers does."""
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return False
    return True


def names(units: int) -> Sequence[str]:
    return [f"{n:06d}" for n in range(units)]
