"""Jobs that misbehave when files in a folder ask for it, around the real jobs of a run. Imported by workers."""

from __future__ import annotations

import os
import resource
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

OPEN_SECONDS = 300.0


@dataclass(frozen=True)
class FaultyJob:
    """`job`, whose workers note each try in `folder` as try-STAGE-SPLIT-UNIT-PID, and do what `asks` has left there."""

    job: Any
    folder: str

    @property
    def on_device(self) -> bool:
        return bool(getattr(self.job, "on_device", False))

    def worker(self) -> FaultyWorker:
        return FaultyWorker(self)


def asks(folder: Path, what: str, unit: str, times: int = 1) -> None:
    """stuck (sleeps for ever), memory (grows until it is refused more) or gate (waits for a file `open`), at the next so
    many tries of a unit STAGE-SPLIT-SHARD."""
    for n in range(times):
        (folder / f"{what}-{unit}-{n}").touch()


class FaultyWorker:
    def __init__(self, faulty: FaultyJob) -> None:
        self.inner, self.folder = faulty.job.worker(), Path(faulty.folder)
        self.place = f"{faulty.job.stage}-{faulty.job.split}"

    def read_ahead(self, unit: str) -> None:
        self.inner.read_ahead(unit)

    def process(self, unit: str) -> object:
        name = f"{self.place}-{unit}"
        (self.folder / f"try-{name}-{os.getpid()}").touch()
        time.sleep(float((self.folder / "pace").read_text()))
        if self._asked("stuck", name):
            time.sleep(3600)
        if self._asked("memory", name):
            grow()
        if self._asked("gate", name):
            ends = time.monotonic() + OPEN_SECONDS
            while not (self.folder / "open").exists() and time.monotonic() < ends:
                time.sleep(0.1)
        return self.inner.process(unit)

    def _asked(self, what: str, name: str) -> bool:
        """Whether this try is to misbehave; each request is taken by one of any number of workers."""
        for asked in sorted(self.folder.glob(f"{what}-{name}-*")):
            try:
                asked.unlink()
                return True
            except FileNotFoundError:
                continue
        return False


def grow() -> None:
    """Take memory until the system refuses more, 256 MB above what this process has now."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + (256 << 20),) * 2)
    held = []
    while True:
        held.append(bytearray(16 << 20))
