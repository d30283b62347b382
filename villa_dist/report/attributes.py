"""R-Precision of each attribute as bars, and differences of models with intervals, from what evaluate has kept. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from villa_dist.evaluate.figures import interval_of
from villa_dist.evaluate.items import Items
from villa_dist.names import TITLES
from villa_dist.report.text import number, signed

MOST_BARS = 60


@dataclass(frozen=True)
class AttributeRow:
    """values: R-Precision in percent by job, of the jobs in the table's order; None where unknown."""

    phrase: str
    group: str
    regions: int
    values: tuple[float | None, ...]


@dataclass(frozen=True)
class AttributeBars:
    """jobs and labels: of the values; main: the place of the one whose values are the bars, the others are ticks."""

    jobs: tuple[str, ...]
    labels: tuple[str, ...]
    main: int
    rows: tuple[AttributeRow, ...]
    hidden: int


def bars(items: Mapping[str, Items], phrases: Sequence[str], groups: Sequence[str]) -> AttributeBars | None:
    """The most frequent attributes, group by group, the best of each group first; None where nothing was kept.

    items: by job, of one split.
    """
    jobs = tuple(job for job, kept in items.items() if len(kept.by_attribute) == len(phrases))
    if not jobs:
        return None
    main = jobs.index("villa") if "villa" in jobs else len(jobs) - 1
    relevant = items[jobs[main]].relevant
    often = [int(a) for a in np.argsort(-relevant, kind="stable") if relevant[a]]
    values = {a: tuple(number(float(items[job].by_attribute[a])) for job in jobs) for a in often[:MOST_BARS]}
    order = {g: i for i, g in enumerate(dict.fromkeys(groups))}
    shown = sorted(values, key=lambda a: (order[groups[a]], -(values[a][main] or 0.0), a))
    rows = tuple(AttributeRow(phrases[a], groups[a], int(relevant[a]), values[a]) for a in shown)
    return AttributeBars(jobs, tuple(TITLES.get(job, job) for job in jobs), main, rows, len(often) - len(shown))


@dataclass(frozen=True)
class Paired:
    """second less first, in points, on the same resamples of the same images."""

    difference: float
    low: float
    high: float

    @property
    def significant(self) -> bool:
        return self.low > 0 or self.high < 0

    @property
    def span(self) -> str:
        return f"{signed(self.low, 1)} to {signed(self.high, 1)}"


def paired(first: Items | None, second: Items | None, metric: str) -> Paired | None:
    """None where one of them is missing, or they were not measured on the same images, pairs and attributes."""
    if first is None or second is None or first.task != second.task:
        return None
    one, two = first.draws.get(metric), second.draws.get(metric)
    if one is None or two is None or len(one) != len(two):
        return None
    found = interval_of(two - one, 1.0)
    return Paired(float(two[0] - one[0]), found[0], found[1]) if found else None
