"""R-Precision, both ways, as pure functions.

Letters: R regions, A attributes. A query with n relevant items scores the share of relevant ones among its n best;
ties at the cut are resolved by expectation, so that the order of equal scores cannot matter. For that, equal vectors must
get equal scores: matrix products round differently at the edges of their tiles, so cosines are taken in float64 and
rounded to 2^-33.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from villa_dist.evaluate.errors import EvaluationError

CHUNK = 4096
STEPS = 2.0**33  # scores are multiples of 1 / STEPS


@dataclass(frozen=True)
class Retrieval:
    """Fractions in [0, 1]. a2r: attribute to region, macro over attributes that occur. r2a: region to attribute."""

    a2r: float
    r2a: float
    by_attribute: Float[np.ndarray, " A"]  # NaN where an attribute does not occur


def similarity(query: Float[np.ndarray, "Q D"], target: Float[np.ndarray, "M D"]) -> Float[np.ndarray, "Q M"]:
    """Cosines of unit vectors, float64, in multiples of 2^-33: the same pair scores the same in any chunk.

    Raises: EvaluationError when an embedding holds NaN or infinity, or the widths differ.
    """
    if query.shape[1] != target.shape[1]:
        raise EvaluationError(f"embeddings of width {query.shape[1]} cannot be compared with width {target.shape[1]}")
    score = query.astype(np.float64) @ target.astype(np.float64).T
    if not np.isfinite(score).all():
        bad = "query" if not np.isfinite(query).all() else "target"
        raise EvaluationError(f"retrieval scores hold NaN or infinity: a {bad} embedding is not finite")
    score *= STEPS
    np.rint(score, out=score)
    score /= STEPS
    return score


def precision_at_relevant(
    score: Float[np.ndarray, "Q M"], relevant: Bool[np.ndarray, "Q M"]
) -> Float[np.ndarray, " Q"]:
    """R-Precision of each query row; NaN for a row without a relevant item.

    Raises: EvaluationError when a score is not finite.
    """
    if not np.isfinite(score).all():
        raise EvaluationError("retrieval scores hold NaN or infinity")
    count = relevant.sum(1)
    out = np.full(len(score), np.nan)
    some = count > 0
    if not some.any():
        return out
    n = count[some]
    cuts = np.unique(n) - 1
    ranked = np.partition(-score[some], cuts, axis=1) if len(cuts) <= 32 else np.sort(-score[some], axis=1)
    cut = -ranked[np.arange(len(n)), n - 1][:, None]
    above, tied = score[some] > cut, score[some] == cut
    hits = (above & relevant[some]).sum(1)
    places = n - above.sum(1)
    out[some] = (hits + places * (tied & relevant[some]).sum(1) / tied.sum(1)) / n
    return out


def r_precision(
    region: Float[np.ndarray, "R D"], attribute: Float[np.ndarray, "A D"], truth: Bool[np.ndarray, "R A"]
) -> Retrieval:
    """R-Precision of unit embeddings by cosine (ViLLA, section 4.1).

    Raises: EvaluationError when embeddings are not finite or do not fit each other and the truth.
    """
    if truth.shape != (len(region), len(attribute)):
        raise EvaluationError(f"truth of shape {truth.shape} for {len(region)} regions and {len(attribute)} attributes")
    by_attribute = np.full(len(attribute), np.nan)
    for a in range(len(attribute)):  # one column at a time: memory is linear in the regions
        by_attribute[a] = precision_at_relevant(similarity(attribute[a : a + 1], region), truth[:, a][None])[0]
    rows = [
        precision_at_relevant(similarity(region[i : i + CHUNK], attribute), truth[i : i + CHUNK])
        for i in range(0, len(region), CHUNK)
    ]
    by_region = np.concatenate(rows) if rows else np.zeros(0)
    return Retrieval(_mean(by_attribute), _mean(by_region), by_attribute)


def _mean(values: np.ndarray) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else float("nan")
