"""From what a few shards took to what a data set will take. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from villa_dist.observe import duration
from villa_dist.profile import binding, worker_seconds


@dataclass(frozen=True)
class Measured:
    """One stage over the measured images. seconds: of its parts, all workers together; start: until the first worker began
    on a shard; on_device: whether it takes GPUs where there are some."""

    stage: str
    images: int
    seconds: Mapping[str, float]
    start: float
    bytes_read: int
    bytes_written: Mapping[str, int]  # by folder
    counts: Mapping[str, float] = field(default_factory=dict)
    on_device: bool = False


@dataclass(frozen=True)
class Load:
    """What a stage has to do in all. kept: images whose embeddings are kept."""

    images: int
    shards: int
    kept: int = 0


@dataclass(frozen=True)
class Means:
    """What a job has. gpus: of one worker. price: of a worker for an hour, in any currency."""

    workers: int
    gpus: float = 0.0
    price: float | None = None


def stage_estimate(measured: Measured, load: Load, means: Means) -> dict[str, Any]:
    """One stage over the whole data set. Whole shards are given out, so the last round of workers may be partly idle."""
    images = max(measured.images, 1)
    busy = worker_seconds(measured.seconds) / images * load.images
    rounds = math.ceil(load.shards / means.workers)
    seconds = measured.start + rounds * busy / max(load.shards, 1) if load.shards else 0.0
    read = measured.bytes_read / images * load.images
    written = {
        folder: round(size / images * (load.kept if folder == "embeddings" else load.images))
        for folder, size in measured.bytes_written.items()
    }
    held_up = binding(measured.seconds)
    found: dict[str, Any] = {
        "images": load.images,
        "shards": load.shards,
        "seconds": round(seconds, 1),
        "worker_hours": round(busy / 3600, 4),
        "gpu_hours": round(busy * means.gpus / 3600, 4) if measured.on_device else 0.0,
        "images_per_second": round(load.images / seconds, 2) if seconds else None,
        "bytes_read": round(read),
        "bytes_written": sum(written.values()),
        "bytes_per_second": round((read + sum(written.values())) / seconds) if seconds else None,
        "storage": written,
        "makes": {name: round(n / images * load.images) for name, n in sorted(measured.counts.items())},
        "parts": {p: round(s / images * 1000, 3) for p, s in sorted(measured.seconds.items())},  # ms an image
    }
    if held_up:
        found["binding"] = {"resource": held_up[0], "share": round(held_up[1], 3)}
    if means.price is not None:
        found["price"] = round(seconds / 3600 * means.workers * means.price, 4)
    return found


def total(stages: Mapping[str, Mapping[str, Any]], means: Means) -> dict[str, Any]:
    """All stages one after another. The binding resource is that of the stage that takes longest."""
    summed = ("seconds", "worker_hours", "gpu_hours", "bytes_read", "bytes_written")
    found: dict[str, Any] = {name: round(sum(s[name] for s in stages.values()), 4) for name in summed}
    found["storage"] = sum(sum(s["storage"].values()) for s in stages.values())
    if means.price is not None:
        found["price"] = round(sum(s["price"] for s in stages.values()), 4)
    longest = max(stages, key=lambda name: stages[name]["seconds"], default=None)
    if longest is not None and "binding" in stages[longest]:
        share = stages[longest]["seconds"] / found["seconds"] if found["seconds"] else 0.0
        found["binding"] = {"stage": longest, "share_of_time": round(share, 3), **stages[longest]["binding"]}
    return found


def lines(stages: Mapping[str, Mapping[str, Any]], whole: Mapping[str, Any], means: Means) -> Sequence[str]:
    """A table for a person."""
    head = f"{'stage':<12}{'images':>14}{'time':>12}{'images/s':>11}{'GPU-h':>9}{'read':>11}{'written':>11}  held up by"
    told = [head]
    for name, s in stages.items():
        held_up = f"{s['binding']['resource']} ({s['binding']['share']:.0%})" if "binding" in s else ""
        told.append(
            f"{name:<12}{s['images']:>14,}{duration(s['seconds']):>12}{s['images_per_second'] or 0:>11,.1f}"
            f"{s['gpu_hours']:>9,.1f}{size(s['bytes_read']):>11}{size(s['bytes_written']):>11}  {held_up}"
        )
    price = f", price {whole['price']:,.2f}" if "price" in whole else ""
    told.append(
        f"{'all':<12}{'':>14}{duration(whole['seconds']):>12}{'':>11}{whole['gpu_hours']:>9,.1f}"
        f"{size(whole['bytes_read']):>11}{size(whole['bytes_written']):>11}  by {means.workers} workers{price}"
    )
    if "binding" in whole:
        b = whole["binding"]
        told.append(f"what binds: {b['stage']} ({b['share_of_time']:.0%} of the time), by {b['resource']}")
    return told


def size(count: float) -> str:
    """`1.5 GB`."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if count < 1000:
            return f"{count:,.1f} {unit}" if unit != "B" else f"{count:,.0f} B"
        count /= 1000
    return f"{count:,.1f} PB"
