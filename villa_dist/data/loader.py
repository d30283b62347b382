"""A rank's batches in the global order, prepared by threads ahead of the step that needs them.

State is one number, the step: batch `step` holds positions [step * B, (step + 1) * B) of the endless sample stream and
rank r of W takes the r-th of its W equal parts.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, fields, replace
from functools import cached_property, partial
from itertools import islice

import numpy as np
import torch
from torch import Tensor

from shards.errors import VillaError
from shards.prefetch import in_order
from villa_dist.data.augment import Augment, augmented
from villa_dist.data.sampler import RegionSampling
from villa_dist.data.samples import Row, Samples
from villa_dist.data.transforms import TURNS, shift, stack, turned

AHEAD = 3
DRAW, CHANGE = 1, 2  # what a random number is for
DRAWN = 1 << 40  # beyond any epoch


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
    weight: Tensor | None = None  # N: how much each image counts, where some are drawn more often; None: all the same
    others: tuple[PairBatch, ...] = ()  # the same images by the other `Recipe.changes`

    def to(self, device: torch.device) -> PairBatch:
        return self if device.type == "cpu" else self._each(lambda t: t.to(device, non_blocking=True))

    def pinned(self) -> PairBatch:
        """In memory from which a GPU copies by itself, while the step before goes on."""
        return self._each(Tensor.pin_memory)

    def _each(self, change: Callable[[Tensor], Tensor]) -> PairBatch:
        tensors = {f.name: getattr(self, f.name) for f in fields(self)}
        changed: dict[str, object] = {k: change(v) for k, v in tensors.items() if isinstance(v, Tensor)}
        changed["others"] = tuple(other._each(change) for other in self.others)
        return replace(self, **changed)  # type: ignore[arg-type]


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


@dataclass(frozen=True)
class Draws:
    """Samples that take every second place of the global batch, each drawn by its chance.

    place: (shard, row) of K samples, ascending. chance: K, summing to 1. images: how many the data set has.
    """

    place: np.ndarray
    chance: np.ndarray
    images: int

    @cached_property
    def _until(self) -> np.ndarray:
        return np.cumsum(self.chance)

    @cached_property
    def _keys(self) -> np.ndarray:
        return (self.place[:, 0].astype(np.int64) << 32) + self.place[:, 1]

    def at(self, seed: int, position: int) -> tuple[int, int] | None:
        """What stands at a position of the endless sample stream; None: what the global order says."""
        if position % 2 == 0:
            return None
        where = np.searchsorted(self._until, np.random.default_rng([seed, DRAW, position]).random(), side="right")
        shard, row = self.place[min(int(where), len(self.place) - 1)].tolist()
        return shard, row

    def weight(self, shard: int, row: int) -> float:
        """What makes weighted means over both halves of a batch those over the data set: one over how much more often than
        once in `images` the image comes, at most 2."""
        key = (shard << 32) + row
        where = int(np.searchsorted(self._keys, key))
        known = where < len(self._keys) and int(self._keys[where]) == key
        return 2.0 / (1.0 + (self.images * float(self.chance[where]) if known else 0.0))


@dataclass(frozen=True)
class Changes:
    """What is done to an image: turned and mirrored, its colour channels exchanged."""

    turn: bool = False
    recolour: bool = False


@dataclass(frozen=True)
class Recipe:
    """How a job's images and regions are changed and chosen, a pure function of seed and place.

    workers: threads that read and decode, 0 for the training thread itself; they change no batch.
    """

    shift_pixels: int = 0
    changes: tuple[Changes, ...] = (Changes(),)  # each makes a batch of its own
    draws: Draws | None = None
    augment: Augment | None = None
    regions: RegionSampling | None = None
    workers: int = 1


def changed(row: Row, changes: Changes, shift_pixels: int, identity: tuple[int, ...]) -> Row:
    """The row with its image changed as `identity` says: seed, epoch, shard, row, number of the change."""
    if row.pixels is None:
        return row
    pixels, boxes = shift(row.pixels, shift_pixels, identity[:4]), row.boxes
    if changes == Changes():
        return replace(row, pixels=pixels)
    random = np.random.default_rng([*identity, CHANGE])
    if changes.recolour:
        pixels = pixels[..., random.permutation(3)]
    if changes.turn:
        pixels, boxes = turned(pixels, boxes, int(random.integers(TURNS)))
    return replace(row, pixels=pixels, boxes=boxes)


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
        recipe: Recipe,
        start: int,
        stop: int,
    ) -> None:
        if batch_images % world:
            raise ValueError(f"a global batch of {batch_images} images is not divisible by {world} ranks")
        self.samples, self.seed, self.recipe = samples, seed, recipe
        self.order = samples.order(seed, window)
        self.batch_images, self.part, self.rank = batch_images, batch_images // world, rank
        self.start, self.stop = start, stop
        self.waited = 0.0
        self.pin = torch.cuda.is_available()

    def places(self, step: int, rank: int | None = None) -> list[tuple[int, int, int]]:
        """(epoch, shard, row) of each sample of a rank's part of a step; the rank is this one where none is given."""
        first = step * self.batch_images + (self.rank if rank is None else rank) * self.part
        found = []
        for position, (epoch, shard, row) in enumerate(self.order.locate(first, first + self.part).tolist(), first):
            chosen = self.recipe.draws.at(self.seed, position) if self.recipe.draws else None
            # the same image is drawn several times an epoch, each time changed otherwise
            found.append((position + DRAWN, *chosen) if chosen else (epoch, shard, row))
        return found

    def keys(self, step: int, rank: int | None = None) -> list[tuple[int, str, int, str]]:
        """The same as (epoch, shard's name, row, key), to name a step's samples. An epoch from DRAWN on is of a draw."""
        names = self.samples.manifest.shards
        return [
            (epoch, names[shard], row, self.samples.key(shard, row)) for epoch, shard, row in self.places(step, rank)
        ]

    def batch(self, step: int) -> PairBatch:
        places = self.places(step)
        return self._joined([self.made(place) for place in places], places)

    def made(self, place: tuple[int, int, int]) -> tuple[Row, ...]:
        """The sample at (epoch, shard, row), once by each of the recipe's changes. Safe in threads.

        Raises: VillaError naming the shard; any other error gets a note with shard and key.
        """
        recipe, identity = self.recipe, (self.seed, *place)
        try:
            row = self.samples.row(*place[1:])
            if recipe.augment:
                row = augmented(row, recipe.augment, identity)
            if recipe.regions:
                row = recipe.regions.of(row, identity)
            return tuple(changed(row, c, recipe.shift_pixels, (*identity, k)) for k, c in enumerate(recipe.changes))
        except VillaError:
            raise
        except Exception as error:
            if hasattr(error, "add_note"):  # from Python 3.11 on
                error.add_note(f"while sample {self._named(place)} was loaded")
            raise

    def _named(self, place: tuple[int, int, int]) -> str:
        _, shard, row = place
        name = self.samples.manifest.shards[shard]
        try:
            return f"{self.samples.key(shard, row)!r} of shard {name}"
        except Exception:  # noqa: BLE001  what is wrong is told already
            return f"{row} of shard {name}"

    def _joined(self, rows: list[tuple[Row, ...]], places: list[tuple[int, int, int]]) -> PairBatch:
        draws, mentions = self.recipe.draws, self.samples.stage == "regions"
        weight = torch.tensor([draws.weight(*place[1:]) for place in places]) if draws else None
        made = [
            replace(collate([row[k] for row in rows], mentions), weight=weight) for k in range(len(self.recipe.changes))
        ]
        batch = replace(made[0], others=tuple(made[1:]))
        return batch.pinned() if self.pin else batch

    def __iter__(self) -> Iterator[tuple[int, PairBatch]]:
        return self._ahead() if self.recipe.workers else self._here()

    def _here(self) -> Iterator[tuple[int, PairBatch]]:
        for step in range(self.start, self.stop):
            asked = time.perf_counter()
            batch = self.batch(step)
            self.waited += time.perf_counter() - asked
            yield step, batch

    def _decoded(self) -> Generator[tuple[int, PairBatch], None, None]:
        """Every step's batch, its rows made by `workers` threads, which begin on the next step's while a batch is joined.
        At most a batch's rows, or two a thread where that is more, are made or waiting at once."""
        workers, steps = self.recipe.workers, range(self.start, self.stop)
        if workers == 1:
            yield from ((step, self.batch(step)) for step in steps)
            return
        places = (place for step in steps for place in self.places(step))
        rows = in_order((partial(self.made, place) for place in places), max(self.part, 2 * workers), workers)
        try:
            for step in steps:
                yield step, self._joined(list(islice(rows, self.part)), self.places(step))
        finally:
            rows.close()

    def _ahead(self) -> Iterator[tuple[int, PairBatch]]:
        ready: queue.Queue[tuple[int, PairBatch] | BaseException | None] = queue.Queue(AHEAD)
        stopped = threading.Event()

        def put(item: tuple[int, PairBatch] | BaseException | None) -> None:
            while not stopped.is_set():
                try:
                    return ready.put(item, timeout=0.2)
                except queue.Full:
                    continue

        def produce() -> None:
            made = self._decoded()
            try:
                for item in made:
                    put(item)
                    if stopped.is_set():
                        return
                put(None)
            except BaseException as error:  # noqa: BLE001  handed to the consumer, which raises it
                put(error)
            finally:
                made.close()

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
