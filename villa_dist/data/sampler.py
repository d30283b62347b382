"""So many of an image's regions each time it comes, rare attributes more often where that is asked for. Pure.

A region's weight is f ** -balance, f being the frequency of the rarest attribute it is paired with; regions are drawn one
after another without being put back, each by its weight among those left.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from shards import manifest, sidecar
from shards.commit import StageFolder
from shards.reader import read_sidecar
from villa_dist.data.augment import only
from villa_dist.data.samples import Row

REGIONS = 5  # what a random number is for
SURVEYED = 256  # sidecars whose pairs are counted


@dataclass(frozen=True)
class RegionSampling:
    """per_image: regions that stay of an image. frequency: V, in regions or anything in proportion, all above 0."""

    per_image: int
    balance: float
    frequency: Float[np.ndarray, " V"]

    def weights(self, row: Row) -> Float[np.ndarray, " R"]:
        """Of each region, at most 1. A region without a pair counts as having the most frequent attribute."""
        frequency = np.full(len(row.boxes), self.frequency.max(initial=0.0) or 1.0)
        np.minimum.at(frequency, row.region.astype(np.int64), self.frequency[row.attribute])
        relative = frequency / frequency.min(initial=np.inf)
        return np.asarray(relative**-self.balance)

    def of(self, row: Row, identity: Sequence[int]) -> Row:
        """The row with its regions drawn, in their order; identity: seed, epoch, shard, row."""
        count = len(row.boxes)
        if count <= self.per_image:
            return row
        waits = np.random.default_rng([*identity, REGIONS]).standard_exponential(count) / self.weights(row)
        keep = np.zeros(count, bool)
        keep[np.argsort(waits, kind="stable")[: self.per_image]] = True
        return only(row, keep)


@dataclass(frozen=True)
class Counted:
    """Pairs of each attribute, in so many images. share: of the stream that comes from where they were counted."""

    pairs: Int[np.ndarray, " V"]
    images: int
    share: float = 1.0


def frequencies(parts: Sequence[Counted]) -> Float[np.ndarray, " V"]:
    """Regions an image of each attribute; one that was not met counts as met once in all images that were looked at."""
    met = np.sum([p.pairs * (p.share / max(p.images, 1)) for p in parts], axis=0)
    least = 1.0 / max(sum(p.images for p in parts), 1)
    return np.asarray(np.where(met > 0, met, least))


def counted(dataset_url: str, stage: str, attributes: int, seed: int, share: float = 1.0) -> Counted:
    """From at most SURVEYED sidecars, chosen by the seed: the same on every rank."""
    folder = StageFolder(dataset_url, stage)
    shards = manifest.read(folder).shards
    pairs, images = np.zeros(attributes, np.int64), 0
    for index in sorted(np.random.default_rng(seed).permutation(len(shards))[:SURVEYED].tolist()):
        table = read_sidecar(folder, shards[index], sidecar.PAIRS)
        pairs += np.bincount(sidecar.list_column(table, "attribute")[0], minlength=attributes)
        images += len(table)
    return Counted(pairs, images, share)
