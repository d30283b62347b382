"""Figures of several models on the same data, with intervals and ViLLA's difference to each: what results.json holds of a
part of evaluation, and how it is told. A figure is a mean over units (images, or queries), which are drawn with
replacement, the same ones for all models; the harmonic mean of two such; or a plain number, which has no interval.

Letters: I units, B1 resamples and, first, the units as they are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from villa_dist.evaluate.bootstrap import interval, ratio, resampled
from villa_dist.evaluate.errors import EvaluationError
from villa_dist.names import CHANCE, TITLES


@dataclass(frozen=True)
class Mean:
    """sums: of each unit its sum and count (`bootstrap.per_image`). scale: 100 gives percent."""

    sums: Float[np.ndarray, "I 2"]
    scale: float = 100.0


@dataclass(frozen=True)
class Harmonic:
    """Of two means of the same model, such as F1 of its precision and recall."""

    first: str
    second: str
    scale: float = 100.0


Figures = Mapping[str, Mean | Harmonic | float]  # numbers: fractions


def together(models: Mapping[str, Figures], resamples: int, subject: str = "villa") -> dict[str, Any]:
    """`models`: by model its figures and, under `intervals`, the 95 % interval of each mean. `differences`: the subject's
    less each of the others', on the same resamples. All models have the same figures."""
    draws = drawn(models, resamples)
    told: dict[str, dict[str, Any]] = {name: {} for name in models}
    differences: list[dict[str, Any]] = []
    for figure, first in next(iter(models.values()), {}).items():
        if not isinstance(first, Mean | Harmonic):
            for name, figures in models.items():
                told[name][figure] = rounded(figures[figure])  # type: ignore[arg-type]
            continue
        here = draws[figure]
        for name, values in here.items():
            told[name][figure] = rounded(float(values[0]), first.scale)
            if resamples:
                told[name].setdefault("intervals", {})[figure] = interval_of(values, first.scale)
        if resamples:
            differences += _differences(figure, here, first.scale, subject)
    return {"resamples": resamples, "models": told, "differences": differences}


def drawn(models: Mapping[str, Figures], resamples: int) -> dict[str, dict[str, Float[np.ndarray, " B1"]]]:
    """By figure and model each mean under each resample. Figures of as many units are drawn alike, all at once."""
    by_units: dict[int, list[tuple[str, str, Mean]]] = {}
    for name, figures in models.items():
        for figure, value in figures.items():
            if isinstance(value, Mean):
                by_units.setdefault(len(value.sums), []).append((figure, name, value))
    found: dict[str, dict[str, np.ndarray]] = {}
    for means in by_units.values():
        sums = resampled(np.concatenate([m.sums for _, _, m in means], 1), resamples)
        for n, (figure, name, _) in enumerate(means):
            found.setdefault(figure, {})[name] = ratio(sums[:, 2 * n : 2 * n + 2])
    for name, figures in models.items():
        for figure, value in figures.items():
            if isinstance(value, Harmonic):
                both = (found[value.first][name], found[value.second][name])
                found.setdefault(figure, {})[name] = harmonic(*both)
    return found


def harmonic(a: Float[np.ndarray, " B"], b: Float[np.ndarray, " B"]) -> Float[np.ndarray, " B"]:
    """0 where one of the two is 0 or undefined, NaN where both are undefined."""
    total = np.nan_to_num(a) + np.nan_to_num(b)
    mean = np.divide(2 * np.nan_to_num(a) * np.nan_to_num(b), total, out=np.zeros(len(a)), where=total > 0)
    return np.where(np.isnan(a) & np.isnan(b), np.nan, mean)


def _differences(figure: str, draws: Mapping[str, np.ndarray], scale: float, subject: str) -> list[dict[str, Any]]:
    found = []
    for other in draws if subject in draws else ():
        gap = draws[subject] - draws[other]
        low_high = interval_of(gap, scale) if other != subject else None
        if low_high is not None:
            found.append(
                {
                    "metric": figure,
                    "first": other,
                    "second": subject,
                    "difference": rounded(float(gap[0]), scale),
                    "interval": low_high,
                    "significant": low_high[0] > 0 or low_high[1] < 0,
                }
            )
    return found


def interval_of(draws: Float[np.ndarray, " B1"], scale: float = 100.0) -> list[float] | None:
    """95 % of the resamples lie in it; None where the figure is undefined on most of them."""
    if not np.isfinite(draws[0]):
        return None
    try:
        found = interval(0.0, float(draws[0]), draws[1:])
    except EvaluationError:
        return None
    return [rounded(found.low, scale), rounded(found.high, scale)]  # type: ignore[list-item]


def rounded(value: float, scale: float = 100.0) -> float | None:
    """None for what is not finite: JSON has no such number."""
    return round(scale * value, 4) if np.isfinite(value) else None


@dataclass(frozen=True)
class Table:
    """A result of one split as it is shown. figures: those it has, the main one first; subject: whose differences to the
    others it has."""

    part: str
    split: str
    title: str
    size: str
    result: Mapping[str, Any]
    warnings: Sequence[str]
    subject: str = "villa"

    @property
    def figures(self) -> list[str]:
        return [c for c in next(iter(self.result["models"].values()), {}) if c != "intervals"]

    @property
    def rows(self) -> dict[str, Mapping[str, Any]]:
        """The figures of the models, then of random scores where they are told."""
        by_chance = self.result.get(CHANCE)
        return {**self.result["models"], **({CHANCE: by_chance} if by_chance else {})}

    def against(self, model: str) -> Mapping[str, Any] | None:
        """The subject's difference to a model in the main figure."""
        main = self.figures[:1]
        found = (d for d in self.result["differences"] if d["first"] == model and [d["metric"]] == main)
        return next(found, None)


def tables(results: Mapping[str, Any]) -> list[Table]:
    """Of mapping_boxes, recall, classes and fine_grained in results.json, split by split."""
    found = []
    for split, told in (results.get("mapping_boxes") or {}).items():
        size = f"{told['pairs']:,} pairs and {told['true_boxes']:,} true boxes of {told['images']:,} images"
        title = "Pairs of the mapping against known boxes"
        found.append(Table("mapping_boxes", split, title, size, told, told["warnings"], "mapping"))
    for split, told in (results.get("recall") or {}).items():
        size = f"{told['images']:,} images, {told['texts']:,} distinct texts"
        found.append(Table("recall", split, "Recall of whole images and whole texts", size, told, told["warnings"]))
    for split, told in (results.get("classes") or {}).items():
        size = f"{told['images']:,} images, {len(told['classes'])} classes"
        found.append(Table("classes", split, "Classes of whole images", size, told, told["warnings"]))
    for split, every in (results.get("fine_grained") or {}).items():
        warnings = every["warnings"]
        for subset, told in every["subsets"].items():
            least, most = told["negatives"]
            count = f"{least}" if least == most else f"{least} to {most}"
            title = f"The right phrase among {count} hard negatives, {subset}"
            size = f"{told['boxes']:,} boxes on {told['images']:,} images"
            found.append(Table("fine_grained", split, title, size, told, warnings))
            warnings = ()
    return found


def lines(table: Table) -> list[str]:
    """A table in plain text, and the subject's difference to the others in the main figure."""
    models = table.rows
    width = max(20, *(len(title(n)) + 1 for n in models))
    heads = [f"{c:>{max(12, len(c) + 2)}}" for c in table.figures]
    told = [f"{table.title}, {table.split} split ({table.size})", " " * width + "".join(heads)]
    for name, figures in models.items():
        values = (_shown(figures.get(c)).rjust(len(h)) for c, h in zip(table.figures, heads, strict=True))
        told.append(f"{title(name):<{width}}" + "".join(values))
    for name in models:
        if d := table.against(name):
            low, high = d["interval"]
            told.append(
                f"{title(table.subject)} - {title(name)}, {d['metric']}: {d['difference']:+.1f} "
                f"(95 % {low:+.1f} to {high:+.1f})"
            )
    return told


def title(row: str) -> str:
    """Of a row of a table of models."""
    return "Chance" if row == CHANCE else TITLES.get(row, row)


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
