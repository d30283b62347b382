"""Backends that propose regions for an image."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np
from jaxtyping import Float

from villa_dist.config import RegionsConfig
from villa_dist.types import RegionSet


class Proposals(Protocol):
    """given: the boxes a `truth` sidecar has for the image, where there is one."""

    def __call__(self, height: int, width: int, given: Float[np.ndarray, "R 4"] | None) -> RegionSet: ...


class GridProposals:
    """Cells of a grid over the image."""

    def __init__(self, config: RegionsConfig) -> None:
        self.rows, self.columns = config.grid

    def __call__(self, height: int, width: int, given: Float[np.ndarray, "R 4"] | None) -> RegionSet:
        y = np.linspace(0, height, self.rows + 1)
        x = np.linspace(0, width, self.columns + 1)
        cells = [(x[c], y[r], x[c + 1], y[r + 1]) for r in range(self.rows) for c in range(self.columns)]
        return RegionSet(np.asarray(cells, np.float32), np.ones(len(cells), np.float32))


class AnnotationProposals:
    """Boxes that are given with the data."""

    def __init__(self, config: RegionsConfig) -> None:
        pass

    def __call__(self, height: int, width: int, given: Float[np.ndarray, "R 4"] | None) -> RegionSet:
        boxes = np.zeros((0, 4), np.float32) if given is None else given.astype(np.float32)
        return RegionSet(boxes, np.ones(len(boxes), np.float32))


BACKENDS: dict[str, Callable[[RegionsConfig], Proposals]] = {
    "grid": GridProposals,
    "annotations": AnnotationProposals,
}
