"""Work over many shards whose small results come back to the driver, one JSON object a unit.

A unit's result is written to a scratch folder by the worker and taken from there as the unit is done, so memory does not
grow with the number of units and nothing is written where the data lies.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from shards.digest import fingerprint
from shards.errors import ShardError, VillaError, storage_errors
from shards.store import Store, owner
from shards.work import RunUnits, UnitWorker

Look = Callable[[str], dict[str, Any]]  # what is found of one unit, as JSON has it


class Task(Protocol):
    """Small, picklable and comparable, as jobs are."""

    def open(self) -> Look:
        """Called once in each worker."""
        ...


@dataclass(frozen=True)
class GatherJob:
    task: Task
    scratch: str

    def worker(self) -> UnitWorker:
        return Gatherer(self.task.open(), Store(self.scratch))


class Gatherer:
    def __init__(self, look: Look, scratch: Store) -> None:
        self.look, self.scratch = look, scratch

    def process(self, unit: str) -> None:
        data, name = json.dumps(self.look(unit)).encode(), result_name(unit)
        if not self.scratch.local:
            self.scratch.put(name, data)
            return
        path = Path(self.scratch.path(name))
        path.parent.mkdir(parents=True, exist_ok=True)
        with storage_errors(str(path)):  # whole or not at all; it need not outlive a power cut, so nothing is flushed
            temporary = path.with_name(f".{name}.{owner()}.tmp")
            temporary.write_bytes(data)
            temporary.replace(path)


def result_name(unit: str) -> str:
    return f"{fingerprint(unit)}.json"


def gather(
    run: RunUnits, task: Task, units: Sequence[str], take: Callable[[str, dict[str, Any]], None], scratch: str | None
) -> None:
    """Look at all units, in any order; `take(unit, result)` is called here for each.

    scratch: a folder that all workers reach; None: a temporary one, which does for workers on this machine.
    """
    with _scratch(scratch) as folder:
        store = Store(folder)

        def done(unit: str) -> None:
            name = result_name(unit)
            try:
                found = json.loads(store.read(name))
            except ShardError as error:
                raise VillaError(
                    f"the result of {unit} is not in {folder}: workers on other machines do not reach it; name a place that "
                    "all of them reach with --scratch (s3://… or a shared folder)"
                ) from error
            store.remove(name)
            take(unit, found)

        run(GatherJob(task, folder), units, done)


@contextmanager
def _scratch(given: str | None) -> Iterator[str]:
    if given:
        yield given
        return
    with tempfile.TemporaryDirectory(prefix="villa-gather-") as folder:
        yield folder
