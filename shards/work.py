"""Work that is cut into units, each committed by itself: what runs it needs to know, and the runner that uses this process.

A job is small and picklable, so it travels to workers as it is; a worker is made from it once in each process and may
hold what is dear to load. `cluster` runs the same jobs on Ray.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import zip_longest
from typing import Protocol, runtime_checkable


class UnitWorker(Protocol):
    def process(self, unit: str) -> object:
        """Do one unit and commit it. Raises: VillaError for what a user can mend; it would fail anywhere."""
        ...


@runtime_checkable
class ReadsAhead(Protocol):
    """A worker that can fetch a unit's input while it works on another."""

    def read_ahead(self, unit: str) -> None:
        """`unit` will probably be asked for next; begin in a thread and return at once. Never raises."""
        ...


class Job(Protocol):
    """Equal jobs make equal workers, so a process keeps the worker of the last job."""

    def worker(self) -> UnitWorker: ...


# Processes all units of a job, in any order and anywhere; the last argument is called here with each unit committed.
RunUnits = Callable[[Job, Sequence[str], Callable[[str], None]], None]


Again = Callable[[str, str], None]  # a unit that is tried once more, and the kind of failure


def process(worker: UnitWorker, unit: str, upcoming: str | None) -> object:
    """Do one unit while `upcoming`, where there is one, is read ahead."""
    if upcoming is not None and isinstance(worker, ReadsAhead):
        worker.read_ahead(upcoming)
    return worker.process(unit)


def run_here(job: Job, units: Sequence[str], done: Callable[[str], None]) -> None:
    """In this process, in order."""
    worker = job.worker() if units else None
    for unit, upcoming in zip_longest(units, units[1:]):
        assert worker is not None
        process(worker, unit, upcoming)
        done(unit)
