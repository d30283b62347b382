"""From a base shard to windows of decoded samples: one thread reads, others decode, the stage works on what is ready.

    tar -> samples -> decode threads -> window -> the stage
           `------ the next window, filled while the stage works on one ------'

Windows depend on the shard and the config alone, never on threads or timing, so neither does what is made of them. At
most two are held, and 2 x `decode_threads` images on their way into one. Each image is decoded once.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import repeat

import numpy as np
from jaxtyping import UInt8

from shards.commit import StageFolder
from shards.decode import DecodeError, decode_image, image_member, upright_size
from shards.errors import ShardError, VillaError
from shards.prefetch import in_order
from shards.reader import BaseShard
from villa_dist.config import Config
from villa_dist.observe import Timers

HELD_PIXELS = 1 << 26  # decoded in one window, 200 MB
AHEAD = 2  # images on their way, a decode thread


@dataclass(frozen=True, slots=True)
class Sample:
    """A sample of a window. pixels: None where they were not asked for; members: all but the image."""

    row: int
    key: str
    width: int
    height: int
    pixels: UInt8[np.ndarray, "H W 3"] | None
    members: dict[str, bytes]


Only = Callable[[str, Mapping[str, bytes]], bool]  # of a sample's key and members


def windows(
    base: BaseShard, config: Config, timers: Timers, *, pixels: bool, only: Only | None = None
) -> Iterator[list[Sample]]:
    """All samples in tar order, in runs of up to `regions.batch_images` and HELD_PIXELS (one image that is over stands
    alone). only: those it holds for; the others are not decoded.

    timers: `read` and `decode` of the threads, `wait` of the caller. Raises: ShardError when the shard is not as committed.
    """
    filling = _filled(base, config, timers, pixels, only)
    ready = in_order(repeat(partial(next, filling, None)), 1)
    try:
        while True:
            with timers.time("wait"):
                window = next(ready)
            if window is None:
                return
            yield window
    finally:
        ready.close()


def spans(areas: Iterable[int], most: int) -> Iterator[range]:
    """The rows of each window, from the pixels of each image; a window is told one image after its last."""
    start = end = 0
    room = HELD_PIXELS
    for area in areas:
        if end > start and (end - start == most or area > room):
            yield range(start, end)
            start, room = end, HELD_PIXELS
        end, room = end + 1, room - area
    if end > start:
        yield range(start, end)


def _filled(base: BaseShard, config: Config, timers: Timers, pixels: bool, only: Only | None) -> Iterator[list[Sample]]:
    held: deque[Sample] = deque()

    def areas() -> Iterator[int]:
        for sample in _decoded(base, config, timers, pixels, only):
            held.append(sample)
            yield sample.width * sample.height if pixels else 0

    for span in spans(areas(), config.regions.batch_images):
        yield [held.popleft() for _ in span]


def _decoded(base: BaseShard, config: Config, timers: Timers, pixels: bool, only: Only | None) -> Iterator[Sample]:
    def decode(row: int, key: str, members: dict[str, bytes]) -> Sample:
        start = time.perf_counter()
        try:
            image = image_member(members)
            found = decode_image(image, config.data.max_pixels) if pixels else None
            width, height = upright_size(image) if found is None else (found.shape[1], found.shape[0])
        except DecodeError as error:
            raise ShardError(f"shard {base.place}: sample {key!r}: {error}; redo the ingest stage") from error
        timers.add("decode", time.perf_counter() - start)
        kept = {suffix: data for suffix, data in members.items() if data is not image}
        return Sample(row, key, width, height, found, kept)

    tasks = (
        partial(decode, row, key, members)
        for row, (key, members) in enumerate(timers.each("read", base.samples()))
        if only is None or only(key, members)
    )
    threads = config.regions.decode_threads
    return (task() for task in tasks) if threads == 1 else in_order(tasks, AHEAD * threads, threads)


class ReadAhead:
    """The base shard that is probably asked for next: opened, fetched and checked by a thread meanwhile."""

    def __init__(self, folder: StageFolder) -> None:
        self.folder = folder
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="villa-read-ahead")
        self._begun: dict[str, Future[BaseShard]] = {}

    def begin(self, shard: str) -> None:
        if shard not in self._begun:
            self._begun[shard] = self._pool.submit(self._fetched, shard)

    def open(self, shard: str, timers: Timers) -> BaseShard:
        """What was begun for another shard than this or the latest is dropped.

        Raises: ShardError when the shard is not committed, missing or cut.
        """
        ahead = self._begun.pop(shard, None)
        for stale in list(self._begun)[:-1]:
            self._begun.pop(stale).cancel()
        if ahead is not None:
            try:
                with timers.time("wait"):
                    return ahead.result()
            except (VillaError, OSError):
                pass  # it is tried again, by the one who needs it
        with timers.time("read"):
            return BaseShard(self.folder, shard)

    def _fetched(self, shard: str) -> BaseShard:
        base = BaseShard(self.folder, shard)
        base.fetch()
        return base
