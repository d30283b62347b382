"""Being asked to stop: SIGTERM to the driver, to a rank, or a file `stop` in the job's folder.

The ranks finish their step, agree, save and end; exit code 75 (EX_TEMPFAIL of sysexits.h) says "run me again".
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from shards.errors import VillaError
from villa_dist.names import STOP

_asked = threading.Event()


class Preempted(VillaError):
    """Training was asked to stop, and what it had reached is saved."""

    exit_code = 75


def listen() -> None:
    """Take SIGTERM as a request from now on. In a thread (as Ray runs ranks) there is nothing to do: the file asks."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, lambda signum, frame: _asked.set())


def ask() -> None:
    """As SIGTERM to this process would."""
    _asked.set()


def asked() -> bool:
    return _asked.is_set()


def ask_ranks(folder: Path) -> None:
    """Ask all ranks of a job, wherever they run, to save and end."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / STOP).touch()


def clear(folder: Path) -> None:
    """Take back what was asked of an earlier run."""
    (folder / STOP).unlink(missing_ok=True)


@contextmanager
def sigterm_calls(act: Callable[[], None]) -> Iterator[None]:
    """While the block runs, SIGTERM to this process calls `act` instead of what it did; only in the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda signum, frame: act())
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def preempted(job: str, step: int) -> Preempted:
    reached = f"it is saved at step {step}" if step else "it had saved nothing yet"
    return Preempted(f"training {job} was asked to stop: {reached}; run the same command again and it continues there")
