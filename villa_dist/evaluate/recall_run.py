"""Recall@K between whole images and whole texts as a part of a run. Equal texts are one, right for each of its images."""

from __future__ import annotations

from typing import Any

import numpy as np

from villa_dist.config import Config
from villa_dist.evaluate.bootstrap import per_image
from villa_dist.evaluate.figures import Figures, Mean, together
from villa_dist.evaluate.models_measured import rows
from villa_dist.evaluate.recall import recall_at
from villa_dist.evaluate.whole import Whole, read_whole

WAYS = ("i2t", "t2i")  # image to text, text to image


def recall(config: Config, split: str) -> dict[str, Any]:
    """Of every model, from the sidecars of `whole`. Units are images (i2t) and distinct texts (t2i). Raises: VillaError."""
    ks = sorted(set(config.evaluate.recall))
    found, sizes = {}, (0, 0)
    for row in rows(config):
        whole = read_whole(config, split, row.name)
        found[row.name], sizes = figures(whole, ks), (len(whole.image), len(whole.text))
    return {"images": sizes[0], "texts": sizes[1], "warnings": [], **together(found, config.evaluate.bootstrap)}


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
