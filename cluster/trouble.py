"""What went wrong with a shard: a kind for counters, a reason in a line, and what the user can do about it."""

from __future__ import annotations

from dataclasses import dataclass

from ray.exceptions import (
    ActorDiedError,
    ActorUnavailableError,
    NodeDiedError,
    OutOfMemoryError,
    RayTaskError,
    WorkerCrashedError,
)

LONGEST = 300  # characters of a reason
REFUSED_MEMORY = ("out of memory", "can't allocate memory", "cannot allocate memory", "std::bad_alloc")
MEMORY = (
    "give each worker more memory: fewer workers at a time (ray.workers), smaller windows (regions.batch_images), or "
    "smaller shards (villa shards reshard)"
)
KILLED = f"where the system ended it for want of memory, {MEMORY}"
LATE = "raise ray.shard_timeout_seconds, or cut the data into smaller shards (villa shards reshard)"
NODES = "look at the nodes (`ray status`)"
OURS = "`--set runner=local` shows where it happens"


class Overdue(Exception):
    """A shard passed its deadline."""


class LostNode(Exception):
    """The node of a worker is gone."""


@dataclass(frozen=True)
class Trouble:
    """kind: a name for counters, without details."""

    kind: str
    reason: str
    remedy: str


def trouble(error: Exception) -> Trouble:
    """Of what ended a worker's call: an error of Ray's, of the worker's code, or one of the above."""
    if isinstance(error, Overdue):
        return Trouble("Deadline", str(error), LATE)
    if isinstance(error, RayTaskError):
        cause = error.cause
        kind, said = type(cause).__name__, _line(str(cause))
        short = isinstance(cause, MemoryError) or any(text in said.lower() for text in REFUSED_MEMORY)
        return Trouble(kind, f"{kind}: {said}" if said else kind, MEMORY if short else OURS)
    kind, reason = type(error).__name__, _line(str(error))
    if isinstance(error, OutOfMemoryError):
        return Trouble(kind, reason, MEMORY)
    if isinstance(error, LostNode | NodeDiedError | ActorUnavailableError):
        return Trouble(kind, reason, NODES)
    if isinstance(error, ActorDiedError | WorkerCrashedError):
        detail = reason.partition("Worker exit detail: ")[2] or reason
        return Trouble(kind, f"its worker died ({detail})", KILLED)
    return Trouble(kind, f"{kind}: {reason}", OURS)


def _line(text: str) -> str:
    whole = " ".join(text.split())
    return whole if len(whole) <= LONGEST else whole[: LONGEST - 1] + "…"
