"""What the report's tables of models share. Pure functions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from villa_dist.report.text import signed


@dataclass(frozen=True)
class ModelRow:
    """values: a figure and its interval, or "", for each column; against: ViLLA's difference to this model."""

    job: str
    label: str
    values: tuple[tuple[float | None, str], ...]
    against: str


def gap(difference: Mapping[str, Any] | None) -> str:
    """A difference of results.json with its interval."""
    if difference is None:
        return ""
    low, high = difference["interval"]
    return f"{signed(difference['difference'], 1)} ({signed(low, 1)} to {signed(high, 1)})"
