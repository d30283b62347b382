"""Box arithmetic as pure functions. Boxes are xyxy in pixels; a box is x1 <= x < x2, so its width is x2 - x1."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float


def iou(a: Float[np.ndarray, "K 4"], b: Float[np.ndarray, "M 4"]) -> Float[np.ndarray, "K M"]:
    """Intersection over union of every pair; 0 where the union is empty."""
    low = np.maximum(a[:, None, :2], b[None, :, :2])
    high = np.minimum(a[:, None, 2:], b[None, :, 2:])
    inner = np.clip(high - low, 0, None).prod(2)
    union = area(a)[:, None] + area(b)[None] - inner
    return np.divide(inner, union, out=np.zeros_like(inner), where=union > 0)


def area(boxes: Float[np.ndarray, "K 4"]) -> Float[np.ndarray, " K"]:
    return np.clip(boxes[:, 2:] - boxes[:, :2], 0, None).prod(1)


def clip(boxes: Float[np.ndarray, "K 4"], width: int, height: int) -> Float[np.ndarray, "K 4"]:
    """The parts of boxes inside the image; a box outside it keeps no area."""
    limit = np.array([width, height, width, height], boxes.dtype)
    return np.clip(boxes, 0, limit)


def large_enough(boxes: Float[np.ndarray, "K 4"], least: float) -> Bool[np.ndarray, " K"]:
    """Boxes of positive area whose shorter side is at least `least` pixels."""
    side = (boxes[:, 2:] - boxes[:, :2]).min(1) if len(boxes) else np.zeros(0, boxes.dtype)
    return (side > 0) & (side >= least)


def from_centers(boxes: Float[np.ndarray, "K 4"]) -> Float[np.ndarray, "K 4"]:
    """(centre x, centre y, width, height) to xyxy."""
    half = boxes[:, 2:] / 2
    return np.concatenate([boxes[:, :2] - half, boxes[:, :2] + half], 1)


def problem(boxes: Float[np.ndarray, "K 4"], width: int, height: int) -> str:
    """Why boxes cannot be used; empty for good ones: finite, of positive size, inside the image."""
    if not np.isfinite(boxes).all():
        return "a box holds NaN or infinity"
    if len(boxes) and not (boxes[:, 2:] > boxes[:, :2]).all():
        return "a box has no area"
    if len(boxes) and (boxes.min() < 0 or boxes[:, 2].max() > width or boxes[:, 3].max() > height):
        return f"a box reaches outside the image of {width}x{height}"
    return ""
