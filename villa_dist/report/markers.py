"""What the commit markers of a run say, each read once for all sections of the report."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from shards.commit import Marker, StageFolder
from shards.objects import PARALLEL
from shards.prefetch import in_order

MOST = 20_000  # of a stage; of base every one is read, since what was refused is counted, not estimated
MOST_EXAMPLES = 20


@dataclass(frozen=True)
class Folder:
    """A stage of a split. shards: committed ones; read: of how many the markers were read, evenly spread.

    Sums are of all shards: where not all were read they are scaled. warnings and refusing, the markers of shards that
    refused samples, are as many as examples need. of_shard: the counts of each shard that was read, of `pairs` alone.
    """

    shards: int
    read: int
    samples: int
    bytes: int  # of tars
    came_in: int
    counts: Mapping[str, float]
    seconds: Mapping[str, float]
    refused: Mapping[str, int]
    warnings: tuple[str, ...]
    warned: int
    refusing: tuple[Marker, ...]
    of_shard: Mapping[str, Mapping[str, float]]


class Markers:
    """Folders of a run, read when they are first asked for."""

    def __init__(self, run: str, most: int = MOST) -> None:
        self.run, self.most = run, most
        self._read: dict[tuple[str, str], Folder] = {}

    def of(self, split: str, folder: str) -> Folder:
        """Raises: ShardError for a damaged marker."""
        if (split, folder) not in self._read:
            stage = StageFolder(f"{self.run}/{split}", folder)
            done = stage.shards_done()
            step = 1 if folder == "base" else max(1, -(-len(done) // self.most))
            self._read[split, folder] = _together(stage, done, done[::step])
        return self._read[split, folder]


def _together(stage: StageFolder, done: Sequence[str], chosen: Sequence[str]) -> Folder:
    samples = size = came_in = warned = 0
    counts: dict[str, float] = {}
    seconds: dict[str, float] = {}
    refused: dict[str, float] = {}
    warnings: list[str] = []
    refusing: list[Marker] = []
    of_shard: dict[str, Mapping[str, float]] = {}
    for marker in _each(stage, chosen):
        samples, came_in = samples + marker.samples, came_in + marker.came_in
        size += sum(o.bytes for o in marker.outputs if o.file.endswith(".tar"))
        warnings += marker.warnings[: MOST_EXAMPLES - len(warnings)]
        warned += len(marker.warnings)
        if any(refused.get(reason, 0) < MOST_EXAMPLES for reason in marker.refused):
            refusing.append(marker)
        for total, more in ((counts, marker.counts), (seconds, marker.seconds), (refused, marker.refused)):
            _add(total, more)
        if stage.stage == "pairs":
            of_shard[marker.shard] = marker.counts
    scale = len(done) / max(1, len(chosen))
    return Folder(
        len(done),
        len(chosen),
        round(samples * scale),
        round(size * scale),
        round(came_in * scale),
        {name: value * scale for name, value in counts.items()},
        {name: value * scale for name, value in seconds.items()},
        {reason: round(n * scale) for reason, n in refused.items()},
        tuple(warnings),
        warned,
        tuple(refusing),
        of_shard,
    )


def _each(stage: StageFolder, shards: Sequence[str]) -> Iterator[Marker]:
    """One at a time: a run may have more than fit in memory."""
    tasks: Iterator[Callable[[], Marker]] = (partial(stage.marker, shard) for shard in shards)
    yield from (task() for task in tasks) if stage.store.local else in_order(tasks, PARALLEL)


def _add(total: dict[str, float], more: Mapping[str, float]) -> None:
    for name, value in more.items():
        total[name] = total.get(name, 0.0) + value
