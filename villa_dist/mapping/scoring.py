"""Scores of many images at once, each of its own regions and attributes, in numpy."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

from villa_dist.mapping.evidence import ALONE


def sigmoid_chances(logits: Sequence[Float[np.ndarray, "r a"]]) -> list[Float[np.ndarray, "r a"]]:
    z = np.concatenate([x.ravel() for x in logits]).astype(np.float64)
    return split((1.0 / (1.0 + np.exp(-np.clip(z, -500.0, 500.0)))).astype(np.float32), logits)


def exclusive_chances(
    logits: Sequence[Float[np.ndarray, "r a"]], groups: Sequence[Int[np.ndarray, " a"]]
) -> list[Float[np.ndarray, "r a"]]:
    """`chances` of several images at once, as probabilities: sums over the attributes of a group in a region, all in one
    count. Their rounding does not depend on the other images."""
    z = np.concatenate([x.ravel() for x in logits]).astype(np.float64)
    e = np.exp(np.minimum(z, 500.0))
    regions = [len(x) for x in logits]
    first = np.concatenate([[0], np.cumsum(regions)])
    row = np.concatenate([np.repeat(np.arange(first[i], first[i] + r), len(groups[i])) for i, r in enumerate(regions)])
    group = np.concatenate([np.tile(g, r) for g, r in zip(groups, regions, strict=True)])
    total = e.copy()
    shared = group != ALONE
    if shared.any():
        kinds = int(group.max()) + 1
        place = row[shared] * kinds + group[shared]
        total[shared] = np.bincount(place, weights=e[shared])[place]
    return split((e / (1.0 + total)).astype(np.float32), logits)


def split(flat: np.ndarray, like: Sequence[np.ndarray]) -> list[np.ndarray]:
    ends = np.cumsum([x.size for x in like]).tolist()
    return [flat[end - x.size : end].reshape(x.shape) for end, x in zip(ends, like, strict=True)]
