"""Several data sets as one, mixed by weight, in an order that is a pure function of their sizes, weights and the seed.

The k-th sample of a set of weight w is due at time (k + 1/2) / w; the stream is all samples of all sets by their time,
ties to the set named first. So of the first p positions a set has its share, give or take fewer samples than there are sets,
and which sample stands at a position is known without a look at those before. Each set goes through epochs of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from functools import cached_property
from math import lcm

import numpy as np
from jaxtyping import Int

from shards.digest import fingerprint
from shards.manifest import Manifest
from shards.order import GlobalOrder
from villa_dist.data.samples import Row, Samples


def whole_weights(weights: Sequence[float]) -> list[int]:
    """Integers in proportion to positive weights, to a millionth."""
    exact = [max(Fraction(w).limit_denominator(10**6), Fraction(1, 10**6)) for w in weights]
    scale = lcm(*(w.denominator for w in exact))
    return [int(w * scale) for w in exact]


def turns_before(weights: Sequence[int], position: int) -> list[int]:
    """How many of the first `position` places of the stream each set has."""
    total, late = sum(weights), max(0, position - len(weights))
    turns = [max(0, -((total - 2 * w * late) // (2 * total))) for w in weights]  # those due before time late / total
    for _ in range(position - sum(turns)):
        turns[_next(weights, turns)] += 1
    return turns


def _next(weights: Sequence[int], turns: Sequence[int]) -> int:
    """The set whose next sample is due first."""
    best = 0
    for i in range(1, len(weights)):
        if (2 * turns[i] + 1) * weights[best] < (2 * turns[best] + 1) * weights[i]:
            best = i
    return best


class MixedOrder:
    """The order of `shards.order.GlobalOrder` over several data sets; shards are numbered through, set after set.

    samples: of each set, samples per shard. The first set's order is what it is alone.
    """

    def __init__(self, samples: Sequence[Sequence[int]], weights: Sequence[float], seed: int, window: int) -> None:
        self.weights = whole_weights(weights)
        seeds = [seed, *(int(np.random.SeedSequence([seed, i]).generate_state(2)[0]) for i in range(1, len(samples)))]
        self.orders = [GlobalOrder(s, own, window) for s, own in zip(samples, seeds, strict=True)]
        self.first_shard = np.cumsum([0, *(len(s) for s in samples)])

    def locate(self, start: int, stop: int) -> Int[np.ndarray, "n 3"]:
        """Positions [start, stop) of the stream as rows (epoch of the set, shard, row)."""
        before = turns_before(self.weights, start)
        turns, whose = list(before), np.empty(stop - start, np.int64)
        for i in range(stop - start):
            whose[i] = _next(self.weights, turns)
            turns[whose[i]] += 1
        out = np.empty((stop - start, 3), np.int64)
        for k, order in enumerate(self.orders):
            found = order.locate(before[k], turns[k])
            found[:, 1] += self.first_shard[k]
            out[whose == k] = found
        return out


class MixedSamples(Samples):
    """Several `Samples` in one, their shards numbered through. All have the same stage and the same attributes."""

    def __init__(self, sets: Sequence[Samples], weights: Sequence[float]) -> None:
        self.sets, self.weights = tuple(sets), tuple(weights)
        first = sets[0]
        super().__init__(
            first.dataset_url, first.stage, images=first.images, max_pixels=first.max_pixels, texts=first.texts
        )

    @cached_property
    def manifest(self) -> Manifest:
        """Of all sets; a shard's name begins with its set's number, so that data sets may be moved. Its digest names all
        sets, their weights and their contents."""
        all_of = [s.manifest for s in self.sets]
        return Manifest(
            all_of[0].stage,
            tuple(f"{k}/{name}" for k, m in enumerate(all_of) for name in m.shards),
            tuple(n for m in all_of for n in m.samples),
            tuple(n for m in all_of for n in m.bytes),
            tuple(fingerprint([w, sha]) for m, w in zip(all_of, self.weights, strict=True) for sha in m.sha256),
            tuple(d for m in all_of for d in m.keys_digests),
            sum(m.came_in for m in all_of),
            sum(m.refused for m in all_of),
        )

    def order(self, seed: int, window: int) -> MixedOrder:
        return MixedOrder([s.manifest.samples for s in self.sets], self.weights, seed, window)

    @cached_property
    def _first_shard(self) -> np.ndarray:
        return np.cumsum([0, *(len(s.manifest.shards) for s in self.sets)])

    def _whose(self, index: int) -> tuple[Samples, int]:
        k = int(np.searchsorted(self._first_shard, index, side="right")) - 1
        return self.sets[k], index - int(self._first_shard[k])

    def key(self, index: int, row: int) -> str:
        samples, own = self._whose(index)
        return samples.key(own, row)

    def row(self, index: int, row: int) -> Row:
        samples, own = self._whose(index)
        return samples.row(own, row)
