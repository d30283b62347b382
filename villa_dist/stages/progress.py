"""Progress of a stage over shards, told from the markers as they come in."""

from __future__ import annotations

import json
import time
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType

from shards import marked
from shards.commit import Marker, StageFolder
from shards.errors import VillaError
from villa_dist.observe import Progress

RETRIED = "retried.json"  # in the stage's folder: reason -> shards that went back to the queue
KEEP_EVERY = 10_000  # markers, or a quarter of all: a run that was cut off has the others to read again
COUNTED = ("regions", "pairs")
READERS = 8  # markers of an object store read at a time; each takes the driver a request's latency


class StageProgress:
    """`done` and `again` are what a runner calls."""

    def __init__(self, name: str, output: StageFolder, total: int, done: int) -> None:
        self.output = output
        self.progress = Progress(name, total, "shards", done)
        self.images = 0
        self.counts: dict[str, float] = {}
        self.refused: dict[str, int] = {}
        self.retried = retried(output)
        self.retries = 0  # of this job
        self._kept, self._unkept = 0, 0  # markers in the cache beside them, and since
        self._start = time.monotonic()
        self._readers: ThreadPoolExecutor | None = None
        self._reading: deque[Future[Marker]] = deque()

    def __enter__(self) -> StageProgress:
        self.progress.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            while error is None and self._reading:
                self._told(self._reading.popleft().result())
        finally:
            if self._readers is not None:
                self._readers.shutdown(wait=False, cancel_futures=True)
            self.progress.__exit__(kind, error, trace)

    def done(self, shard: str) -> None:
        """On an object store the marker is told a little later, so that the runner does not wait for it. Raises: ShardError
        when it, or one of those before, is not as committed."""
        if self.output.store.local:
            self._told(self.output.marker(shard))
            return
        self._readers = self._readers or ThreadPoolExecutor(READERS, thread_name_prefix="villa-markers")
        self._reading.append(self._readers.submit(self.output.marker, shard))
        while self._reading and (self._reading[0].done() or len(self._reading) > READERS):
            self._told(self._reading.popleft().result())

    def _told(self, marker: Marker) -> None:
        self.add(marker)
        self._unkept += 1
        if self._unkept >= max(KEEP_EVERY, self._kept // 4) and self.output.store.local:
            self._kept, self._unkept = len(marked.rows(self.output)), 0
        self.progress.advance(note=self.note())

    def again(self, shard: str, reason: str) -> None:
        """Kept beside the markers, where `villa status` finds it."""
        self.retries += 1
        self.retried[reason] = self.retried.get(reason, 0) + 1
        self.output.store.put(RETRIED, json.dumps(self.retried, sort_keys=True).encode())
        self.progress.advance(0, note=self.note())

    def add(self, marker: Marker) -> None:
        self.images += marker.samples
        for name in COUNTED:
            if name in marker.counts:
                self.counts[name] = self.counts.get(name, 0) + marker.counts[name]
        for reason, count in marker.refused.items():
            self.refused[reason] = self.refused.get(reason, 0) + count

    def note(self) -> str:
        """`512.0 images/s, 9,021.4 regions/s, retried 1, quarantined 3 (no_text 3)`."""
        seconds = max(time.monotonic() - self._start, 1e-9)
        said = [f"{self.images / seconds:,.1f} images/s"]
        said += [f"{count / seconds:,.1f} {name}/s" for name, count in self.counts.items()]
        if self.retries:
            said.append(f"retried {self.retries}")
        if self.refused:
            reasons = ", ".join(f"{reason} {count}" for reason, count in sorted(self.refused.items()))
            said.append(f"quarantined {sum(self.refused.values())} ({reasons})")
        return ", ".join(said)


def retried(output: StageFolder) -> dict[str, int]:
    """Shards that went back to the queue since the stage was begun, by reason; nothing where the file is damaged."""
    try:
        found = json.loads(output.store.find(RETRIED) or b"{}")
        return {str(reason): int(count) for reason, count in found.items()}
    except (VillaError, ValueError, TypeError, AttributeError):
        return {}
