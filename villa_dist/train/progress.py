"""Progress of a training job as its driver sees it: the metrics file of rank 0, read every second."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from villa_dist.names import METRICS, RANKS
from villa_dist.observe import LOG, Progress
from villa_dist.train.journal import MessageReader, last_metrics
from villa_dist.train.stalls import Stalls


@contextmanager
def watch(folder: str, job: str, steps: int, stall_minutes: float | None = None) -> Iterator[None]:
    """Show steps, rate, loss, ETA and what rank 0 has to say while the block runs; name a rank that holds the others up, and
    have its group ended after `stall_minutes`."""
    path, stop = Path(folder) / METRICS, threading.Event()
    said = MessageReader(Path(folder))
    stalls = Stalls(None if stall_minutes is None else 60 * stall_minutes)
    known = last_metrics(path)
    with Progress(f"train {job}", steps, "steps", int(known["step"]) if known else 0) as progress:

        def follow() -> None:
            while not stop.wait(1.0):
                show()
                stalls.look(Path(folder) / RANKS)

        def show() -> None:
            for line in said.new():
                LOG.info("%s", line)
            last = last_metrics(path)
            if last:
                progress.update(int(last["step"]), f"loss {last['loss']:.3f}, {last['images_per_second']:.0f} images/s")

        thread = threading.Thread(target=follow, name="villa-progress", daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join(timeout=5.0)
            show()
