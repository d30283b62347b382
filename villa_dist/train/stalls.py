"""Which rank holds the others up: a pure function of what each has said of itself, and when.

Ranks train in step, so all stand still when one does. The one to name says nothing (its process is stopped, or its node
is away), or is behind, or is not waiting where all others wait for it.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from pathlib import Path

from villa_dist.observe import LOG

NAME_SECONDS = 30.0
ABORT = "abort"
TIMED = ("data", "step")  # phases that end by themselves; a save or a start may take long


@dataclass(frozen=True)
class Beat:
    """What a rank says: of which step, in which phase (start, data, step, save, end), whether it waits for others."""

    rank: int
    host: str
    pid: int
    count: int
    step: int
    phase: str
    waits: bool
    place: str


@dataclass(frozen=True)
class Stall:
    rank: int
    seconds: float
    text: str


@dataclass
class Stalls:
    """stall_seconds: after which the group is ended by a file that its ranks obey; None: never. `only`: ranks looked at."""

    stall_seconds: float | None
    only: frozenset[int] | None = None
    _beats: dict[int, Beat] = field(default_factory=dict)
    _heard: dict[int, float] = field(default_factory=dict)
    _moved: dict[int, float] = field(default_factory=dict)
    _named: set[tuple[int, int]] = field(default_factory=set)

    def look(self, folder: Path) -> Stall | None:
        """Read a job's `ranks` folder, name a new stall in the log, and end the group when its time is up. Returns what
        was found."""
        now = time.monotonic()
        self.see(read(folder), now)
        found = self.found(now)
        if found is None:
            return None
        key = (found.rank, self._beats[found.rank].step)
        if key not in self._named:
            self._named.add(key)
            LOG.warning("%s", found.text)
        if self.stall_seconds is not None and found.seconds > self.stall_seconds and not (folder / ABORT).exists():
            LOG.warning("%s: its workers are ended, to be started again from the newest checkpoint", found.text)
            try:
                (folder / ABORT).write_text(found.text, encoding="utf-8")
            except OSError as error:
                LOG.warning("they cannot be told: %s", error)
        return found

    def see(self, beats: dict[int, Beat], now: float) -> None:
        for rank in set(self._beats) - set(beats):  # ended, or its group is being started again
            for known in (self._beats, self._heard, self._moved):
                known.pop(rank, None)  # type: ignore[attr-defined]
        for rank, beat in beats.items():
            before = self._beats.get(rank)
            if before is None or (beat.pid, beat.count) != (before.pid, before.count):
                self._heard[rank] = now
            if before is None or (beat.pid, beat.step, beat.phase) != (before.pid, before.step, before.phase):
                self._moved[rank] = now
            self._beats[rank] = beat

    def found(self, now: float) -> Stall | None:
        """The rank that has held up the others for longest; None while all is well."""
        patience = NAME_SECONDS if self.stall_seconds is None else min(NAME_SECONDS, self.stall_seconds / 2)
        stalls = [s for s in (self._stall(b, now, patience) for b in self._beats.values()) if s]
        if self.only is not None:
            stalls = [s for s in stalls if s.rank in self.only]
        if stalls:
            return max(stalls, key=lambda s: s.seconds)
        return self._all_still(now)

    def _stall(self, beat: Beat, now: float, patience: float) -> Stall | None:
        silent, still = now - self._heard[beat.rank], now - self._moved[beat.rank]
        who = f"rank {beat.rank} on {beat.host} (pid {beat.pid})"
        if silent > patience:
            what = f"{who} has not finished step {beat.step} and has not been heard of for {silent:.0f} s"
            return Stall(beat.rank, silent, f"{what}: its process is stopped or dead, or its node is away")
        others = [b for b in self._beats.values() if b.rank != beat.rank and now - self._heard[b.rank] <= patience]
        if (
            len(others) + 1 < len(self._beats)
            or not others
            or beat.waits
            or beat.phase not in TIMED
            or still <= patience
        ):
            return None
        if not all(b.waits or b.step > beat.step for b in others):
            return None
        ahead = max(b.step for b in others)
        where = f"others are at step {ahead}" if ahead > beat.step else "the others wait for it"
        place = f", at {beat.place}" if beat.place else ""
        return Stall(beat.rank, still, f"{who} has not finished step {beat.step} for {still:.0f} s ({where}){place}")

    def _all_still(self, now: float) -> Stall | None:
        """Nobody stands out, and nobody moves."""
        if self.stall_seconds is None or not self._beats or self.only is not None:
            return None
        seconds = min(now - moved for moved in self._moved.values())
        if seconds <= self.stall_seconds or any(b.phase not in TIMED for b in self._beats.values()):
            return None
        first = min(self._beats.values(), key=lambda b: (b.step, b.rank))
        places = ", ".join(sorted({b.place for b in self._beats.values() if b.place}))
        return Stall(first.rank, seconds, f"no rank has finished step {first.step} for {seconds:.0f} s (at {places})")


def read(folder: Path) -> dict[int, Beat]:
    """What the ranks of a job say of themselves; a file that is being written is left out."""
    found = {}
    for path in folder.glob("[0-9]*"):
        try:
            beat = Beat(**json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            continue
        found[beat.rank] = beat
    return found
