"""What the seconds in the markers say: how long workers took, and what held them up. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

BEHIND = ("read", "decode")  # done by threads of their own in stages that have `wait`
RESOURCES = {
    "read": "storage, reading",
    "decode": "CPU, decoding images",
    "propose": "proposals",
    "extract": "CPU, reading texts",
    "match": "CPU, reading texts",
    "embed": "device, embedding",
    "map": "device, mapping",
    "detect": "CPU, scoring detections",
    "write": "storage, writing",
    "generate": "CPU, drawing images",
}


def summed(parts: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """By name, in order of names."""
    total: dict[str, float] = {}
    for part in parts:
        for name, value in part.items():
            total[name] = total.get(name, 0) + value
    return dict(sorted(total.items()))


def worker_seconds(seconds: Mapping[str, float]) -> float:
    """Seconds that workers were at it; what threads did meanwhile is in their waiting."""
    return sum(s for part, s in seconds.items() if not ("wait" in seconds and part in BEHIND))


def binding(seconds: Mapping[str, float]) -> tuple[str, float] | None:
    """(the resource that took most of the workers' time, its share of it); None where nothing was timed.

    Waiting is put down to what was waited for: reading or decoding, whichever took the threads longer.
    """
    total = worker_seconds(seconds)
    if total <= 0:
        return None
    parts = {part: s for part, s in seconds.items() if not ("wait" in seconds and part in BEHIND)}
    part = max(sorted(parts), key=lambda name: parts[name])
    share = parts[part] / total
    if part == "wait":
        part = max(BEHIND, key=lambda name: seconds.get(name, 0.0))
    return RESOURCES.get(part, part), share
