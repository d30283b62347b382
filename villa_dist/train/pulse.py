"""What each rank is at, in `<job>/ranks/<rank>`, written once a second by a thread beside the training.

A thread, so that a rank that waits for the others is told from one that is stopped. The file is overwritten in place, at
a fixed length: on network file systems that is seen at once, where a new file under the old name may not be.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import TypeVar

from villa_dist.names import RANKS, STOP
from villa_dist.train import signals
from villa_dist.train.stalls import ABORT, Beat, Stalls

BEAT_SECONDS = 1.0
LENGTH = 512  # bytes of a file
STALLED = 70  # exit code of a rank whose group is ended
WAITING = ("torch/distributed/", "deepspeed/comm/", "villa_dist/train/agree.py")
DEPTH = 40  # frames looked at
T = TypeVar("T")


class Pulse:
    """`with Pulse(...) as pulse:` around a rank's training, in the thread that trains."""

    def __init__(self, folder: Path, rank: int, step: int, *, watch: Stalls | None = None) -> None:
        self.job, self.folder, self.rank = folder, folder / RANKS, rank
        self.step, self.phase = step, "start"
        self._thread, self._trains = threading.Thread(target=self._beat, name="villa-pulse", daemon=True), 0
        self._stop, self._count, self._watch = threading.Event(), 0, watch

    def __enter__(self) -> Pulse:
        self._trains = threading.get_ident()
        self.folder.mkdir(parents=True, exist_ok=True)
        self._write()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join(timeout=5.0)
        (self.folder / str(self.rank)).unlink(missing_ok=True)

    def each(self, items: Iterable[tuple[int, T]]) -> Iterator[tuple[int, T]]:
        """(step, item) as they come, while it is noted whether this rank waits for data or is in the step."""
        waiting = iter(items)
        while True:
            self.phase = "data"
            found = next(waiting, None)
            if found is None:
                return
            self.step, self.phase = found[0] + 1, "step"
            yield found

    @contextmanager
    def during(self, phase: str) -> Iterator[None]:
        before, self.phase = self.phase, phase
        try:
            yield
        finally:
            self.phase = before

    def _beat(self) -> None:
        while not self._stop.wait(BEAT_SECONDS):
            try:
                self._write()
                if (self.job / STOP).exists():
                    signals.ask()
                if self._watch is not None:
                    self._watch.look(self.folder)
                if (self.folder / ABORT).exists():
                    os._exit(STALLED)
            except OSError:  # a disk that is full or away for a while stops no training
                continue

    def _write(self) -> None:
        self._count += 1
        waits, place = standing(self._trains)
        beat = Beat(self.rank, socket.gethostname(), os.getpid(), self._count, self.step, self.phase, waits, place)
        data = json.dumps(asdict(beat)).encode()[:LENGTH].ljust(LENGTH)
        path = self.folder / str(self.rank)
        with open(path, "r+b" if path.exists() else "wb", buffering=0) as file:
            file.write(data)


def watched_by(rank: int, stall_minutes: float | None) -> Stalls | None:
    """Where no driver of ours watches the ranks, as under torchrun: rank 0 watches all, and rank 1 watches rank 0."""
    if "TORCHELASTIC_RUN_ID" not in os.environ or rank > 1:
        return None
    return Stalls(None if stall_minutes is None else 60 * stall_minutes, frozenset({0}) if rank else None)


def standing(thread: int) -> tuple[bool, str]:
    """(whether a thread waits for other ranks, where it is in this package)."""
    frame, waits, place = sys._current_frames().get(thread), False, ""
    for _ in range(DEPTH):
        if frame is None:
            break
        name = frame.f_code.co_filename.replace(os.sep, "/")
        waits = waits or any(part in name for part in WAITING)
        if not place and "/villa_dist/" in name:
            place = f"villa_dist/{name.rpartition('/villa_dist/')[2]}:{frame.f_lineno}"
        frame = frame.f_back
    return waits, place


def clear(folder: Path) -> None:
    """Remove what the ranks of an earlier group have left. Called before a group starts."""
    for path in (folder / RANKS).glob("*"):
        path.unlink(missing_ok=True)
