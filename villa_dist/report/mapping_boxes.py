"""The report's table of the mapping's pairs against known boxes, by attribute. Pure functions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from villa_dist.report.text import number


@dataclass(frozen=True)
class AttributeRow:
    """Percentages; None where there is nothing to divide by."""

    attribute: str
    true_boxes: int
    pairs: int
    precision: float | None
    recall: float | None
    f1: float | None


@dataclass(frozen=True)
class AttributeTable:
    split: str
    rows: tuple[AttributeRow, ...]


def attribute_tables(results: Mapping[str, Any]) -> list[AttributeTable]:
    """Of results.json, the attributes with most true boxes first; what it lacks is left out."""
    found = []
    for split, told in (results.get("mapping_boxes") or {}).items():
        rows = tuple(_row(row) for row in told.get("by_attribute") or ())
        found += [AttributeTable(split, rows)] if rows else []
    return found


def _row(told: Mapping[str, Any]) -> AttributeRow:
    figures = (number(told.get(name)) for name in ("precision", "recall", "f1"))
    return AttributeRow(str(told["attribute"]), int(told["true_boxes"]), int(told["pairs"]), *figures)
