"""How likely a box of a segment holds an object: a logistic function of sixteen measurements of it and its surroundings.

The weights were fitted on COCO photos (`python -m benchmarks.proposals --fit`, which prints WEIGHTS): the label of a box is
whether an annotated object meets it with IoU of at least one half. All sums over boxes come from integral images.

Letters: H x W image, R boxes, F features, B colour bins.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

NAMES = (
    "contrast near", "contrast far", "contrast within", "edges inside", "edges at the rim", "edges just outside", "log area",
    "elongation", "off centre", "height in image", "touches sides", "touches top", "touches bottom", "fill", "log depth",
    "leaf",
)  # fmt: skip
WEIGHTS = np.array([
    1.502, 0.2429, 3.246, 0.3179, 0.1888, -0.05761, 0.8272,
    -0.6654, 0.4978, 0.7047, -0.2012, -0.7076, -0.2095, 1.164, 0.2029,
    -0.277,
])  # fmt: skip
BIAS = -3.061
NEAR, FAR, CORE, OUTSIDE, RIM = 1.5, 2.2, 0.7, 1.15, 0.85  # sizes of boxes around or inside a box
SHADES = 8  # bins of a Lab channel


@dataclass(frozen=True, slots=True)
class Shapes:
    """What is known of the segment in each box: share of the box it fills, log(1 + depth), 1 for unmerged segments."""

    fill: Float[np.ndarray, " R"]
    log_depth: Float[np.ndarray, " R"]
    leaf: Float[np.ndarray, " R"]


def objectness(
    described: Float[np.ndarray, "R F"], weights: Float[np.ndarray, " F"] = WEIGHTS, bias: float = BIAS
) -> Float[np.ndarray, " R"]:
    """Probability that a box meets an object, float32."""
    return (1 / (1 + np.exp(-(described @ weights + bias)))).astype(np.float32)


def features(
    boxes: Int[np.ndarray, "R 4"], shapes: Shapes, lab: Float[np.ndarray, "H W 3"], edges: Float[np.ndarray, "H W"]
) -> Float[np.ndarray, "R F"]:
    """The measurements named in NAMES, for boxes in whole pixels of the image."""
    height, width = edges.shape
    shades, gradient = integral(shade_planes(lab)), integral(edges[..., None])

    def around(scale: float) -> Int[np.ndarray, "R 4"]:
        return scaled(boxes, scale, width, height)

    def contrast(inner: Int[np.ndarray, "R 4"], outer: Int[np.ndarray, "R 4"]) -> Float[np.ndarray, " R"]:
        """One less the histograms' intersection; 0 where nothing lies between the boxes."""
        inside, ring = total(shades, inner), total(shades, outer)
        ring = ring - inside
        apart = size_of(outer) - size_of(inner)
        same = np.minimum(inside / size_of(inner)[:, None], ring / np.maximum(apart, 1)[:, None]).sum(1) / 3
        return np.where(apart > 0, 1 - same, 0.0)

    def edge_density(inner: Int[np.ndarray, "R 4"] | None, outer: Int[np.ndarray, "R 4"]) -> Float[np.ndarray, " R"]:
        much, pixels = total(gradient, outer)[:, 0], size_of(outer)
        if inner is not None:
            much, pixels = much - total(gradient, inner)[:, 0], pixels - size_of(inner)
        return much / np.maximum(pixels, 1) / (edges.mean() + 1e-3)

    side = (boxes[:, 2:] - boxes[:, :2]).astype(np.float64)
    middle = (boxes[:, :2] + boxes[:, 2:]) / (2 * np.array([width, height]))
    columns = [
        contrast(boxes, around(NEAR)),
        contrast(boxes, around(FAR)),
        contrast(around(CORE), boxes),
        edge_density(None, boxes),
        edge_density(around(RIM), boxes),
        edge_density(boxes, around(OUTSIDE)),
        np.log(side.prod(1) / (width * height)),
        np.abs(np.log(side[:, 0] / side[:, 1])),
        np.abs(middle[:, 0] - 0.5),
        middle[:, 1],
        (boxes[:, 0] <= 0).astype(float) + (boxes[:, 2] >= width),
        (boxes[:, 1] <= 0).astype(float),
        (boxes[:, 3] >= height).astype(float),
        shapes.fill,
        shapes.log_depth,
        shapes.leaf,
    ]
    return np.stack(columns, 1)


def shade_planes(lab: Float[np.ndarray, "H W 3"]) -> Int[np.ndarray, "H W B"]:
    """One 0/1 plane for each of SHADES bins of each channel; a and b are stretched, as photos use their middle."""
    stretched = np.stack([lab[..., 0] * (SHADES / 256), *(((lab[..., c] - 128) / 10 + SHADES / 2) for c in (1, 2))], -1)
    bins = np.clip(stretched, 0, SHADES - 1).astype(np.int64) + np.arange(3) * SHADES
    planes = np.zeros((*lab.shape[:2], 3 * SHADES), np.int32)
    np.put_along_axis(planes, bins, 1, 2)
    return planes


def integral(planes: np.ndarray) -> np.ndarray:
    """Sums over everything above and left of a corner: (H + 1) x (W + 1) x B."""
    out = np.zeros((planes.shape[0] + 1, planes.shape[1] + 1, planes.shape[2]), planes.dtype)
    np.cumsum(np.cumsum(planes, 0, dtype=planes.dtype), 1, dtype=planes.dtype, out=out[1:, 1:])
    return out


def total(sums: np.ndarray, boxes: Int[np.ndarray, "R 4"]) -> np.ndarray:
    """Sum of each plane over each box: R x B."""
    x1, y1, x2, y2 = boxes.T
    found: np.ndarray = sums[y2, x2] - sums[y1, x2] - sums[y2, x1] + sums[y1, x1]
    return found


def scaled(boxes: Int[np.ndarray, "R 4"], scale: float, width: int, height: int) -> Int[np.ndarray, "R 4"]:
    """Boxes grown or shrunk about their centres, in whole pixels inside the image, at least a pixel wide and high."""
    middle, half = (boxes[:, :2] + boxes[:, 2:]) / 2, (boxes[:, 2:] - boxes[:, :2]) * (scale / 2)
    limit = np.array([width, height])
    low = np.clip(np.rint(middle - half).astype(np.int64), 0, limit - 1)
    high = np.clip(np.rint(middle + half).astype(np.int64), low + 1, limit)
    return np.concatenate([low, high], 1)


def size_of(boxes: Int[np.ndarray, "R 4"]) -> Float[np.ndarray, " R"]:
    side = (boxes[:, 2:] - boxes[:, :2]).astype(np.float64)
    area: Float[np.ndarray, " R"] = side.prod(1)
    return area
