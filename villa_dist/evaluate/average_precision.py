"""Average precision by category: the table every engine fills, merged over shards, and the figures papers print."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from villa_dist.evaluate.detection import FREQUENCIES, Truth
from villa_dist.evaluate.errors import EvaluationError

AREAS = ("all", "small", "medium", "large")
AREA_RANGES = ((0.0, 1e10), (0.0, 32.0**2), (32.0**2, 96.0**2), (96.0**2, 1e10))
IOUS = np.linspace(0.5, 0.95, 10)
RECALLS = np.linspace(0.0, 1.0, 101)


@dataclass(frozen=True)
class PrecisionTable:
    """Average precision (mean over 101 recalls) and greatest recall of each category, area range and IoU threshold.

    NaN where the truth has no box to find.
    """

    category: Int[np.ndarray, " C"]  # ascending
    precision: Float[np.ndarray, "C 4 10"]
    recall: Float[np.ndarray, "C 4 10"]


@dataclass(frozen=True)
class AveragePrecision:
    """`metrics`: fractions, -1 where the truth has nothing of the kind (as the COCO and LVIS tools print it)."""

    metrics: dict[str, float]
    table: PrecisionTable


def merge(parts: Sequence[PrecisionTable]) -> PrecisionTable:
    """The table of all shards. Raises: EvaluationError when a category is in two of them."""
    category = np.concatenate([p.category for p in parts])
    order = np.argsort(category)
    twice = np.flatnonzero(np.diff(category[order]) == 0)
    if len(twice):
        raise EvaluationError(f"category {category[order][twice[0]]} is in two shards; shards hold whole categories")
    precision = np.concatenate([p.precision for p in parts])
    return PrecisionTable(category[order], precision[order], np.concatenate([p.recall for p in parts])[order])


def empty_table(truth: Truth) -> PrecisionTable:
    """The table of a detector that found nothing: zero where there was something to find."""
    ground = ~truth.crowd
    shape = (len(truth.categories), len(AREAS), len(IOUS))
    table = np.full(shape, np.nan)
    for a, (low, high) in enumerate(AREA_RANGES):
        there = truth.category[ground & (truth.area >= low) & (truth.area <= high)]
        table[np.searchsorted(truth.categories, np.unique(there)), a] = 0.0
    return PrecisionTable(truth.categories, table, table.copy())


def summary(table: PrecisionTable, truth: Truth) -> AveragePrecision:
    """AP, AP50, AP75, APs, APm, APl and AR; APr, APc, APf where the truth has frequencies."""
    p = table.precision
    metrics = {
        "AP": _mean(p[:, 0]),
        "AP50": _mean(p[:, 0, 0]),
        "AP75": _mean(p[:, 0, 5]),
        **{f"AP{name[0]}": _mean(p[:, a]) for a, name in enumerate(AREAS) if a},
    }
    if truth.frequency is not None:
        of = np.array(truth.frequency)[np.searchsorted(truth.categories, table.category)]
        metrics |= {f"AP{f}": _mean(p[of == f, 0]) for f in FREQUENCIES}
    return AveragePrecision({**metrics, "AR": _mean(table.recall[:, 0])}, table)


def by_group(table: PrecisionTable, groups: dict[str, np.ndarray]) -> dict[str, dict[str, float]]:
    """AP and AP50 over the categories of each group, and over `all` of the table: novel, base and all of a split.

    Raises: EvaluationError for a category that is not in the table.
    """
    out = {}
    for name, ids in {**groups, "all": table.category}.items():
        missing = np.setdiff1d(ids, table.category)
        if len(missing):
            raise EvaluationError(f"group {name} has category {missing[0]}, which was not evaluated")
        rows = np.isin(table.category, ids)
        out[name] = {"AP": _mean(table.precision[rows, 0]), "AP50": _mean(table.precision[rows, 0, 0])}
    return out


def _mean(values: np.ndarray) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else -1.0
