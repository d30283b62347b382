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
    ks, most = sorted(set(config.evaluate.recall)), config.evaluate.recall_images
    found, sizes, warnings = {}, (0, 0), []
    for row in rows(config):
        every = read_whole(config, split, row.name)
        whole = drawn(every, most)
        found[row.name], sizes = figures(whole, ks), (len(whole.image), len(whole.text))
        if len(whole.image) < len(every.image):
            warnings = [
                f"of {len(every.image):,} images {most:,} were drawn, the same for all models; recall among fewer is higher "
                "(evaluate.recall_images)"
            ]
    return {"images": sizes[0], "texts": sizes[1], "warnings": warnings, **together(found, config.evaluate.bootstrap)}


def drawn(whole: Whole, most: int) -> Whole:
    """So many of its images, with their texts: which ones depends on their number alone, not on the model."""
    if len(whole.image) <= most:
        return whole
    kept = np.sort(np.random.default_rng(0).choice(len(whole.image), most, replace=False))
    texts, text_of = np.unique(whole.text_of[kept], return_inverse=True)
    keys, classes = ([every[n] for n in kept] for every in (whole.keys, whole.classes))
    return Whole(whole.image[kept], whole.text[texts], text_of, keys, classes)


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
