"""Truth and detections from COCO's and LVIS' JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from villa_dist.evaluate.detection import FREQUENCIES, Detections, Truth
from villa_dist.evaluate.errors import EvaluationError
from villa_dist.evaluate.json_files import is_text, read_json, said

LARGEST = int(np.finfo(np.float64).max)


def read_truth(source: str | Path | Mapping[str, Any]) -> Truth:
    """A COCO or LVIS annotation file, or its content.

    A missing `iscrowd` is 0, a missing `area` the box's. Images that all have `neg_category_ids` make it an LVIS truth;
    LVIS ignores `iscrowd`, and so its engines do.

    Raises: EvaluationError for unreadable JSON, missing or ill-formed fields, ids that occur twice or point nowhere, and
    boxes that are not finite or of negative size.
    """
    place = str(source) if isinstance(source, str | Path) else "truth"
    data = read_json(source) if isinstance(source, str | Path) else source
    if not isinstance(data, Mapping) or not {"images", "annotations", "categories"} <= set(data):
        raise EvaluationError(f"{place}: no COCO truth: it must hold images, annotations and categories")
    images, rows, listed = (_rows(data[name], name, place) for name in ("images", "annotations", "categories"))
    image_ids = _ids([_get(i, "id", place, "image") for i in images], place, "image")
    category_ids = _ids([_get(c, "id", place, "category") for c in listed], place, "category")
    categories = [listed[i] for i in np.argsort(category_ids)]
    category_ids = np.sort(category_ids)
    image = _ids([_get(a, "image_id", place, "annotation") for a in rows], place, "annotation's image", unique=False)
    category = _ids([_get(a, "category_id", place, "annotation") for a in rows], place, "category", unique=False)
    for name, found, known in (("image", image, image_ids), ("category", category, category_ids)):
        bad = np.flatnonzero(~np.isin(found, known))
        if len(bad):
            raise EvaluationError(f"{place}: annotation {bad[0]} is of {name} {found[bad[0]]}, which is not listed")
    box = _boxes([_get(a, "bbox", place, "annotation") for a in rows], place)
    area = _numbers([a.get("area", b[2] * b[3]) for a, b in zip(rows, box.tolist(), strict=True)], place, "area")
    bad = np.flatnonzero(~np.isfinite(area) | ~np.isfinite(box).all(1) | (box[:, 2:] < 0).any(1))
    if len(bad):
        raise EvaluationError(f"{place}: annotation {bad[0]} has box {box[bad[0]].tolist()} and area {area[bad[0]]}")
    federated = bool(images) and all("neg_category_ids" in i for i in images)
    if federated and any(_flag(a, "ignore", n, place) for n, a in enumerate(rows)):
        raise EvaluationError(f"{place}: an LVIS truth has no `ignore`d annotations; remove them")
    return Truth(
        np.sort(image_ids),
        category_ids,
        tuple(_name(c, place) for c in categories),
        image,
        category,
        box,
        area,
        np.array([_flag(a, "iscrowd", n, place) for n, a in enumerate(rows)], bool),
        _frequencies(categories, place),
        _pairs(images, "neg_category_ids", category_ids, place) if federated else None,
        _pairs(images, "not_exhaustive_category_ids", category_ids, place) if federated else None,
    )


def read_detections(source: str | Path | Sequence[Mapping[str, Any]]) -> Detections:
    """COCO's result list: rows of image_id, category_id, bbox, score. An empty list is a detector that found nothing.

    Raises: EvaluationError for unreadable JSON and missing or ill-formed fields.
    """
    place = str(source) if isinstance(source, str | Path) else "detections"
    rows = read_json(source) if isinstance(source, str | Path) else source
    if not isinstance(rows, list | tuple):
        raise EvaluationError(f"{place}: detections must be a list of rows, found {type(rows).__name__}")
    if not rows:
        return Detections.none()
    names = ("image_id", "category_id", "bbox", "score")
    image, category, box, score = ([_get(r, name, place, "detection") for r in rows] for name in names)
    return Detections(
        _ids(image, place, "detection's image", unique=False),
        _ids(category, place, "detection's category", unique=False),
        _boxes(box, place),
        _numbers(score, place, "score"),
    )


def to_rows(detections: Detections) -> list[dict[str, Any]]:
    """COCO's result list, for a file others read."""
    names = ("image_id", "category_id", "bbox", "score")
    columns = (detections.image, detections.category, detections.box, detections.score)
    return [dict(zip(names, row, strict=True)) for row in zip(*(c.tolist() for c in columns), strict=True)]


def read_category_ids(path: str | Path) -> np.ndarray:
    """The ids of a category list, `[{"id": 5, "name": "airplane"}, …]`: one side of COCO's 48/17 split.

    Raises: EvaluationError.
    """
    rows = read_json(path)
    if not isinstance(rows, list) or not rows:
        raise EvaluationError(f"{path}: no category list: it must be a list of rows with an id")
    return np.sort(_ids([_get(r, "id", str(path), "category") for r in rows], str(path), "category"))


def _rows(value: Any, name: str, place: str) -> Sequence[Mapping[str, Any]]:
    if not isinstance(value, list | tuple):
        raise EvaluationError(f"{place}: {name} is {said(value)}; it must be a list")
    bad = next((n for n, row in enumerate(value) if not isinstance(row, Mapping)), None)
    if bad is not None:
        raise EvaluationError(f"{place}: row {bad} of {name} is {said(value[bad])}; it must be an object")
    return value


def _name(category: Mapping[str, Any], place: str) -> str:
    name = category.get("name", str(category["id"]))
    if not is_text(name):
        raise EvaluationError(f"{place}: category {category['id']} is called {said(name)}; its name must be a text")
    return str(name)


def _flag(row: Mapping[str, Any], name: str, n: int, place: str) -> bool:
    value = row.get(name)
    if not (value is None or (isinstance(value, int | float) and value in (0, 1))):
        raise EvaluationError(f"{place}: annotation {n} has {name} {said(value)}; it must be 0 or 1")
    return bool(value)


def _get(row: Any, name: str, place: str, what: str) -> Any:
    try:
        return row[name]
    except (KeyError, TypeError, IndexError):
        raise EvaluationError(f"{place}: {what} without {name}: {said(row)}") from None


def _ids(values: list[Any], place: str, what: str, *, unique: bool = True) -> np.ndarray:
    if any(type(v) is not int for v in values):
        bad = next(v for v in values if type(v) is not int)
        raise EvaluationError(f"{place}: {what} id {said(bad)} is not an integer")
    try:
        ids = np.array(values, np.int64)
    except OverflowError:
        raise EvaluationError(f"{place}: a {what} id does not fit 64 bits") from None
    if unique and len(np.unique(ids)) < len(ids):
        found, times = np.unique(ids, return_counts=True)
        raise EvaluationError(f"{place}: {what} id {found[np.argmax(times)]} occurs {times.max()} times")
    return ids


def _numbers(values: list[Any], place: str, what: str) -> np.ndarray:
    for n, value in enumerate(values):
        if not _is_number(value):
            raise EvaluationError(f"{place}: row {n} has {what} {said(value)}; it must be a number")
    return np.array(values, np.float64)


def _boxes(values: list[Any], place: str) -> np.ndarray:
    for n, value in enumerate(values):
        if not isinstance(value, list | tuple) or len(value) != 4 or not all(map(_is_number, value)):
            raise EvaluationError(f"{place}: row {n} has box {said(value)}; it must be x, y, width, height")
    return np.array(values, np.float64).reshape(len(values), 4)


def _is_number(value: Any) -> bool:
    """That fits a float; JSON has whole numbers of any size."""
    return not isinstance(value, bool) and (
        isinstance(value, float) or (isinstance(value, int) and abs(value) <= LARGEST)
    )


def _pairs(images: Sequence[Any], name: str, categories: np.ndarray, place: str) -> np.ndarray:
    for image in images:
        if not isinstance(_get(image, name, place, "image"), list | tuple):
            raise EvaluationError(f"{place}: {name} of image {image['id']} is {said(image[name])}; it must be a list")
    pairs = [(i["id"], c) for i in images for c in i[name]]
    named = _ids([c for _, c in pairs], place, f"{name} entry", unique=False)
    found = np.stack([np.array([i for i, _ in pairs], np.int64), named], 1)
    unknown = ~np.isin(found[:, 1], categories)
    if unknown.any():
        image, category = found[np.argmax(unknown)]
        raise EvaluationError(f"{place}: {name} of image {image} names category {category}, which is not listed")
    return found


def _frequencies(categories: Sequence[Mapping[str, Any]], place: str) -> tuple[str, ...] | None:
    if not categories or not all("frequency" in c for c in categories):
        return None
    for c in categories:
        if c["frequency"] not in FREQUENCIES:
            raise EvaluationError(
                f"{place}: category {c['id']} has frequency {said(c['frequency'])}; it must be r, c or f"
            )
    return tuple(c["frequency"] for c in categories)
