"""COCO JSON: the images of the captions files, their captions as text, and boxes of the instances files.

The .txt has all captions of an image, one a line, in order of their ids. The .json has image_id, file_name, width, height,
license and, where instances are given, boxes ([[x1, y1, x2, y2], ...] in pixels), categories (names) and crowd (0 or 1),
one entry a box. Boxes are not written as a `truth` sidecar: its attributes are numbers of a vocabulary, which packing
has not. The files are parsed whole: about five bytes of memory for each of theirs, segmentations dropped as they are met.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from shards.errors import VillaError
from shards.plan import Row
from shards.sources.base import folder_given, shown, unsafe_path
from shards.sources.names import Names


@dataclass
class CocoSource:
    """files: COCO JSON files, at least one of them with captions. root: the folder of the images."""

    root: str
    files: tuple[str, ...]
    kind: str = "coco"
    warnings: list[str] = field(default_factory=list)

    @classmethod
    def open(cls, files: tuple[str, ...], images: str) -> CocoSource:
        for path in files:
            if not os.path.isfile(path):
                raise VillaError(f"COCO file {path!r} does not exist or is no file")
        return cls(folder_given(images, "images folder"), tuple(os.path.realpath(f) for f in files))

    def claim(self) -> dict[str, Any]:
        digests = {}
        for path in self.files:
            digest = hashlib.sha256()
            with open(path, "rb") as file:
                for chunk in iter(lambda: file.read(1 << 20), b""):
                    digest.update(chunk)
            digests[path] = digest.hexdigest()
        return {"kind": self.kind, "place": self.root, "coco": digests}

    def rows(self) -> Iterator[Row]:
        self.warnings.clear()
        coco = _Joined()
        for path in self.files:
            coco.add(path, _load(path))
        if not coco.images:
            raise VillaError(
                f"{', '.join(self.files)}: no annotation has a caption; give the captions file with --coco"
            )
        present = 0
        for row in coco.rows(self.root):
            present += row.refused != "unreadable_file"
            yield row
        if not present:
            example = shown(str(next(iter(coco.images.values())).get("file_name")))
            raise VillaError(
                f"none of the {len(coco.images)} images that {self.files[0]} names is in {self.root} (such as {example}); "
                "point --images at their folder"
            )
        self.warnings += coco.warnings()


class _Joined:
    """What COCO files say of their images, joined by image id."""

    def __init__(self) -> None:
        self.images: dict[int, dict[str, Any]] = {}  # of files with captions
        self.source: dict[int, str] = {}
        self.captions: dict[int, list[tuple[int, str]]] = {}
        self.boxes: dict[int, list[tuple[list[float], str, int]]] = {}
        self.others: set[int] = set()  # images of files without captions
        self.has_boxes = False
        self.repeated: list[tuple[str, dict[str, Any]]] = []
        self.bad_boxes = 0

    def add(self, path: str, data: dict[str, Any]) -> None:
        annotations = data["annotations"]
        if any("caption" in a for a in annotations):
            for image in data["images"]:
                self._add_image(path, image)
        else:
            self.others |= {i["id"] for i in data["images"]}
        categories = data.get("categories") or []
        names = {str(c.get("id")): str(c.get("name")) for c in categories if isinstance(c, dict)}
        for at, annotation in enumerate(annotations):
            image = annotation.get("image_id")
            if not isinstance(image, int):
                continue
            if isinstance(annotation.get("caption"), str) and annotation["caption"].strip():
                number = annotation.get("id")
                text = (number if isinstance(number, int) else at, " ".join(annotation["caption"].split()))
                self.captions.setdefault(image, []).append(text)
            if "bbox" in annotation:
                self.has_boxes = True
                self._add_box(image, annotation, names)

    def _add_image(self, path: str, image: dict[str, Any]) -> None:
        known = self.images.get(image["id"])
        if known is None:
            self.images[image["id"]], self.source[image["id"]] = image, path
        elif self.source[image["id"]] == path or known.get("file_name") != image.get("file_name"):
            self.repeated.append((path, image))

    def _add_box(self, image: int, annotation: dict[str, Any], names: dict[str, str]) -> None:
        box = annotation["bbox"]
        good = isinstance(box, list) and len(box) == 4 and all(isinstance(v, int | float) for v in box)
        if not good or not all(math.isfinite(v) for v in box) or box[2] <= 0 or box[3] <= 0:
            self.bad_boxes += 1
            return
        corners = [round(float(v), 4) for v in (box[0], box[1], box[0] + box[2], box[1] + box[3])]
        category = str(annotation.get("category_id"))
        crowd = int(annotation.get("iscrowd") == 1)
        self.boxes.setdefault(image, []).append((corners, names.get(category, category), crowd))

    def rows(self, root: str) -> Iterator[Row]:
        names, seen = Names(), set()
        for number, image in self.images.items():
            name = str(image.get("file_name", ""))
            key = names.give(name.rpartition(".")[0] or name or str(number))
            row = self._row(root, number, image, key)
            if name in seen and not row.refused:
                row = _refused(row, "duplicate_key", "an earlier image has the same file_name")
            seen.add(name)
            yield row
        for path, image in self.repeated:
            name = str(image.get("file_name", ""))
            row = Row(
                "file", names.give(name.rpartition(".")[0] or name or str(image["id"])), _plain(name),
                source=os.path.basename(path), member=_plain(name), row=image["id"],
            )  # fmt: skip
            yield _refused(row, "duplicate_key", f"an earlier image has the id {image['id']} too")

    def _row(self, root: str, number: int, image: dict[str, Any], key: str) -> Row:
        name = str(image.get("file_name", ""))
        row = Row(
            "file", key, _plain(name), source=os.path.basename(self.source[number]), member=_plain(name), row=number
        )
        trouble = unsafe_path(name)
        if trouble:
            return _refused(row, "unsafe_path", f"file_name {shown(name)!r}: {trouble}")
        try:
            size = os.stat(os.path.join(root, name)).st_size
        except OSError as error:
            return _refused(row, "unreadable_file", f"{shown(name)}: {error.strerror}")
        captions = [text for _, text in sorted(self.captions.get(number, []))]
        if not captions:
            return _refused(row, "no_text", "no caption")
        text, meta = "\n".join(captions).encode("utf-8", "replace"), self._meta(number, image)
        size += len(text) + len(meta)
        return Row("file", key, name, txt=text, meta=meta, source=row.source, member=name, row=number, size=size)

    def _meta(self, number: int, image: dict[str, Any]) -> bytes:
        kept = {k: image[k] for k in ("file_name", "width", "height", "license") if image.get(k) is not None}
        boxes = self.boxes.get(number, [])
        if self.has_boxes:
            corners, categories, crowd = ([list(part) for part in zip(*boxes, strict=True)]) if boxes else ([], [], [])
            kept.update(boxes=corners, categories=categories, crowd=crowd)
        return json.dumps({"image_id": number, **kept}).encode()

    def warnings(self) -> list[str]:
        lines = []
        others = len(self.others - set(self.images))
        if others:
            lines.append(f"{others} images are in no captions file and were left out")
        strangers = len(set(self.captions) - set(self.images))
        if strangers:
            lines.append(f"captions of {strangers} image ids that no file lists were left out")
        if self.bad_boxes:
            lines.append(f"{self.bad_boxes} boxes without width or height, or that are no boxes, were left out")
        return lines


def _refused(row: Row, reason: str, detail: str) -> Row:
    return Row(
        "file", row.key, row.file, source=row.source, member=row.member, row=row.row, refused=reason, detail=detail
    )


def _plain(name: str) -> str:
    return shown(name, 4096)


def _load(path: str) -> dict[str, Any]:
    try:
        with open(path, "rb") as file:
            data = json.load(file, object_hook=_without_segmentation)
    except (ValueError, RecursionError, OSError) as error:
        raise VillaError(f"COCO file {path} is not readable as JSON: {error}") from error
    missing = [
        name
        for name in ("images", "annotations")
        if not isinstance(data, dict)
        or not isinstance(data.get(name), list)
        or not all(isinstance(entry, dict) for entry in data[name])
    ]
    if missing:
        found = f"its keys are {shown(', '.join(map(str, data)))}" if isinstance(data, dict) else "it is no object"
        raise VillaError(f"{path} is no COCO file: it has no list of {' and '.join(missing)} ({found})")
    bad = next((i for i in data["images"] if type(i.get("id")) is not int or abs(i["id"]) >= 1 << 63), None)
    if bad is not None:
        raise VillaError(f"{path} is no COCO file: an image's id is no whole number: {shown(json.dumps(bad))}")
    return data


def _without_segmentation(value: dict[str, Any]) -> dict[str, Any]:
    value.pop("segmentation", None)
    return value
