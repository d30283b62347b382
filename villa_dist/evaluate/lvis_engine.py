"""LVIS' average precision of boxes, by three engines that must agree.

LVIS judges a detection only where its category is known to be there or not: it keeps the 300 best of an image, over all
categories, then drops those of categories that are neither annotated nor listed as negative in that image. It drops what
has no area, too, truth and detections, which COCO does not.
"""

from __future__ import annotations

import logging
import types
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from villa_dist.evaluate.average_precision import AveragePrecision, PrecisionTable, empty_table, summary
from villa_dist.evaluate.coco_engine import found_rows, table_of, true_rows
from villa_dist.evaluate.detection import Detections, Truth, prepared
from villa_dist.evaluate.errors import EvaluationError
from villa_dist.evaluate.faster_engine import faster_table
from villa_dist.evaluate.matching import numpy_table

PER_IMAGE = 300


def lvis_average_precision(
    truth: Truth,
    detections: Detections,
    *,
    engine: str = "fast",
    per_image: int | None = PER_IMAGE,
    ties: str = "box",
) -> AveragePrecision:
    """AP of boxes as LVIS defines it, figures in [0, 1], with APr, APc and APf.

    engine: `fast` (`matching`, numpy alone), `faster-coco-eval` or `official` (the lvis package). They agree to 12 digits.
    ties: what comes first of equal scores, see `detection`.

    Raises: EvaluationError, see `detection.check`, and for a truth that is not LVIS'.
    """
    truth, detections = lvis_prepared(truth, detections, per_image, ties=ties)
    return summary(lvis_table(truth, detections, engine=engine), truth)


def lvis_prepared(
    truth: Truth, detections: Detections, per_image: int | None, *, ties: str = "box"
) -> tuple[Truth, Detections]:
    """Checked, capped, without the detections LVIS does not judge, in the one order: what `split` may cut up.

    Raises: EvaluationError.
    """
    if truth.negative is None or truth.not_exhaustive is None or truth.frequency is None:
        raise EvaluationError(
            "no LVIS truth: every image needs neg_category_ids and not_exhaustive_category_ids, every category a "
            "frequency; COCO's files are for coco_average_precision"
        )
    truth = replace(truth, crowd=np.zeros(len(truth.image), bool))  # LVIS knows no crowds
    truth, detections = prepared(truth, detections, per_image, ties=ties)
    truth = truth.take(truth.area > 0)
    detections = detections.take(detections.box[:, 2] * detections.box[:, 3] > 0)
    assert truth.negative is not None
    known = np.concatenate([np.stack([truth.image, truth.category], 1), truth.negative])
    judged = np.isin(
        _pair(truth, detections.image, detections.category),
        _pair(truth, known[:, 0], known[:, 1]),
    )
    return truth, detections.take(judged)


def _pair(truth: Truth, image: np.ndarray, category: np.ndarray) -> np.ndarray:
    rows = np.searchsorted(truth.images, image)
    return rows * len(truth.categories) + np.searchsorted(truth.categories, category)


def lvis_table(truth: Truth, detections: Detections, *, engine: str = "fast") -> PrecisionTable:
    """The table of one shard; truth and detections come from `lvis_prepared` and `split`."""
    if engine not in ENGINES:
        raise EvaluationError(f"unknown engine {engine!r}; engines of LVIS' AP are {', '.join(ENGINES)}")
    return ENGINES[engine](truth, detections)


def _fast(truth: Truth, detections: Detections) -> PrecisionTable:
    return numpy_table(truth, detections, per_category=None, lvis=True)


def _faster(truth: Truth, detections: Detections) -> PrecisionTable:
    return faster_table(truth, detections, per_category=max(1, len(detections)), lvis=True)


def _official(truth: Truth, detections: Detections) -> PrecisionTable:
    try:
        from lvis import LVIS, LVISResults
    except ImportError as error:
        raise EvaluationError(
            f"engine official needs lvis, pycocotools and opencv ({error}): pip install them, or use engine fast"
        ) from None
    if not len(detections):
        return empty_table(truth)  # lvis cannot load an empty result

    class Given(LVIS):
        def _load_json(self, path: str) -> Any:
            return _dataset(truth)

    quiet = logging.getLogger("lvis")
    level, quiet.level = quiet.level, logging.ERROR
    try:
        given = Given("truth")
        engine = _evaluator()(given, LVISResults(given, found_rows(detections), max_dets=-1), "bbox")
        engine.evaluate()
        engine.accumulate()
    finally:
        quiet.level = level
    return table_of(truth, engine.eval["precision"], engine.eval["recall"])


def _dataset(truth: Truth) -> dict[str, Any]:
    assert truth.frequency is not None
    images = {i: {"id": i, "neg_category_ids": [], "not_exhaustive_category_ids": []} for i in truth.images.tolist()}
    for name, pairs in (("neg_category_ids", truth.negative), ("not_exhaustive_category_ids", truth.not_exhaustive)):
        assert pairs is not None
        for image, category in pairs.tolist():
            images[image][name].append(category)
    categories = zip(truth.categories.tolist(), truth.frequency, strict=True)
    return {
        "images": list(images.values()),
        "categories": [{"id": c, "frequency": f} for c, f in categories],
        "annotations": true_rows(truth),
    }


def _evaluator() -> Any:
    """lvis' own evaluator with its own code; `accumulate` finds the `np.float` that numpy dropped in 1.24."""
    import lvis.eval as module

    class OldNumpy(types.ModuleType):
        float = float

        def __getattr__(self, name: str) -> Any:
            return getattr(np, name)

    code = module.LVISEval.accumulate.__code__
    mended = types.FunctionType(code, {**vars(module), "np": OldNumpy("numpy")}, "accumulate")
    return type("LVISEval", (module.LVISEval,), {"accumulate": mended})


ENGINES: dict[str, Callable[[Truth, Detections], PrecisionTable]] = {
    "fast": _fast,
    "faster-coco-eval": _faster,
    "official": _official,
}
