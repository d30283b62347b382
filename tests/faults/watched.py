"""A run's folder while a process elsewhere works on it: waiting for what it commits, and seeing that no commit changes."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "integration"))
from runs import markers

WATCH_SECONDS = 0.25
TAIL = 3000  # characters of a log that a failure shows


class Watched:
    """log: the stderr of what works on `run`. bound: seconds after `began` at which whatever is waited for hangs."""

    def __init__(self, run: Path, log: Path, bound: float) -> None:
        self.run, self.log, self.bound = run, log, bound
        self.seen: dict[str, tuple[int, int]] = {}
        self.seconds, self.began, self._watched = 0.0, time.monotonic(), 0.0

    def until(self, happened: Callable[[], bool], what: str, pause: float = 0.05) -> None:
        """Poll; no marker that was seen may change or go."""
        while not happened():
            assert time.monotonic() - self.began < self.bound, f"no {what} within {self.bound:.0f} s: {self.tail()}"
            if time.monotonic() - self._watched > WATCH_SECONDS:
                self.watch()
            time.sleep(pause)

    def watch(self) -> None:
        now = markers(self.run)
        changed = {name for name, made in self.seen.items() if now.get(name) != made}
        assert not changed, f"written twice or lost: {changed}"
        self.seen, self._watched = now, time.monotonic()

    def tail(self) -> str:
        return self.log.read_text(errors="replace")[-TAIL:] if self.log.exists() else ""

    def told(self) -> str:
        """The log, which must show nothing that is meant for programmers."""
        told = self.log.read_text()
        for word in ("Traceback", "StackTrace", "(raylet)"):
            assert word not in told, told[-TAIL:]
        return told
