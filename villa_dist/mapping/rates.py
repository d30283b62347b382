"""Per-region attribute rates from image-level mentions alone.

If each of an image's n regions has attribute a with probability q_a, the share of images that lack it is the mean of
(1 - q_a)^n. Solving for q_a needs only a histogram of n and the number of images that mention a, so it streams.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int


def rates(
    images_with: Int[np.ndarray, " n"], mentions: Int[np.ndarray, " A"], steps: int = 60
) -> Float[np.ndarray, " A"]:
    """images_with[n]: images of n regions. mentions[a]: images whose text mentions a. Returns q, A, in (0, 1)."""
    images = max(int(images_with.sum()), 1)
    mentions, back = np.unique(mentions, return_inverse=True)  # attributes mentioned equally often have equal rates
    absent_A = 1.0 - mentions / images
    n = np.flatnonzero(images_with).astype(np.float64)
    images_with = images_with[images_with > 0]
    low, high = np.full(len(mentions), 1e-6), np.full(len(mentions), 1.0 - 1e-6)
    for _ in range(steps):
        middle = (low + high) / 2
        lacking_A = (images_with[None] * np.power(1.0 - middle[:, None], n[None])).sum(1) / images
        too_low = lacking_A > absent_A
        low, high = np.where(too_low, middle, low), np.where(too_low, high, middle)
    return ((low + high) / 2)[back]


def positive_share(images_with: Int[np.ndarray, " n"], rate_A: Float[np.ndarray, " A"]) -> Float[np.ndarray, " A"]:
    """Of the regions in images that mention a, the share that has it: what the negative-unlabelled risk needs."""
    n = np.arange(len(images_with), dtype=np.float64)
    present_An = 1.0 - np.power(1.0 - rate_A[:, None], n[None])
    regions_A = (images_with * n * present_An).sum(1)
    having_A = rate_A * float((images_with * n).sum())
    return np.clip(having_A / np.maximum(regions_A, 1e-9), 1e-4, 1.0 - 1e-4)
