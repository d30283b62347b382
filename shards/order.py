"""The global sample order: a pure function of (samples per shard, seed, epoch), in memory O(window + shards).

An epoch permutes the shards, lays their samples end to end, and permutes within windows of W consecutive
places. Position p of the endless stream belongs to epoch p // N, so a global batch is the slice
[step * B, (step + 1) * B) whatever the world size: training state is one number.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

DEFAULT_WINDOW = 65_536


class GlobalOrder:
    """Maps positions of the endless stream to (shard, row).

    samples: samples per shard, in manifest order. seed: any int from 0. window: places shuffled together.
    """

    def __init__(self, samples: Sequence[int], seed: int, window: int = DEFAULT_WINDOW) -> None:
        self.samples = np.asarray(samples, np.int64)
        self.total = int(self.samples.sum())
        if self.total <= 0:
            raise ValueError("a global order needs at least one sample")
        if window < 1:
            raise ValueError(f"window must be at least 1, got {window}")
        self.seed, self.window = seed, window
        self._epoch = lru_cache(maxsize=2)(self._make_epoch)
        self._permutation = lru_cache(maxsize=4)(self._make_permutation)

    def _make_epoch(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        shards = np.random.default_rng([self.seed, epoch, 0]).permutation(len(self.samples))
        return shards, np.concatenate([[0], np.cumsum(self.samples[shards])])

    def _make_permutation(self, epoch: int, index: int) -> np.ndarray:
        length = min(self.window, self.total - index * self.window)
        return np.random.default_rng([self.seed, epoch, 1, index]).permutation(length)

    def locate(self, start: int, stop: int) -> np.ndarray:
        """Positions [start, stop) of the stream as rows (epoch, shard, row), int64."""
        out = np.empty((stop - start, 3), np.int64)
        at = start
        while at < stop:
            epoch, place = divmod(at, self.total)
            index, offset = divmod(place, self.window)
            shards, starts = self._epoch(epoch)
            permutation = self._permutation(epoch, index)
            count = min(stop - at, len(permutation) - offset)
            places = index * self.window + permutation[offset : offset + count]
            order = np.searchsorted(starts, places, side="right") - 1
            rows = out[at - start : at - start + count]
            rows[:, 0], rows[:, 1], rows[:, 2] = epoch, shards[order], places - starts[order]
            at += count
        return out
