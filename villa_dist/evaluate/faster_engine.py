"""faster-coco-eval as an engine, one category at a time.

The library lists every image for every category (20,000 x 1,203 on LVIS) and converts each pair. Given one category it
is asked only about images that have a box or a detection of it, which changes no figure and is several times faster.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from villa_dist.evaluate.average_precision import PrecisionTable
from villa_dist.evaluate.detection import Detections, Truth
from villa_dist.evaluate.errors import EvaluationError


class _Category:
    """What the library asks of a COCO object, answered for one category, whose id is 1."""

    def __init__(self, rows: list[dict[str, Any]], images: list[dict[str, Any]]) -> None:
        self.rows, self.images = rows, images

    def getImgIds(self) -> list[int]:
        return [i["id"] for i in self.images]

    def getCatIds(self) -> list[int]:
        return [1]

    def getAnnIds(self, imgIds: Any = None, catIds: Any = None) -> range:
        return range(len(self.rows))

    def loadAnns(self, ids: Any) -> list[dict[str, Any]]:
        return self.rows

    def load_imgs(self, ids: Any) -> list[dict[str, Any]]:
        return self.images

    def load_cats(self, ids: Any) -> list[dict[str, Any]]:
        return [{"id": 1, "frequency": "f"}]


def faster_table(truth: Truth, detections: Detections, *, per_category: int, lvis: bool) -> PrecisionTable:
    """Average precision of every category of the truth.

    truth, detections: in the order of `detection.prepared`. per_category: the engine's own cap on detections of a
    category in an image. lvis: unmatched detections of not exhaustive pairs count for nothing.

    Raises: EvaluationError when the package is missing.
    """
    try:
        from faster_coco_eval.core.faster_eval_api import COCOeval_faster  # type: ignore[import-untyped,import-not-found]
    except ImportError:
        raise EvaluationError(
            "engine faster-coco-eval needs that package: pip install it, or use engine fast"
        ) from None

    precision = np.full((len(truth.categories), 4, 10), np.nan)
    recall = np.full((len(truth.categories), 4, 10), np.nan)
    true_at = np.searchsorted(truth.category, np.append(truth.categories, np.iinfo(np.int64).max))
    found_at = np.searchsorted(detections.category, np.append(truth.categories, np.iinfo(np.int64).max))
    for c, category in enumerate(truth.categories):
        true, found = slice(true_at[c], true_at[c + 1]), slice(found_at[c], found_at[c + 1])
        if true.start == true.stop:
            continue
        images = np.union1d(truth.image[true], detections.image[found])
        loose = _loose(truth, category) if lvis else set()
        known = [
            {"id": n, "neg_category_ids": [1], "not_exhaustive_category_ids": [1] if i in loose else []}
            for n, i in enumerate(images.tolist())
        ]
        gt = _Category(_true_rows(truth, true, images), known)
        dt = _Category(_found_rows(detections, found, images), known)
        engine = COCOeval_faster(gt, dt, "bbox", lvis_style=lvis)
        engine.params.maxDets = [per_category]
        engine.evaluate()
        engine.accumulate()
        p, r = engine.eval["precision"][:, :, 0, :, 0], engine.eval["recall"][:, 0, :, 0]
        precision[c] = np.where(p[:, 0] < 0, np.nan, p.mean(1)).T
        recall[c] = np.where(r < 0, np.nan, r).T
    return PrecisionTable(truth.categories, precision, recall)


def _loose(truth: Truth, category: int) -> set[int]:
    pairs = truth.not_exhaustive
    return set() if pairs is None else set(pairs[pairs[:, 1] == category, 0].tolist())


def _true_rows(truth: Truth, rows: slice, images: np.ndarray) -> list[dict[str, Any]]:
    image = np.searchsorted(images, truth.image[rows]).tolist()
    columns = (image, truth.box[rows].tolist(), truth.area[rows].tolist(), truth.crowd[rows].tolist())
    return [
        {"id": n, "image_id": i, "category_id": 1, "bbox": b, "area": a, "iscrowd": int(k)}
        for n, (i, b, a, k) in enumerate(zip(*columns, strict=True), 1)  # from 1: an id of 0 means "unmatched"
    ]


def _found_rows(detections: Detections, rows: slice, images: np.ndarray) -> list[dict[str, Any]]:
    box = detections.box[rows]
    image = np.searchsorted(images, detections.image[rows]).tolist()
    columns = (image, box.tolist(), (box[:, 2] * box[:, 3]).tolist(), detections.score[rows].tolist())
    return [
        {"id": n, "image_id": i, "category_id": 1, "bbox": b, "area": a, "score": s}
        for n, (i, b, a, s) in enumerate(zip(*columns, strict=True), 1)
    ]
