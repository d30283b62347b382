"""COCO's average precision of boxes, by three engines that must agree."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable
from typing import Any

import numpy as np

from villa_dist.evaluate.average_precision import AveragePrecision, PrecisionTable, empty_table, summary
from villa_dist.evaluate.detection import Detections, Truth, prepared
from villa_dist.evaluate.errors import EvaluationError
from villa_dist.evaluate.faster_engine import faster_table
from villa_dist.evaluate.matching import numpy_table

PER_CATEGORY = 100  # COCO's own cap: detections of one category in one image


def coco_average_precision(
    truth: Truth,
    detections: Detections,
    *,
    engine: str = "fast",
    per_image: int | None = None,
    ties: str = "box",
) -> AveragePrecision:
    """AP of boxes as COCO defines it, figures in [0, 1].

    per_image: keep that many detections of an image, over all categories, before anything else. None is what pycocotools
    does (it caps each category of an image at 100); RegionCLIP's and most detectors' results hold 100 an image.
    engine: `fast` (`matching`, numpy alone), `faster-coco-eval` or `official` (pycocotools). They agree to 12 digits.
    ties: what comes first of equal scores, see `detection`.

    Raises: EvaluationError, see `detection.check`.
    """
    limit = max(PER_CATEGORY, per_image or 0)
    truth, detections = prepared(truth, detections, per_image, ties=ties)
    return summary(_engine(engine)(truth, detections, limit), truth)


def coco_table(
    truth: Truth, detections: Detections, *, engine: str = "fast", per_category: int = 100
) -> PrecisionTable:
    """The table of one shard; truth and detections come from `prepared` and `split`."""
    return _engine(engine)(truth, detections, per_category)


def _engine(name: str) -> Callable[[Truth, Detections, int], PrecisionTable]:
    if name not in ENGINES:
        raise EvaluationError(f"unknown engine {name!r}; engines of COCO's AP are {', '.join(ENGINES)}")
    return ENGINES[name]


def _fast(truth: Truth, detections: Detections, limit: int) -> PrecisionTable:
    return numpy_table(truth, detections, per_category=limit, lvis=False)


def _faster(truth: Truth, detections: Detections, limit: int) -> PrecisionTable:
    return faster_table(truth, detections, per_category=limit, lvis=False)


def _official(truth: Truth, detections: Detections, limit: int) -> PrecisionTable:
    try:
        from pycocotools.coco import COCO  # type: ignore[import-untyped,import-not-found]
        from pycocotools.cocoeval import COCOeval  # type: ignore[import-untyped,import-not-found]
    except ImportError:
        raise EvaluationError(
            "engine official needs pycocotools: pip install pycocotools, or use engine fast"
        ) from None

    if not len(detections):
        return empty_table(truth)  # pycocotools cannot load an empty result
    with contextlib.redirect_stdout(io.StringIO()):  # it prints, and stdout is for results
        engine = COCOeval(_load(COCO(), truth, true_rows(truth)), _load(COCO(), truth, found_rows(detections)), "bbox")
        engine.params.maxDets = [1, 10, limit]
        engine.evaluate()
        engine.accumulate()
    return table_of(truth, engine.eval["precision"][..., -1], engine.eval["recall"][..., -1])


def _load(coco: Any, truth: Truth, rows: list[dict[str, Any]]) -> Any:
    coco.dataset = {
        "images": [{"id": i} for i in truth.images.tolist()],
        "categories": [{"id": c} for c in truth.categories.tolist()],
        "annotations": rows,
    }
    coco.createIndex()
    return coco


def table_of(truth: Truth, precision: np.ndarray, recall: np.ndarray) -> PrecisionTable:
    """precision: threshold, recall, category, area; recall: threshold, category, area; -1 for nothing to find."""
    mean = np.where(precision[:, 0] < 0, np.nan, precision.mean(1))
    return PrecisionTable(
        truth.categories, mean.transpose(1, 2, 0), np.where(recall < 0, np.nan, recall).transpose(1, 2, 0)
    )


def true_rows(truth: Truth) -> list[dict[str, Any]]:
    names = ("image_id", "category_id", "bbox", "area", "iscrowd")
    columns = (truth.image, truth.category, truth.box, truth.area, truth.crowd.astype(int))
    rows = zip(*(c.tolist() for c in columns), strict=True)
    return [{"id": n, **dict(zip(names, row, strict=True))} for n, row in enumerate(rows, 1)]


def found_rows(detections: Detections) -> list[dict[str, Any]]:
    names = ("image_id", "category_id", "bbox", "area", "score")
    area = detections.box[:, 2] * detections.box[:, 3]
    columns = (detections.image, detections.category, detections.box, area, detections.score)
    rows = zip(*(c.tolist() for c in columns), strict=True)
    return [{"id": n, "iscrowd": 0, **dict(zip(names, row, strict=True))} for n, row in enumerate(rows, 1)]


ENGINES: dict[str, Callable[[Truth, Detections, int], PrecisionTable]] = {
    "fast": _fast,
    "faster-coco-eval": _faster,
    "official": _official,
}
