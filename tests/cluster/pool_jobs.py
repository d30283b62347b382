"""Jobs for the pool's tests: each unit is committed by an exclusive file; files in the folder say who shall misbehave."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

from shards.errors import VillaError

LOAD_SECONDS = 4.0


@dataclass(frozen=True)
class Job:
    folder: str

    def worker(self) -> Worker:
        if list(Path(self.folder).glob("load-*")):
            time.sleep(LOAD_SECONDS)
        return Worker(Path(self.folder))

    def asks(self, what: str, unit: str, times: int = 1) -> None:
        """die, hang, break (an error of ours) or wrong (a mistake of the user's), at the next `times` tries of a unit; load:
        workers take long to be made, whatever the unit."""
        for n in range(times):
            Path(self.folder, f"{what}-{unit}-{n}").touch()

    def committed(self) -> list[str]:
        return sorted(p.stem for p in Path(self.folder).glob("*.done"))

    def tries(self, unit: str) -> int:
        return len(list(Path(self.folder).glob(f"try-{unit}-*")))


class Worker:
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def read_ahead(self, unit: str) -> None:
        (self.folder / f"ahead-{unit}-{os.getpid()}").touch()

    def process(self, unit: str) -> None:
        (self.folder / f"try-{unit}-{os.getpid()}-{time.monotonic_ns()}").touch()
        if self._asked("die", unit):
            os.kill(os.getpid(), signal.SIGKILL)
        if self._asked("hang", unit):
            time.sleep(600)
        if self._asked("break", unit):
            raise RuntimeError("a fault of ours")
        if self._asked("wrong", unit):
            raise VillaError("shard is not there; give another")
        time.sleep(0.05)
        os.close(os.open(self.folder / f"{unit}.done", os.O_CREAT))

    def _asked(self, what: str, unit: str) -> bool:
        """Whether this try is to misbehave; each request is taken by one of any number of workers."""
        for asked in sorted(self.folder.glob(f"{what}-{unit}-*")):
            try:
                asked.unlink()
                return True
            except FileNotFoundError:
                continue
        return False
