"""Work that is cut into units, each committed by itself: what runs it needs to know, and the runner that uses this process.

A job is small and picklable, so it travels to workers as it is; a worker is made from it once in each process and may
hold what is dear to load. `cluster` runs the same jobs on Ray.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol


class UnitWorker(Protocol):
    def process(self, unit: str) -> object:
        """Do one unit and commit it. Raises: VillaError for what a user can mend; it would fail anywhere."""
        ...


class Job(Protocol):
    """Equal jobs make equal workers, so a process keeps the worker of the last job."""

    def worker(self) -> UnitWorker: ...


# Processes all units of a job, in any order and anywhere; the last argument is called here with each unit committed.
RunUnits = Callable[[Job, Sequence[str], Callable[[str], None]], None]


def run_here(job: Job, units: Sequence[str], done: Callable[[str], None]) -> None:
    """In this process, in order."""
    worker = job.worker() if units else None
    for unit in units:
        assert worker is not None
        worker.process(unit)
        done(unit)
