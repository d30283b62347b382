"""Augmentation as a pure function of (seed, epoch, sample), so that a resumed run repeats it exactly."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, UInt8


def shift(pixels: UInt8[np.ndarray, "H W 3"], limit: int, identity: Sequence[int]) -> UInt8[np.ndarray, "H W 3"]:
    """Translate by up to `limit` pixels each way, black at the edges; boxes stay. `identity`: seed, epoch, sample."""
    if limit == 0:
        return pixels
    down, right = np.random.default_rng(list(identity)).integers(-limit, limit + 1, 2)
    padded = np.pad(pixels, ((limit, limit), (limit, limit), (0, 0)))
    height, width = pixels.shape[:2]
    return padded[limit - down : limit - down + height, limit - right : limit - right + width]


TURNS = 8  # quarter turns and their mirror images


def turned(
    pixels: UInt8[np.ndarray, "H W 3"], boxes: Float[np.ndarray, "R 4"], turn: int
) -> tuple[UInt8[np.ndarray, "h w 3"], Float[np.ndarray, "R 4"]]:
    """Mirrored (bit 0 of `turn`), upside down (bit 1) and with its axes exchanged (bit 2), the boxes with it."""
    height, width = pixels.shape[:2]
    if turn & 1:
        pixels, boxes = (
            pixels[:, ::-1],
            np.stack([width - boxes[:, 2], boxes[:, 1], width - boxes[:, 0], boxes[:, 3]], 1),
        )
    if turn & 2:
        pixels, boxes = (
            pixels[::-1],
            np.stack([boxes[:, 0], height - boxes[:, 3], boxes[:, 2], height - boxes[:, 1]], 1),
        )
    if turn & 4:
        pixels, boxes = pixels.transpose(1, 0, 2), boxes[:, [1, 0, 3, 2]]
    return pixels, boxes


def stack(images: Sequence[UInt8[np.ndarray, "H W 3"]]) -> UInt8[np.ndarray, "N 3 H W"]:
    """A batch of images, padded with black at the right and bottom to the largest height and width."""
    height, width = max(i.shape[0] for i in images), max(i.shape[1] for i in images)
    batch = np.zeros((len(images), 3, height, width), np.uint8)
    for n, image in enumerate(images):
        batch[n, :, : image.shape[0], : image.shape[1]] = image.transpose(2, 0, 1)
    return batch
