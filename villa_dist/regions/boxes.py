"""Box arithmetic as pure functions. Boxes are xyxy in pixels."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float


def iou(a: Float[np.ndarray, "K 4"], b: Float[np.ndarray, "M 4"]) -> Float[np.ndarray, "K M"]:
    """Intersection over union of every pair; 0 where the union is empty."""
    low = np.maximum(a[:, None, :2], b[None, :, :2])
    high = np.minimum(a[:, None, 2:], b[None, :, 2:])
    inner = np.clip(high - low, 0, None).prod(2)
    union = area(a)[:, None] + area(b)[None] - inner
    return np.divide(inner, union, out=np.zeros_like(inner), where=union > 0)


def area(boxes: Float[np.ndarray, "K 4"]) -> Float[np.ndarray, " K"]:
    return np.clip(boxes[:, 2:] - boxes[:, :2], 0, None).prod(1)


def problem(boxes: Float[np.ndarray, "K 4"], width: int, height: int) -> str:
    """Why boxes cannot be used; empty for good ones: finite, of positive size, inside the image."""
    if not np.isfinite(boxes).all():
        return "a box holds NaN or infinity"
    if len(boxes) and not (boxes[:, 2:] > boxes[:, :2]).all():
        return "a box has no area"
    if len(boxes) and (boxes.min() < 0 or boxes[:, 2].max() > width or boxes[:, 3].max() > height):
        return f"a box reaches outside the image of {width}x{height}"
    return ""
