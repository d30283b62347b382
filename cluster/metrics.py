"""What workers have done, as counters that Ray exports for Prometheus (`docs/operate.md`)."""

from __future__ import annotations

from functools import cache
from typing import Any

from shards.commit import Marker

COUNTED = ("regions", "pairs", "mentions", "decoded")


@cache
def _counter(name: str, description: str, tags: tuple[str, ...]) -> Any:
    from ray.util.metrics import Counter

    return Counter(name, description=description, tag_keys=tags)


def count(marker: Marker) -> None:
    """Add one committed shard to the counters of this process."""
    stage = {"stage": marker.stage}
    add("villa_shards_total", "shards committed", 1, stage)
    add("villa_images_total", "samples of committed shards", marker.samples, stage)
    for name in COUNTED:
        add(f"villa_{name}_total", f"{name} of committed shards", marker.counts.get(name, 0), stage)
    for reason, number in marker.refused.items():
        add("villa_quarantined_total", "samples refused", number, {**stage, "reason": reason})
    for part, seconds in marker.seconds.items():
        add("villa_seconds_total", "seconds spent in a part of the work", seconds, {**stage, "part": part})


def count_retry(reason: str) -> None:
    """reason: the kind of error, not its text."""
    add("villa_retries_total", "shards that went back to the queue", 1, {"reason": reason})


def add(name: str, description: str, number: float, tags: dict[str, str]) -> None:
    if number > 0:
        _counter(name, description, tuple(sorted(tags))).inc(number, tags=tags)
