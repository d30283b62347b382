"""Recall@K between whole images and whole texts as a part of a run. Equal texts are one, right for each of its images."""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Int

from villa_dist.config import Config
from villa_dist.evaluate.bootstrap import per_image
from villa_dist.evaluate.figures import Figures, Mean, rounded, together
from villa_dist.evaluate.models_measured import rows
from villa_dist.evaluate.recall import recall_at, recall_by_chance
from villa_dist.evaluate.whole import Whole, drawn, drawn_warning, images_of, read_whole

WAYS = ("i2t", "t2i")  # image to text, text to image


def recall(config: Config, split: str) -> dict[str, Any]:
    """Of every model, from the sidecars of `whole`. Units are images (i2t) and distinct texts (t2i). Raises: VillaError."""
    ks, most = sorted(set(config.evaluate.recall)), config.evaluate.recall_images
    models = rows(config)
    total = images_of(config, split, models[0].name)
    chosen = drawn(total, most)
    found: dict[str, Figures] = {}
    for row in models:
        found[row.name], text_of = _measured(config, split, row.name, chosen, ks)
    return {
        "images": len(text_of),
        "texts": int(text_of.max()) + 1,
        "warnings": drawn_warning(total, most, "images", "recall is higher"),
        "chance": chance(text_of, ks),
        **together(found, config.evaluate.bootstrap),
    }


def _measured(
    config: Config, split: str, row: str, chosen: Int[np.ndarray, " N"], ks: list[int]
) -> tuple[Figures, Int[np.ndarray, " N"]]:
    """(figures, text_of). The arrays on disk are gone before those of the next model are made."""
    whole = read_whole(config, split, row, chosen)
    return figures(whole, ks), whole.text_of


def chance(text_of: Int[np.ndarray, " N"], ks: list[int]) -> dict[str, float | None]:
    """What random scores reach on average, in percent, by the names of `figures`: that of all images (or distinct texts) in
    random order one of the right ones is among the first k. text_of: of each image, the row of its text."""
    right_images = np.bincount(text_of)
    sides = ((np.ones(len(text_of), np.int64), len(right_images)), (right_images, len(text_of)))
    found: dict[str, float | None] = {}
    for way, (right, targets) in zip(WAYS, sides, strict=True):
        found |= {f"{way}@{k}": rounded(float(recall_by_chance(right, targets, k).mean())) for k in ks}
    return found


def figures(whole: Whole, ks: list[int]) -> Figures:
    """`i2t@k` and `t2i@k`. Raises: EvaluationError when an embedding is not finite."""
    image = np.arange(len(whole.image))
    sides = ((whole.image, whole.text, image, whole.text_of), (whole.text, whole.image, whole.text_of, image))
    made: dict[str, Mean | float] = {}
    for way, side in zip(WAYS, sides, strict=True):
        by_query = recall_at(*side, ks=ks).by_query
        units = np.arange(len(by_query))
        made |= {f"{way}@{k}": Mean(per_image(by_query[:, n], units, len(units))) for n, k in enumerate(ks)}
    return made
