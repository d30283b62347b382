"""The report's part on recall, classes and hard negatives: a table a split (and subset), and a sentence. Pure functions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from villa_dist.evaluate.figures import Table, tables, title
from villa_dist.names import CHANCE
from villa_dist.report.rows import ModelRow, gap
from villa_dist.report.text import between, count, figure, listed, number

WAYS = {
    "i2t": "image→text R@",
    "t2i": "text→image R@",
    "class_to_image": "class→image P@",
    "image_to_text": "image→text P@",
}
NAMES = {
    "top1": "top-1",
    "balanced": "top-1, mean over classes",
    "mean_rank": "mean rank",
    "mean_rank_ties_lost": "mean rank, ties lost",
    "f1": "F1",
    "f1_once": "F1, a box once",
}
NOTES = {
    "mapping_boxes": "A pair is right when its region overlaps a true box of its attribute with IoU 0.5 or more; true are "
    "the boxes whose name is an attribute that the image's text mentions. F1 is that of precision and recall; in the last "
    "figure a second region on the same box is wrong. Beside the mapping: every proposal, and the largest one, given every "
    "attribute mentioned. In percent, with the interval of 95% of the resamples of images.",
    "recall": "A query scores where one of its own is among the k best, ties by expectation; equal texts are one text. In "
    "percent, with the interval of 95% of the resamples of queries. A model that was trained on regions alone "
    "(train.whole_weight: 0) has met no whole text.",
    "classes": "top-1: an image's nearest class by its prompts. P@k: the share of the k best that have the class, mean over "
    "classes. In percent, with the interval of 95% of the resamples of images.",
    "fine_grained": "top-1: the right phrase is nearer to its box than each negative, in percent. Mean rank: 1 is best. "
    "With the interval of 95% of the resamples of images.",
}


@dataclass(frozen=True)
class EvaluationTable:
    part: str
    title: str
    split: str
    size: str
    columns: tuple[str, ...]
    rows: tuple[ModelRow, ...]
    note: str
    warnings: tuple[str, ...] = ()
    subject: str = "ViLLA"


def evaluation_tables(results: Mapping[str, Any]) -> list[EvaluationTable]:
    """Of results.json; what it lacks is left out."""
    return [_shown(table) for table in tables(results)]


def _shown(table: Table) -> EvaluationTable:
    rows = []
    for job, told in table.rows.items():
        intervals = told.get("intervals") or {}
        values = tuple((number(told.get(f)), between(intervals.get(f))) for f in table.figures)
        rows.append(ModelRow(job, title(job), values, gap(table.against(job))))
    columns = tuple(map(column_of, table.figures))
    note, warnings = NOTES[table.part], tuple(table.warnings)
    subject = title(table.subject)
    return EvaluationTable(
        table.part, table.title, table.split, table.size, columns, tuple(rows), note, warnings, subject
    )


def column_of(name: str) -> str:
    way, _, k = name.partition("@")
    return f"{WAYS[way]}{k}" if way in WAYS else NAMES.get(name, name)


def sentences(shown: Sequence[EvaluationTable]) -> list[str]:
    """The main figure of all models, one sentence a part, of its first table."""
    first = {table.part: table for table in reversed(shown)}
    return [_sentence(first[part]) for part in NOTES if part in first and first[part].rows]


def _sentence(table: EvaluationTable) -> str:
    models = [r for r in table.rows if r.job != CHANCE]
    told = [f"{figure(r.values[0][0], 1)}% for {r.label}" for r in models]
    by_chance = next((f", {figure(r.values[0][0], 1)}% by chance" for r in table.rows if r.job == CHANCE), "")
    several = "way of assigning", "ways of assigning"
    rows = count(len(models), *(several if table.part == "mapping_boxes" else ("model",)))
    where = f"the {table.split} split ({table.size}; {rows})"
    return f"{table.title}, on {where}: {table.columns[0]} is {listed(told)}{by_chance}."
