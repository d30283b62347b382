"""Progress, timers and the run's log. Everything a person reads goes to stderr; stdout is for the result line."""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import TypeVar

from shards.retry import scrub

LOG = logging.getLogger("villa")
PLAIN_SECONDS = 5.0
T = TypeVar("T")
END = object()


def set_up_logging(level: str = "INFO") -> None:
    """Plain lines on stderr, once."""
    if LOG.handlers:
        return
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Scrubbed("%(asctime)s %(message)s", "%H:%M:%S"))
    LOG.addHandler(handler)
    LOG.setLevel(level)
    LOG.propagate = False


class _Scrubbed(logging.Formatter):
    """Lines without the secrets of the environment, tracebacks included."""

    def format(self, record: logging.LogRecord) -> str:
        return scrub(super().format(record))


class Timers:
    """Seconds spent in the parts of a piece of work, by any number of threads."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._lock = threading.Lock()

    @contextmanager
    def time(self, part: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.add(part, time.perf_counter() - start)

    def add(self, part: str, seconds: float) -> None:
        with self._lock:
            self.seconds[part] = self.seconds.get(part, 0.0) + seconds

    def each(self, part: str, items: Iterable[T]) -> Iterator[T]:
        """`items`, with the time it takes to get them."""
        left = iter(items)
        while True:
            start = time.perf_counter()
            item = next(left, END)
            self.add(part, time.perf_counter() - start)
            if item is END:
                return
            yield item  # type: ignore[misc]

    def rounded(self) -> dict[str, float]:
        return {k: round(v, 4) for k, v in sorted(self.seconds.items())}


def duration(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


class Progress:
    """Done, rate and ETA of one stage: a live line on a terminal, a plain line every few seconds in a log."""

    def __init__(self, name: str, total: int, unit: str, done: int = 0) -> None:
        self.name, self.total, self.unit, self.done = name, total, unit, done
        self._first, self._start, self._last = done, time.monotonic(), time.monotonic()
        self._note = ""
        self._bar = None
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
            from rich.progress import Progress as RichProgress

            self._bar = RichProgress(
                TextColumn("{task.description:<24}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[note]}"),
                TimeRemainingColumn(),
                console=Console(stderr=True),
            )
            self._task = self._bar.add_task(name, total=total, completed=done, note="")

    def __enter__(self) -> Progress:
        if self._bar:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar:
            self._bar.stop()
        if error is None and not self._bar:
            self._line()

    @property
    def rate(self) -> float:
        return (self.done - self._first) / max(time.monotonic() - self._start, 1e-9)

    def advance(self, count: int = 1, note: str = "") -> None:
        self.update(self.done + count, note)

    def update(self, done: int, note: str = "") -> None:
        self.done, self._note = done, note or self._note
        if self._bar:
            rate = f"{self.rate:,.1f} {self.unit}/s  {self._note}"
            self._bar.update(self._task, completed=self.done, note=rate)
        elif time.monotonic() - self._last >= PLAIN_SECONDS:
            self._last = time.monotonic()
            self._line()

    def _line(self) -> None:
        rate = self.rate
        if self.done == self._first and self.done < self.total:
            return LOG.info("%s: %d/%d %s, starting", self.name, self.done, self.total, self.unit)
        left = (self.total - self.done) / rate if rate > 0 else 0.0
        eta = f", {duration(left)} left" if self.done < self.total and rate > 0 else ""
        note = f", {self._note}" if self._note else ""
        LOG.info("%s: %d/%d %s, %.1f/s%s%s", self.name, self.done, self.total, self.unit, rate, note, eta)
