"""Scores of many images at once, each of its own regions and attributes, in numpy."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

from villa_dist.mapping.evidence import ALONE


def image_chances(
    logits: Sequence[Float[np.ndarray, "r a"]], groups: Sequence[Int[np.ndarray, " a"]] | None
) -> list[Float[np.ndarray, "r a"]]:
    """`evidence.chances` of several images at once, as probabilities. groups: of each image's attributes; None: all stand
    alone. Their rounding does not depend on the other images."""
    e = np.exp(np.minimum(np.concatenate([x.ravel() for x in logits]).astype(np.float64), 500.0))
    total = e if groups is None else e.copy()
    if groups is not None:
        regions = [len(x) for x in logits]
        row = np.repeat(np.arange(sum(regions)), np.repeat([len(g) for g in groups], regions))
        group = np.concatenate([np.tile(g, r) for g, r in zip(groups, regions, strict=True)])
        shared = group != ALONE
        place = row[shared] * (int(group.max(initial=0)) + 1) + group[shared]
        total[shared] = np.bincount(place, weights=e[shared])[place]
    return split((e / (1.0 + total)).astype(np.float32), logits)


def split(flat: np.ndarray, like: Sequence[np.ndarray]) -> list[np.ndarray]:
    ends = np.cumsum([x.size for x in like]).tolist()
    return [flat[end - x.size : end].reshape(x.shape) for end, x in zip(ends, like, strict=True)]
