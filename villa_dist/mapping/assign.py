"""From scores to region-attribute pairs.

Letters: R regions of one image, A attributes its text mentions.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float

from villa_dist.config import PairsConfig


def assign(score_RA: Float[np.ndarray, "R A"], config: PairsConfig) -> Bool[np.ndarray, "R A"]:
    """Which pairs hold. An attribute always keeps the image's best region, since the text says it is somewhere.

    relative: score > best - epsilon (ViLLA's rule). absolute: score >= threshold.
    Raises: ValueError when a score is not finite.
    """
    if not np.isfinite(score_RA).all():
        raise ValueError("region-attribute scores hold NaN or infinity; the mapping model is damaged, fit it again")
    if score_RA.size == 0:
        return np.zeros(score_RA.shape, bool)
    best_A = score_RA.max(0, keepdims=True)
    if config.assign == "relative":
        return (score_RA > best_A - config.epsilon) | (score_RA == best_A)
    return (score_RA >= config.threshold) | (score_RA == best_A)
