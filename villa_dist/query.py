"""Asking a model where in an image a text is: proposals, scored and ranked by each text, to draw and to write down.

Letters: R regions, T texts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import shorten
from typing import Any

import numpy as np
from jaxtyping import Float, Int, UInt8

from shards.decode import IMAGE_SUFFIXES
from shards.errors import VillaError
from villa_dist.api import RegionVLM, pixels_of
from villa_dist.config import RegionsConfig
from villa_dist.regions.proposals import Photo, Proposer, regions_of
from villa_dist.sample_view import Region, View

SHOWN = 34  # letters of a text in the picture
PROPOSALS = ("segments", "grid", "hf:PATH")


@dataclass(frozen=True)
class Answer:
    """What a model says of one image. boxes: xyxy in pixels. whole_T: cosines of the whole image with each text."""

    pixels: UInt8[np.ndarray, "H W 3"]
    texts: tuple[str, ...]
    boxes: Float[np.ndarray, "R 4"]
    objectness: Float[np.ndarray, " R"]
    score_RT: Float[np.ndarray, "R T"]
    whole_T: Float[np.ndarray, " T"]

    def ranked(self, text: int) -> Int[np.ndarray, " R"]:
        """Regions by their score for a text, best first."""
        return np.argsort(-self.score_RT[:, text], kind="stable")


def regions_config(proposals: str) -> RegionsConfig:
    """The config of `--proposals`. Raises: VillaError for one that is not known."""
    kind, _, model = proposals.partition(":")
    if kind == "hf" and model:
        return RegionsConfig.model_validate({"proposals": "hf", "hf": {"model": model}})
    if proposals in ("segments", "grid"):
        return RegionsConfig(proposals=proposals)  # type: ignore[arg-type]
    raise VillaError(f"--proposals {proposals!r} is none of {', '.join(PROPOSALS)} (a detector's folder or hub id)")


def split_arguments(values: Sequence[str]) -> tuple[list[str], list[str]]:
    """(images, texts): what is a file, or is named like an image, is an image; the rest are texts.

    Raises: VillaError for an image that is not there.
    """
    images, texts = [], []
    for value in values:
        if _is_file(value):
            images.append(value)
        elif value.lower().endswith(tuple(f".{s}" for s in IMAGE_SUFFIXES)) and " " not in value:
            raise VillaError(f"image {value} does not exist; a text that ends so is given by --text")
        elif value.strip():
            texts.append(value)
    return images, texts


def _is_file(value: str) -> bool:
    try:
        return Path(value).is_file()
    except (OSError, ValueError):  # too long for a name, as a sentence may be, or with a NUL
        return False


def ask(model: RegionVLM, proposer: Proposer, config: RegionsConfig, image: str, texts: Sequence[str]) -> Answer:
    """Raises: VillaError when the image cannot be read."""
    pixels = pixels_of(image)
    height, width = pixels.shape[:2]
    regions = regions_of(proposer, config, [Photo(image, width, height, pixels)])[0].regions
    text_TD = model.embed_text(list(texts))
    score_RT = model.embed_regions(pixels, regions.boxes) @ text_TD.T
    whole_T = (model.embed_image(pixels) @ text_TD.T)[0]
    return Answer(
        pixels, tuple(texts), regions.boxes, regions.objectness, score_RT.cpu().numpy(), whole_T.cpu().numpy()
    )


def view(answer: Answer, name: str, top: int) -> View:
    """The `top` regions of each text, to be drawn in its colour: those of the first text, then what the others add."""
    best_TK = [[int(r) for r in answer.ranked(t)[:top]] for t in range(len(answer.texts))]
    order = list(dict.fromkeys(r for rows in best_TK for r in rows))
    drawn = []
    for r in order:
        by = [t for t, rows in enumerate(best_TK) if r in rows]
        marks = [(shorten(answer.texts[t], SHOWN, placeholder="…"), float(answer.score_RT[r, t])) for t in by]
        x1, y1, x2, y2 = (float(v) for v in answer.boxes[r])
        drawn.append(Region((x1, y1, x2, y2), tuple(marks), marks[0][1], by[0]))
    said = [
        f"{shorten(text, SHOWN, placeholder='…')}: {', '.join(str(order.index(r) + 1) for r in rows)}"
        for text, rows in zip(answer.texts, best_TK, strict=True)
    ]
    legend = f"Best first: {'; '.join(said)}. Scores are cosines." if order else "No regions were proposed."
    return View(name, name, f"best of {len(answer.boxes)} regions", answer.pixels, legend, tuple(drawn))


def as_json(answer: Answer, image: str, proposals: str) -> dict[str, Any]:
    """All regions of each text, best first; scores are cosines."""
    height, width = answer.pixels.shape[:2]
    texts = []
    for t, text in enumerate(answer.texts):
        regions = [
            {
                "box": [round(float(v), 2) for v in answer.boxes[r]],
                "score": round(float(answer.score_RT[r, t]), 6),
                "objectness": round(float(answer.objectness[r]), 6),
            }
            for r in answer.ranked(t)
        ]
        texts.append({"text": text, "whole_image": round(float(answer.whole_T[t]), 6), "regions": regions})
    return {"image": image, "width": width, "height": height, "proposals": proposals, "texts": texts}


def names(images: Sequence[str]) -> list[str]:
    """A file name for each image: its own without the suffix, numbered where two are alike."""
    found: list[str] = []
    for image in images:
        stem = Path(image).stem
        name, n = stem, 2
        while name in found:
            name, n = f"{stem}-{n}", n + 1
        found.append(name)
    return found
