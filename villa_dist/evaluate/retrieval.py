"""R-Precision, both ways, as pure functions.

Letters: R regions, A attributes. A query with n relevant items scores the share of relevant ones among its n best;
ties at the cut are resolved by expectation, so that the order of equal scores cannot matter.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

CHUNK = 4096


@dataclass(frozen=True)
class Retrieval:
    """Fractions in [0, 1]. a2r: attribute to region, macro over attributes that occur. r2a: region to attribute."""

    a2r: float
    r2a: float
    by_attribute: Float[np.ndarray, " A"]  # NaN where an attribute does not occur


def precision_at_relevant(
    score: Float[np.ndarray, "Q M"], relevant: Bool[np.ndarray, "Q M"]
) -> Float[np.ndarray, " Q"]:
    """R-Precision of each query row; NaN for a row without a relevant item.

    Raises: ValueError when a score is not finite.
    """
    if not np.isfinite(score).all():
        raise ValueError("retrieval scores hold NaN or infinity")
    count = relevant.sum(1)
    out = np.full(len(score), np.nan)
    some = count > 0
    if not some.any():
        return out
    ranked = -np.sort(-score[some], axis=1)
    n = count[some]
    cut = ranked[np.arange(len(n)), n - 1][:, None]
    above, tied = score[some] > cut, score[some] == cut
    hits = (above & relevant[some]).sum(1)
    places = n - above.sum(1)
    out[some] = (hits + places * (tied & relevant[some]).sum(1) / tied.sum(1)) / n
    return out


def r_precision(
    region: Float[np.ndarray, "R D"], attribute: Float[np.ndarray, "A D"], truth: Bool[np.ndarray, "R A"]
) -> Retrieval:
    """R-Precision of unit embeddings by cosine (ViLLA, section 4.1)."""
    by_attribute = np.full(len(attribute), np.nan)
    for a in range(len(attribute)):  # one column at a time: memory is linear in the regions
        by_attribute[a] = precision_at_relevant((region @ attribute[a])[None], truth[:, a][None])[0]
    rows = [
        precision_at_relevant(region[i : i + CHUNK] @ attribute.T, truth[i : i + CHUNK])
        for i in range(0, len(region), CHUNK)
    ]
    by_region = np.concatenate(rows) if rows else np.zeros(0)
    return Retrieval(_mean(by_attribute), _mean(by_region), by_attribute)


def _mean(values: np.ndarray) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else float("nan")
