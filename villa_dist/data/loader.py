"""A rank's batches in the global order, prepared by a thread ahead of the step that needs them.

State is one number, the step: batch `step` holds positions [step * B, (step + 1) * B) of the endless sample stream and
rank r of W takes the r-th of its W equal parts.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from torch import Tensor

from shards.order import GlobalOrder
from villa_dist.data.samples import Row, Samples
from villa_dist.data.transforms import shift, stack

AHEAD = 3


@dataclass(frozen=True)
class PairBatch:
    """A rank's part of a global batch. R regions, P pairs (or mentions), N images.

    region and attribute: pairs for a pairs sidecar; for a regions sidecar, `attribute` lists the mentioned ids and
    `region` the image of each.
    """

    pixels: Tensor | None  # N 3 H W uint8
    texts: list[str]  # N, whole texts; empty where the sidecar's attributes are used
    boxes: Tensor  # R 4
    image_of: Tensor  # R
    region: Tensor  # P
    attribute: Tensor  # P
    feature: Tensor | None  # R D, frozen region features
    images: int
    sizes: Tensor | None = None  # N 2: height and width of each image in the padded pixels; None: all fill them

    def to(self, device: torch.device) -> PairBatch:
        if device.type == "cpu":
            return self
        tensors = {f.name: getattr(self, f.name) for f in fields(self)}
        moved = {k: v.to(device, non_blocking=True) for k, v in tensors.items() if isinstance(v, Tensor)}
        return replace(self, **moved)  # type: ignore[arg-type]


def collate(rows: list[Row], mentions: bool) -> PairBatch:
    """Join rows; region indices become those of the batch."""
    counts = np.array([len(r.boxes) for r in rows])
    starts = np.concatenate([[0], np.cumsum(counts)])
    per_row = [
        np.full(len(r.attribute), n) if mentions else r.region.astype(np.int64) + starts[n] for n, r in enumerate(rows)
    ]
    features = [r.embedding for r in rows if r.embedding is not None]
    images = [r.pixels for r in rows if r.pixels is not None]
    return PairBatch(
        torch.from_numpy(stack(images)) if images else None,
        [r.text for r in rows],
        torch.from_numpy(np.concatenate([r.boxes for r in rows]).astype(np.float32)),
        torch.from_numpy(np.repeat(np.arange(len(rows)), counts)),
        torch.from_numpy(np.concatenate(per_row).astype(np.int64)),
        torch.from_numpy(np.concatenate([r.attribute for r in rows]).astype(np.int64)),
        torch.from_numpy(np.concatenate(features).astype(np.float32)) if features else None,
        len(rows),
        torch.tensor([i.shape[:2] for i in images]) if images else None,
    )


class Batches:
    """Batches of one rank from `start` to `stop`. `waited` is the seconds the consumer spent waiting."""

    def __init__(
        self,
        samples: Samples,
        *,
        seed: int,
        window: int,
        batch_images: int,
        rank: int,
        world: int,
        shift_pixels: int,
        start: int,
        stop: int,
    ) -> None:
        if batch_images % world:
            raise ValueError(f"a global batch of {batch_images} images is not divisible by {world} ranks")
        self.samples, self.seed, self.shift_pixels = samples, seed, shift_pixels
        self.order = GlobalOrder(samples.manifest.samples, seed, window)
        self.batch_images, self.part, self.rank = batch_images, batch_images // world, rank
        self.start, self.stop = start, stop
        self.waited = 0.0

    def batch(self, step: int) -> PairBatch:
        first = step * self.batch_images + self.rank * self.part
        rows = []
        for epoch, shard, row in self.order.locate(first, first + self.part).tolist():
            found = self.samples.row(shard, row)
            if found.pixels is not None:
                moved = shift(found.pixels, self.shift_pixels, (self.seed, epoch, shard, row))
                found = Row(moved, found.text, found.boxes, found.region, found.attribute, found.embedding)
            rows.append(found)
        return collate(rows, mentions=self.samples.stage == "regions")

    def __iter__(self) -> Iterator[tuple[int, PairBatch]]:
        ready: queue.Queue[tuple[int, PairBatch] | BaseException | None] = queue.Queue(AHEAD)
        stopped = threading.Event()

        def put(item: tuple[int, PairBatch] | BaseException | None) -> None:
            while not stopped.is_set():
                try:
                    return ready.put(item, timeout=0.2)
                except queue.Full:
                    continue

        def produce() -> None:
            try:
                for step in range(self.start, self.stop):
                    if stopped.is_set():
                        return
                    put((step, self.batch(step)))
                put(None)
            except BaseException as error:  # noqa: BLE001  handed to the consumer, which raises it
                put(error)

        thread = threading.Thread(target=produce, name="villa-loader", daemon=True)
        thread.start()
        try:
            while True:
                asked = time.perf_counter()
                item = ready.get()
                self.waited += time.perf_counter() - asked
                if item is None:
                    return
                if isinstance(item, BaseException):
                    raise item
                yield item
        finally:
            stopped.set()
            thread.join(timeout=5.0)
