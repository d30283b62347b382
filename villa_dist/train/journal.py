"""What a training job leaves for people to follow while it runs: metrics.jsonl and train.log, both by rank 0.

Ranks may run on another machine; the driver reads these files from the job's folder instead of their stderr.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from villa_dist.names import MESSAGES
from villa_dist.observe import LOG

TAIL = 16_384  # bytes, more than a line of metrics has


class MetricsFile:
    """metrics.jsonl. Lines past the step that training resumes from are dropped first, so each step stands once."""

    def __init__(self, path: Path, start: int) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        kept = [line for line in read_metrics(path) if line["step"] <= start]
        temporary = path.with_name(path.name + ".tmp")
        temporary.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
        os.replace(temporary, path)

    def write(self, **values: float) -> None:
        with open(self.path, "a", encoding="utf-8") as f:
            f.write(json.dumps(values) + "\n")


def read_metrics(path: Path) -> list[dict[str, float]]:
    return parse_metrics(path.read_bytes()) if path.is_file() else []


def parse_metrics(data: bytes) -> list[dict[str, float]]:
    """Whole lines of a metrics file; a line cut by a crash is left out."""
    lines = []
    for text in data.decode("utf-8", "replace").splitlines():
        try:
            value = json.loads(text)
        except ValueError:
            continue
        if isinstance(value, dict) and isinstance(value.get("step"), int | float):
            lines.append(value)
    return lines


def last_metrics(path: Path) -> dict[str, float] | None:
    """The last whole line, without reading the others."""
    try:
        with open(path, "rb") as f:
            f.seek(max(f.seek(0, os.SEEK_END) - TAIL, 0))
            lines = parse_metrics(f.read())
    except FileNotFoundError:
        return None
    return lines[-1] if lines else None


@contextmanager
def messages_to(folder: Path) -> Iterator[None]:
    """Append this process's log to `train.log` while the block runs."""
    folder.mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(folder / MESSAGES, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(message)s"))
    LOG.addHandler(handler)
    LOG.setLevel(logging.INFO)
    LOG.propagate = False
    try:
        yield
    finally:
        LOG.removeHandler(handler)
        handler.close()


class MessageReader:
    """The lines that were added to a job's train.log since this was made."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / MESSAGES
        self.place = self.path.stat().st_size if self.path.is_file() else 0

    def new(self) -> list[str]:
        if not self.path.is_file():
            return []
        with open(self.path, "rb") as f:
            f.seek(self.place)
            data = f.read()
        whole = data[: data.rfind(b"\n") + 1]
        self.place += len(whole)
        return whole.decode("utf-8", "replace").splitlines()
