"""Detections and truth as columns: checks, the cap on detections an image, one order, shards by category.

Letters: I images, C categories, G true boxes, N detections. Boxes are COCO's: x, y, width, height in pixels.

What an engine makes of equal scores depends on the order of its input, so there is one order: by category, image,
falling score, then the larger box, then y, x, width, height (`ties="box"`). Whatever order rows came in, an engine sees
the same. `ties="input"` leaves equal scores as they came, which is what the COCO and LVIS tools do: their figures on
one file, to the last digit, and another figure on the same rows shuffled. Between images of equal score the lower image
id comes first in both, as in those tools.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from villa_dist.evaluate.errors import EvaluationError

FREQUENCIES = ("r", "c", "f")


@dataclass(frozen=True)
class Detections:
    """What a detector says; row n: a box of `category[n]` in `image[n]`. Ids are those of the truth."""

    image: Int[np.ndarray, " N"]
    category: Int[np.ndarray, " N"]
    box: Float[np.ndarray, "N 4"]
    score: Float[np.ndarray, " N"]

    def __len__(self) -> int:
        return len(self.image)

    def take(self, rows: np.ndarray) -> Detections:
        return Detections(self.image[rows], self.category[rows], self.box[rows], self.score[rows])

    @classmethod
    def none(cls) -> Detections:
        return cls(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros((0, 4)), np.zeros(0))

    @classmethod
    def join(cls, parts: Sequence[Detections]) -> Detections:
        """Detections of several shards as one."""
        columns = ("image", "category", "box", "score")
        return cls(*(np.concatenate([getattr(p, c) for p in parts]) for c in columns)) if parts else cls.none()


@dataclass(frozen=True)
class Truth:
    """What is there. `frequency`, `negative` and `not_exhaustive` are LVIS', None where a truth has none.

    negative, not_exhaustive: (image, category) rows. LVIS knows a category to be absent only where it is negative, and
    takes an unmatched detection for no mistake where it is not exhaustive.
    """

    images: Int[np.ndarray, " I"]  # ascending
    categories: Int[np.ndarray, " C"]  # ascending
    names: tuple[str, ...]
    image: Int[np.ndarray, " G"]
    category: Int[np.ndarray, " G"]
    box: Float[np.ndarray, "G 4"]
    area: Float[np.ndarray, " G"]
    crowd: Bool[np.ndarray, " G"]
    frequency: tuple[str, ...] | None = None
    negative: Int[np.ndarray, "K 2"] | None = None
    not_exhaustive: Int[np.ndarray, "M 2"] | None = None

    def take(self, rows: np.ndarray) -> Truth:
        """The same images and categories with some of the true boxes."""
        columns = ("image", "category", "box", "area", "crowd")
        return replace(self, **{c: getattr(self, c)[rows] for c in columns})

    def only(self, categories: np.ndarray, *, drop_empty_images: bool = False) -> Truth:
        """The truth of some categories: COCO's 65 of 80, or one shard.

        drop_empty_images: leave out images without a box of these categories, as the 4,836-image cut of val2017 that
        open-vocabulary papers report on does. Otherwise detections there are mistakes.

        Raises: EvaluationError for an id the truth does not have.
        """
        chosen = np.unique(np.asarray(categories, np.int64))
        unknown = chosen[~np.isin(chosen, self.categories)]
        if len(unknown):
            raise EvaluationError(f"category {unknown[0]} is not in the truth; it has {_span(self.categories)}")
        at = np.searchsorted(self.categories, chosen)
        part = self.take(np.isin(self.category, chosen))
        return replace(
            part,
            images=np.unique(part.image) if drop_empty_images else self.images,
            categories=chosen,
            names=tuple(self.names[i] for i in at),
            frequency=None if self.frequency is None else tuple(self.frequency[i] for i in at),
            negative=_of(self.negative, chosen),
            not_exhaustive=_of(self.not_exhaustive, chosen),
        )


def _of(pairs: np.ndarray | None, categories: np.ndarray) -> np.ndarray | None:
    return None if pairs is None else pairs[np.isin(pairs[:, 1], categories)]


def _span(ids: np.ndarray) -> str:
    return f"{len(ids)} ids, {ids.min()} to {ids.max()}" if len(ids) else "none"


def check(truth: Truth, detections: Detections) -> None:
    """Refuse what would make the metric mean nothing; the first bad row is named.

    Raises: EvaluationError for columns of unequal length, NaN or infinity in a box or score (NaN boxes *raise* LVIS'
    AP), a negative width or height, and an image or category the truth does not know.
    """
    n = len(detections.image)
    shapes = {"category": (n,), "box": (n, 4), "score": (n,)}
    for name, shape in shapes.items():
        if getattr(detections, name).shape != shape:
            found = getattr(detections, name).shape
            raise EvaluationError(f"detections of {n} rows have a {name} column of shape {found}; it must be {shape}")
    _first(detections, ~np.isfinite(detections.box).all(axis=1), "box", "a box must be four finite numbers")
    _first(detections, ~np.isfinite(detections.score), "score", "a score must be a finite number")
    _first(
        detections, (detections.box[:, 2:] < 0).any(1), "box", "a width or height is negative (boxes are x, y, w, h)"
    )
    known = _span(truth.images)
    _first(detections, ~np.isin(detections.image, truth.images), "image", f"no such image in the truth ({known})")
    known = _span(truth.categories)
    _first(detections, ~np.isin(detections.category, truth.categories), "category", f"not in the truth ({known})")


def _first(detections: Detections, bad: Any, column: str, why: str) -> None:
    if not bad.any():
        return
    row = int(np.argmax(bad))
    value = np.asarray(getattr(detections, column)[row]).tolist()
    where = f"image {detections.image[row]}, category {detections.category[row]}"
    more = f"; {int(bad.sum())} rows are like it" if bad.sum() > 1 else ""
    raise EvaluationError(f"detection {row} ({where}): {column} {value}: {why}{more}")


def _tie_keys(box: np.ndarray, ties: str) -> tuple[np.ndarray, ...]:
    """Keys for np.lexsort, least significant first."""
    if ties == "input":
        return (np.arange(len(box)),)
    if ties != "box":
        raise EvaluationError(f"ties is {ties!r}; it must be box (any input order gives one result) or input")
    x, y, w, h = box.T
    return h, w, x, y, -w * h


def capped(detections: Detections, per_image: int, *, ties: str = "box") -> Detections:
    """The `per_image` best detections of every image, over all categories together.

    Engines cap per category, or not at all; detectors and LVIS cap the image. Of equal scores at the cut the lower
    category stays, then the larger box (or, with ties="input", the earlier row).
    """
    if per_image < 1:
        raise EvaluationError(f"per_image is {per_image}; it must be at least 1, or None for no cap")
    category = (detections.category,) if ties == "box" else ()
    order = np.lexsort((*_tie_keys(detections.box, ties), *category, -detections.score, detections.image))
    image = detections.image[order]
    start = np.flatnonzero(np.diff(image, prepend=image[:1] - 1)) if len(image) else np.zeros(0, np.int64)
    rank = np.arange(len(image)) - np.repeat(start, np.diff(start, append=len(image)))
    return detections.take(order[rank < per_image])


def prepared(
    truth: Truth, detections: Detections, per_image: int | None, *, ties: str = "box"
) -> tuple[Truth, Detections]:
    """Checked, capped and in the one order: what engines take, and what `split` may cut up."""
    check(truth, detections)
    if per_image is not None:
        detections = capped(detections, per_image, ties=ties)
    keys = _tie_keys(detections.box, ties)
    rows = np.lexsort((*keys, -detections.score, detections.image, detections.category))
    more = (truth.crowd, truth.area) if ties == "box" else ()
    true = np.lexsort((*more, *_tie_keys(truth.box, ties), truth.image, truth.category))
    return truth.take(true), detections.take(rows)


def split(truth: Truth, detections: Detections, parts: int) -> list[tuple[Truth, Detections]]:
    """Up to `parts` shards of whole categories, about equal in rows. Average precision is a category's own affair, so
    `average_precision.merge` of the shards' tables equals the table of the whole, bit for bit.

    Give it what `prepared` returns: the cap on an image must come before the cut.
    """
    if parts < 1:
        raise EvaluationError(f"parts is {parts}; it must be at least 1")
    at = np.searchsorted(truth.categories, np.concatenate([truth.category, detections.category]))
    rows = np.bincount(at, minlength=len(truth.categories))
    load = np.zeros(min(parts, len(truth.categories)), np.int64)
    owner = np.zeros(len(rows), np.int64)
    for c in np.argsort(-rows, kind="stable"):  # the largest first, each to the lightest shard
        owner[c] = np.argmin(load)
        load[owner[c]] += rows[c] + 1
    chosen = [truth.categories[owner == part] for part in range(len(load))]
    return [(truth.only(c), detections.take(np.isin(detections.category, c))) for c in chosen]
