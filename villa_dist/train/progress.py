"""Progress of a training job as its driver sees it: the metrics file of rank 0, read every second."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from villa_dist.names import METRICS
from villa_dist.observe import LOG, Progress
from villa_dist.train.journal import MessageReader, read_metrics


@contextmanager
def watch(folder: str, job: str, steps: int) -> Iterator[None]:
    """Show steps, rate, loss, ETA and what rank 0 has to say while the block runs."""
    path, stop = Path(folder) / METRICS, threading.Event()
    said = MessageReader(Path(folder))
    known = read_metrics(path)
    with Progress(f"train {job}", steps, "steps", int(known[-1]["step"]) if known else 0) as progress:

        def follow() -> None:
            while not stop.wait(1.0):
                show()

        def show() -> None:
            for line in said.new():
                LOG.info("%s", line)
            lines = read_metrics(path)
            if lines:
                last = lines[-1]
                progress.update(int(last["step"]), f"loss {last['loss']:.3f}, {last['images_per_second']:.0f} images/s")

        thread = threading.Thread(target=follow, name="villa-progress", daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join(timeout=5.0)
            show()
