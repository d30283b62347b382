"""Boxes with a right phrase and hard negatives, from FG-OVD's own JSON or as JSON lines, and as a table for the workers."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from shards import sidecar
from shards.decode import DecodeError, decode_json
from shards.digest import fingerprint
from shards.store import Store
from villa_dist.evaluate.errors import EvaluationError
from villa_dist.evaluate.image_names import ImageNames
from villa_dist.evaluate.json_files import is_text

NONE = -1  # no image id
UNKNOWN = 0  # width or height
FOLDER = "fine_grained"
TABLE = pa.schema(
    [
        ("subset", pa.string()),
        ("place", pa.string()),
        ("image", pa.string()),
        ("image_id", pa.int64()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("box", pa.list_(pa.float64())),
        ("phrases", pa.list_(pa.string())),
    ]
)


@dataclass(frozen=True)
class PhraseBox:
    """A box (x, y, width, height in pixels) of `image` and its phrases, the right one first.

    image: its file's path as the annotations have it. image_id: NONE, and width, height: UNKNOWN, where they do not say.
    place: file and row, for messages.
    """

    image: str
    box: tuple[float, float, float, float]
    phrases: tuple[str, ...]
    image_id: int = NONE
    width: int = UNKNOWN
    height: int = UNKNOWN
    place: str = ""
    subset: str = ""


def read_phrases(path: str | Path, *, negatives: int | None = None, subset: str = "") -> tuple[PhraseBox, ...]:
    """Rows of FG-OVD: JSON lines (img_path, bbox, pos_expression, neg_expression), or its own COCO-like JSON, whose
    annotations have a category_id and neg_category_ids. negatives: the first so many are taken; None: all.

    Raises: EvaluationError naming file and row where there is not exactly one positive, too few negatives, a negative that
    repeats or is the positive, a box that is not finite, has no area or leaves its image.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise EvaluationError(f"{path}: cannot be read: {error.strerror}; give a file of FG-OVD") from error
    except UnicodeDecodeError as error:
        raise EvaluationError(f"{path}: not UTF-8: {error}") from None
    whole = _coco_like(text, str(path))
    if whole is not None:
        rows = [_checked(row, f"{path}: annotation {n}", negatives, subset) for n, row in enumerate(whole)]
    else:
        lines = [(n, line) for n, line in enumerate(text.split("\n"), 1) if line.strip()]
        rows = [_checked(_line(line, f"{path}:{n}"), f"{path}:{n}", negatives, subset) for n, line in lines]
    if not rows:
        raise EvaluationError(f"{path}: no box with phrases in it; give a file of FG-OVD")
    return tuple(rows)


def _coco_like(text: str, path: str) -> list[dict[str, Any]] | None:
    """The annotations as rows like those of JSON lines; None where the file is no single JSON object with annotations."""
    try:
        data = json.loads(text)
    except (ValueError, RecursionError):
        return None  # several lines; what is wrong in one of them is said with its number
    if isinstance(data, Mapping) and "bbox" in data:
        return None
    parts = [data.get(n) for n in ("images", "categories", "annotations")] if isinstance(data, Mapping) else []
    if len(parts) != 3 or not all(isinstance(p, list) and all(isinstance(r, Mapping) for r in p) for p in parts):
        raise EvaluationError(
            f"{path}: no FG-OVD file: it must be JSON lines with img_path, bbox, pos_expression and neg_expression, or one "
            "object with lists of images, categories and annotations"
        )
    try:
        images = {row.get("id"): row for row in parts[0] or ()}
        names = {row.get("id"): row.get("name") for row in parts[1] or ()}
    except TypeError as error:
        raise EvaluationError(f"{path}: an id of an image or a category is a list or an object ({error})") from None
    return [_row(a, images, names, f"{path}: annotation {n}") for n, a in enumerate(parts[2] or ())]


def _row(a: Mapping[str, Any], images: Mapping[Any, Any], names: Mapping[Any, Any], place: str) -> dict[str, Any]:
    try:
        image = images[a["image_id"]]
        negatives = [names[c] for c in a["neg_category_ids"]]
        path = image.get("file_name") or image.get("coco_url") or str(a["image_id"])
        size = {k: image[k] for k in ("width", "height") if k in image}
        said = {"pos_expression": [names[a["category_id"]]], "neg_expression": negatives}
        return {"img_path": path, "bbox": a["bbox"], "image_id": a["image_id"], **size, **said}
    except (KeyError, TypeError) as error:
        raise EvaluationError(
            f"{place}: no FG-OVD annotation ({type(error).__name__}: {error}): it needs bbox, and image_id, category_id and "
            "neg_category_ids of listed images and categories"
        ) from None


def _line(line: str, place: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise EvaluationError(f"{place}: not JSON: {error}") from None
    if not isinstance(row, dict):
        raise EvaluationError(f"{place}: no FG-OVD row: found {type(row).__name__}, an object is needed")
    return row


def _checked(row: Mapping[str, Any], place: str, negatives: int | None, subset: str) -> PhraseBox:
    try:
        image, box = row["img_path"], tuple(float(v) for v in row["bbox"])
        positive, negative = row["pos_expression"], row["neg_expression"]
    except (ValueError, KeyError, TypeError, OverflowError) as error:
        raise EvaluationError(f"{place}: no FG-OVD row ({type(error).__name__}: {error})") from None
    phrases = [positive] if isinstance(positive, str) else positive
    wanted = negatives or 1
    few = not all(isinstance(p, list) for p in (phrases, negative)) or len(phrases) != 1 or len(negative) < wanted
    if few or not isinstance(image, str) or not image:
        raise EvaluationError(
            f"{place}: a row needs an image's path, 1 positive and {wanted} negative phrases or more; see "
            "evaluate.fine_grained.negatives"
        )
    every = (*phrases, *negative[:negatives])
    if not all(isinstance(p, str) and p.strip() for p in every) or len(set(every)) < len(every):
        raise EvaluationError(f"{place}: a phrase is empty or occurs twice")
    if not all(is_text(t) for t in (image, *every)):
        raise EvaluationError(
            f"{place}: a phrase or the path holds half a surrogate pair; write the file anew as UTF-8"
        )
    if len(box) != 4 or not np.isfinite(box).all() or min(box[2:]) <= 0:
        raise EvaluationError(f"{place}: box {box} must be x, y, width, height with an area")
    width, height, number = (row.get(k) for k in ("width", "height", "image_id"))
    for name, value, most in (("width", width, 2**31), ("height", height, 2**31), ("image_id", number, 2**63)):
        if type(value) is int and not 0 <= value < most:
            raise EvaluationError(f"{place}: {name} is {value}; it must be from 0 to {most - 1}")
    size = (width, height) if type(width) is int and type(height) is int else (UNKNOWN, UNKNOWN)
    found = PhraseBox(image, box, every, number if type(number) is int else NONE, *size, place, subset)
    if size[0] != UNKNOWN and not _inside(found, *size):
        raise EvaluationError(f"{place}: box {box} lies outside its image of {size[0]}x{size[1]} pixels")
    return found


def _inside(row: PhraseBox, width: int, height: int) -> bool:
    """Whether some of the box is in the image."""
    x, y, w, h = row.box
    return min(x + w, width) - max(x, 0) > 0 and min(y + h, height) - max(y, 0) > 0


def read_files(files: Mapping[str, str], negatives: int | None) -> list[PhraseBox]:
    """All rows of several files by the names of their subsets. Raises: EvaluationError."""
    return [row for name, path in files.items() for row in read_phrases(path, negatives=negatives, subset=name)]


def digest(rows: Sequence[PhraseBox]) -> str:
    """Of what decides about figures; not of where the files lie."""
    return fingerprint([[r.subset, r.image, r.image_id, r.width, r.height, *r.box, *r.phrases] for r in rows])


def put_phrases(store: Store, rows: Sequence[PhraseBox]) -> str:
    """Write the rows for the workers, where they are not yet. Returns the file's name in the run."""
    name = f"{FOLDER}/boxes-{digest(rows)}.parquet"
    if not store.exists(name):
        columns = {field.name: pa.array([_plain(getattr(r, field.name)) for r in rows], field.type) for field in TABLE}
        store.put(name, sidecar.to_bytes(pa.table(columns, schema=TABLE)))
    return name


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


class AskedBoxes:
    """The rows of annotations by image, for a worker."""

    def __init__(self, store: Store, name: str) -> None:
        table = sidecar.from_bytes(store.read(name), store.path(name), TABLE)
        rows: list[dict[str, Any]] = table.to_pylist()
        self.rows = [PhraseBox(**(row | {"box": tuple(row["box"]), "phrases": tuple(row["phrases"])})) for row in rows]
        self._by_id: dict[int, list[int]] = {}
        paths: dict[str, list[int]] = {}
        for n, row in enumerate(self.rows):
            if row.image_id != NONE:
                self._by_id.setdefault(row.image_id, []).append(n)
            paths.setdefault(row.image, []).append(n)
        self._paths, self._names = list(paths.values()), ImageNames(list(paths))

    def of(self, key: str, members: Mapping[str, bytes]) -> list[int]:
        """The rows of a sample: of the `image_id` in its .json, else of the file that its key names.

        Raises: DecodeError when its .json cannot be read; EvaluationError when its key names two files.
        """
        given = decode_json(members["json"]).get("image_id") if "json" in members else None
        if type(given) is int and self._by_id:
            return self._by_id.get(given, [])
        at = self._names.find(key)
        return [] if at is None else self._paths[at]

    def asked(self, key: str, members: Mapping[str, bytes]) -> bool:
        """Whether the sample is decoded. One whose .json is damaged is, so that it is named."""
        try:
            return bool(self.of(key, members))
        except DecodeError:
            return True
