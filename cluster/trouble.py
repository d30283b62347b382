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

LONGEST = 200  # characters of what a library says
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
    """kind: a name for counters, without details. blameless: the place was lost, and the shard has no part in it."""

    kind: str
    reason: str
    remedy: str
    blameless: bool = False


def trouble(error: Exception) -> Trouble:
    """Of what ended a worker's call: an error of Ray's, of the worker's code, or one of the above."""
    if isinstance(error, Overdue):
        return Trouble("Deadline", str(error), LATE)
    if isinstance(error, RayTaskError):
        cause = error.cause
        kind, said = type(cause).__name__, _line(str(cause))
        short = isinstance(cause, MemoryError) or any(text in said.lower() for text in REFUSED_MEMORY)
        return Trouble(kind, f"{kind}: {said}" if said else kind, MEMORY if short else OURS)
    kind, text = type(error).__name__, str(error)
    if isinstance(error, OutOfMemoryError):
        return Trouble(kind, _line(text), MEMORY)
    if isinstance(error, ActorUnavailableError):
        detail = text.partition("temporarily unavailable: ")[2] or text
        return Trouble(kind, f"its worker cannot be reached ({_line(detail)})", NODES, blameless=True)
    if isinstance(error, LostNode | NodeDiedError):
        return Trouble(kind, _line(text), NODES, blameless=True)
    if isinstance(error, ActorDiedError | WorkerCrashedError):
        detail = text.partition("Worker exit detail: ")[2] or text
        return Trouble(kind, f"its worker died ({_line(detail)})", KILLED)
    return Trouble(kind, f"{kind}: {_line(text)}", OURS)


def lost_ranks(error: Exception) -> str:
    """What Ray Train says of a group that failed, a line a rank: its own message is pages of ids and logs."""
    failures = getattr(error, "worker_failures", None)
    if not isinstance(failures, dict) or not failures:
        return str(error)
    causes = {rank: getattr(found, "health_check_failure", None) or found for rank, found in failures.items()}
    return "; ".join(f"rank {rank}: {trouble(cause).reason}" for rank, cause in sorted(causes.items()))


def _line(text: str) -> str:
    whole = " ".join(text.split())
    return whole if len(whole) <= LONGEST else whole[: LONGEST - 1] + "…"
