"""The report's part on zero-shot detection: a table a split and kind of boxes, and a sentence. Pure functions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from villa_dist.evaluate.figures import title
from villa_dist.names import CHANCE
from villa_dist.report.rows import ModelRow, gap
from villa_dist.report.text import between, count, figure, listed, number

BOXES = {"truth": "true boxes", "proposals": "proposals"}


@dataclass(frozen=True)
class DetectionTable:
    split: str
    boxes: str
    size: str
    columns: tuple[str, ...]
    rows: tuple[ModelRow, ...]


def detection_tables(results: Mapping[str, Any]) -> list[DetectionTable]:
    """Of results.json; what it lacks is left out."""
    found = []
    for split, measured in (results.get("detection") or {}).items():
        models: Mapping[str, Any] = measured.get("models") or {}
        metric = "AP" if measured.get("protocol") == "lvis" else "AP50"
        classes: Mapping[str, Any] = measured.get("classes") or {}
        for mode, name in BOXES.items():
            here = {model: told[mode] for model, told in models.items() if mode in told}
            if not here:
                continue
            columns = [(f"{metric} {group}", group, metric) for group in classes]
            columns += [("AP all", "all", "AP")] if metric != "AP" else []
            accuracy = ["top1", "top5"] if mode == "truth" else []
            rows = tuple(
                ModelRow(
                    model,
                    title(model),
                    tuple(_value(told.get(group) or {}, m, m == metric) for _, group, m in columns)
                    + tuple((number(told.get(k)), between(told.get(f"{k}_interval"))) for k in accuracy),
                    _against(measured.get("differences") or (), model, mode, metric),
                )
                for model, told in here.items()
            )
            if mode == "truth" and (by_chance := measured.get(CHANCE)):
                values = [(None, "")] * len(columns) + [(number(by_chance.get(k)), "") for k in accuracy]
                rows += (ModelRow(CHANCE, title(CHANCE), tuple(values), ""),)
            size = [count(measured.get("images"), "image"), count(measured.get("true_boxes"), "true box", "true boxes")]
            size += [f"{count(n)} {group} classes" for group, n in classes.items()]
            heads = (*(c[0] for c in columns), *(f"top-{k[3]}" for k in accuracy))
            found.append(DetectionTable(split, name, listed(size), heads, rows))
    return found


def _value(told: Mapping[str, Any], metric: str, main: bool) -> tuple[float | None, str]:
    return number(told.get(metric)), between(told.get("interval")) if main else ""


def _against(differences: Sequence[Mapping[str, Any]], model: str, mode: str, metric: str) -> str:
    wanted = (model, mode, "all", metric)
    return gap(
        next((d for d in differences if tuple(map(d.get, ("first", "boxes", "group", "metric"))) == wanted), None)
    )


def sentence(tables: Sequence[DetectionTable]) -> list[str]:
    """What ViLLA and the others reach over all classes, of the first table; nothing where there is none."""
    if not tables or not tables[0].rows:
        return []
    table = tables[0]
    at = next(i for i, c in enumerate(table.columns) if c.endswith(" all"))
    told = [f"{figure(r.values[at][0], 1)}% for {r.label}" for r in table.rows if r.job != CHANCE]
    where = f"the {table.split} split ({table.size})"
    return [f"Zero-shot detection on {table.boxes} of {where} reaches {table.columns[at]} of {listed(told)}."]
