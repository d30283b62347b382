"""What was trained on, sample by sample: for tests, and for whoever doubts. Off unless VILLA_LEDGER names a folder.

Each rank appends lines to a file of its own: `begins`, `sample` and, by rank 0, `saved`. A sample counts as committed when
its step is in the weights that the job ended with: when no later attempt started before it.
"""

from __future__ import annotations

import json
import os
import secrets
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from villa_dist.data.loader import Batches
from villa_dist.distributed import rank, world_size
from villa_dist.train.agree import from_rank_0

FOLDER = "VILLA_LEDGER"


class Ledger:
    """One attempt's lines. `None` from `opened` where there is no ledger."""

    def __init__(self, path: Path, attempt: str) -> None:
        self.path, self.attempt = path, attempt
        path.parent.mkdir(parents=True, exist_ok=True)

    def write(self, lines: list[dict[str, Any]]) -> None:
        with open(self.path, "a", encoding="utf-8") as file:
            file.write("".join(json.dumps({"attempt": self.attempt, **line}) + "\n" for line in lines))

    def trained(self, batches: Batches, step: int) -> None:
        """This rank's samples of a step, counted from 0."""
        self.write(
            [
                {"kind": "sample", "step": step + 1, "rank": rank(), "epoch": epoch, "shard": shard, "key": key}
                for epoch, shard, _, key in batches.keys(step, rank())
            ]
        )

    def saved(self, step: int) -> None:
        self.write([{"kind": "saved", "step": step}])


def opened(job: str, start: int) -> Ledger | None:
    """Called by every rank when training begins at step `start`."""
    place = os.environ.get(FOLDER)
    if not place:
        return None
    attempt = from_rank_0(lambda: f"{time.time_ns():020d}-{secrets.token_hex(4)}")
    ledger = Ledger(Path(place) / f"{job}-{attempt}-{rank()}.jsonl", attempt)
    if rank() == 0:
        ledger.write([{"kind": "begins", "start": start, "world": world_size()}])
    return ledger


def committed(folder: Path, job: str) -> list[dict[str, Any]]:
    """The samples that are in the final weights of a job, in no order. Of attempts in the order of time, each holds from its
    start to where a later one has started."""
    lines = list(_lines(folder, job))
    attempts = sorted((line["attempt"], line["start"]) for line in lines if line["kind"] == "begins")
    holds: dict[str, tuple[int, float]] = {}
    limit = float("inf")
    for attempt, start in reversed(attempts):
        holds[attempt] = (start, limit)
        limit = min(limit, start)
    return [
        line
        for line in lines
        if line["kind"] == "sample" and holds[line["attempt"]][0] < line["step"] <= holds[line["attempt"]][1]
    ]


def _lines(folder: Path, job: str) -> Iterator[dict[str, Any]]:
    for path in sorted(folder.glob(f"{job}-*.jsonl")):
        for text in path.read_text(encoding="utf-8").splitlines():
            try:
                yield json.loads(text)
            except ValueError:  # cut by a kill
                continue
