"""Cells of one or several grids over the image."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from villa_dist.config import RegionsConfig
from villa_dist.regions.proposals import Photo
from villa_dist.types import RegionSet


class GridProposer:
    needs_pixels = False
    ranked = False

    def __init__(self, config: RegionsConfig) -> None:
        self.rows, self.columns = config.grid
        self.levels = config.grid_levels

    def propose(self, photos: Sequence[Photo]) -> list[RegionSet]:
        found = []
        for photo in photos:
            levels = [
                cells(photo.width, photo.height, self.rows << level, self.columns << level)
                for level in range(self.levels)
            ]
            boxes = np.concatenate(levels)
            found.append(RegionSet(boxes, np.ones(len(boxes), np.float32)))
        return found


def cells(width: int, height: int, rows: int, columns: int) -> Float[np.ndarray, "R 4"]:
    """The cells of a grid, row by row; each has a positive size however small the image."""
    y = np.linspace(0, height, rows + 1)
    x = np.linspace(0, width, columns + 1)
    corners = [(x[c], y[r], x[c + 1], y[r + 1]) for r in range(rows) for c in range(columns)]
    return np.asarray(corners, np.float32)
