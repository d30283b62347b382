"""From scores to region-attribute pairs.

Letters: R regions of one image, A attributes its text mentions.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float, Int

from villa_dist.config import PairsConfig
from villa_dist.mapping.evidence import ALONE

ROUNDS, ENOUGH = 50, 0.999  # of transport
FAINT = 1e-6  # objectness below this counts as this


def assign(
    score_RA: Float[np.ndarray, "R A"],
    config: PairsConfig,
    threshold_A: Float[np.ndarray, " A"] | None = None,
    group_A: Int[np.ndarray, " A"] | None = None,
) -> Bool[np.ndarray, "R A"]:
    """Which pairs hold. An attribute always keeps the image's best region, since the text says it is somewhere.

    relative: score > best - epsilon (ViLLA's rule). absolute: score >= threshold. calibrated: score >= `threshold_A`, a
    threshold of each attribute's own. transport: `transport(score) >= threshold`.
    Raises: ValueError when a score is not finite.
    """
    if not np.isfinite(score_RA).all():
        raise ValueError("region-attribute scores hold NaN or infinity; the mapping model is damaged, fit it again")
    if score_RA.size == 0:
        return np.zeros(score_RA.shape, bool)
    if config.assign == "transport":
        score_RA = transport(score_RA, np.full(score_RA.shape[1], ALONE) if group_A is None else group_A)
    best_A = score_RA.max(0, keepdims=True)
    if config.assign == "relative":
        return (score_RA > best_A - config.epsilon) | (score_RA == best_A)
    cut = config.threshold if config.assign != "calibrated" or threshold_A is None else threshold_A
    return (score_RA >= cut) | (score_RA == best_A)


def weighed(
    score_RA: Float[np.ndarray, "R A"], objectness_R: Float[np.ndarray, " R"], weight: float, *, chances: bool
) -> Float[np.ndarray, "R A"]:
    """Scores with `weight` x log of the objectness, as a share of the image's highest: of probabilities a factor of at most
    1, of others (`chances` false) a term of at most 0. The most object-like region keeps its scores."""
    if not len(objectness_R):
        return score_RA
    share_R = np.maximum(objectness_R, FAINT) / max(float(objectness_R.max()), FAINT)
    prior_R1 = (weight * np.log(share_R))[:, None].astype(np.float32)
    return score_RA * np.exp(prior_R1) if chances else score_RA + prior_R1


def transport(p_RA: Float[np.ndarray, "R A"], group_A: Int[np.ndarray, " A"]) -> Float[np.ndarray, "R A"]:
    """Probabilities moved so that each attribute is given at least one region's worth in all, as its text says, and a region
    at most one attribute of a group, the rest of it going to a dustbin.

    Sinkhorn's scaling with an inequality: the columns that hold less than one are raised, the rows of each group and its
    dustbin made to sum to one again, until all hold enough. group_A: numbers from 0, or ALONE, a group of its own.
    """
    alone = group_A == ALONE
    top = int(group_A.max(initial=-1)) + 1
    place = np.where(alone, top + np.cumsum(alone) - 1, group_A)
    member_AG = (place[:, None] == np.unique(place)[None]).astype(np.float64)
    p = np.clip(p_RA.astype(np.float64), 1e-9, 1 - 1e-9)
    bin_RG = np.maximum(1 - p @ member_AG, 1e-9)
    weight_A = np.ones(p.shape[1])
    moved = p
    for _ in range(ROUNDS):
        short_A = moved.sum(0)
        if (short_A >= ENOUGH).all():
            break
        weight_A *= np.maximum(1.0, 1.0 / short_A)
        raised = p * weight_A
        moved = raised / ((bin_RG + raised @ member_AG) @ member_AG.T)
    return moved.astype(np.float32)
