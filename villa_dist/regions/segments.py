"""Region proposals from colour alone, without weights to download: Felzenszwalb's segments (IJCV 2004) at several scales,
each merged hierarchically in two ways, and the boxes of all segments ranked by what is in and around them.

Letters: H x W the reduced image, S segments, R boxes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int, UInt8
from PIL import Image
from scipy import ndimage  # type: ignore[import-untyped]
from skimage.color import rgb2lab
from skimage.segmentation import felzenszwalb

from villa_dist.config import SegmentsConfig
from villa_dist.regions.hierarchy import Likeness, merge
from villa_dist.regions.objectness import Shapes, features, objectness
from villa_dist.regions.proposals import Photo
from villa_dist.types import RegionSet

SMOOTH = 0.8  # pixels, sigma before segmentation
COLOURS, TURNS, STRENGTHS = 12, 8, 4  # bins: of a Lab channel; of the gradient's direction and magnitude
STRONG = 64.0  # gradient magnitude of one step of STRENGTHS
LEAST_SIDE = 4  # pixels of the reduced image; smaller boxes are noise
WAYS = (Likeness(1.0), Likeness(0.0))  # by looks and geometry; by geometry alone


@dataclass(frozen=True, slots=True)
class Reduced:
    """An image at the size it is segmented at. lab: channels of 0 to 255."""

    lab: Float[np.ndarray, "H W 3"]
    edges: Float[np.ndarray, "H W"]  # gradient magnitude of the lightness
    turn: Int[np.ndarray, "H W"]  # bin of the gradient's direction and magnitude


class SegmentProposer:
    needs_pixels = True
    ranked = True

    def __init__(self, config: SegmentsConfig) -> None:
        self.config = config

    def propose(self, photos: Sequence[Photo]) -> list[RegionSet]:
        found = []
        for photo in photos:
            assert photo.pixels is not None
            boxes, described = candidates(photo.pixels, self.config)
            found.append(RegionSet(boxes, objectness(described)))
        return found


def candidates(
    pixels: UInt8[np.ndarray, "H W 3"], config: SegmentsConfig
) -> tuple[Float[np.ndarray, "R 4"], Float[np.ndarray, "R F"]]:
    """Distinct boxes of all hierarchies, in pixels of the image, and their features. A flat image gives its own box."""
    small = reduced(pixels, config.side)
    height, width = small.edges.shape
    boxes, shapes = [], []
    for scale in config.scales:
        labels = felzenszwalb(
            small.lab / 255, scale=scale, sigma=SMOOTH, min_size=config.min_pixels, channel_axis=-1
        ).astype(np.int64)
        looks = descriptors(labels, small)
        for way in WAYS:
            made = merge(labels, looks, way)
            size = (made.boxes[:, 2:] - made.boxes[:, :2]).prod(1)
            boxes.append(made.boxes)
            shapes.append(np.stack([made.pixels / size, np.log1p(made.depth), made.leaf], 1))
    joined, shape = np.concatenate(boxes).astype(np.int64), np.concatenate(shapes)
    _, first = np.unique(joined, axis=0, return_index=True)
    first.sort()
    first = first[(joined[first, 2:] - joined[first, :2]).min(1) >= min(LEAST_SIDE, height, width)]
    described = features(joined[first], Shapes(*shape[first].T), small.lab, small.edges)
    scale_xy = np.array([pixels.shape[1] / width, pixels.shape[0] / height] * 2)
    return (joined[first] * scale_xy).astype(np.float32), described


def reduced(pixels: UInt8[np.ndarray, "H W 3"], side: int) -> Reduced:
    """The image with its longer side reduced to `side` (never enlarged), in Lab, with its gradient."""
    height, width = pixels.shape[:2]
    ratio = side / max(height, width)
    if ratio < 1:
        size = (max(1, round(width * ratio)), max(1, round(height * ratio)))
        pixels = np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BOX))
    lab = rgb2lab(pixels.astype(np.float32) / 255).astype(np.float64)
    lab = lab * np.array([2.55, 1, 1]) + np.array([0, 128, 128])
    across, down = ndimage.sobel(lab[..., 0], 1), ndimage.sobel(lab[..., 0], 0)
    edges = np.hypot(across, down)
    direction = ((np.arctan2(down, across) / (2 * np.pi) + 0.5) * TURNS).astype(np.int64) % TURNS
    strength = np.minimum(edges / STRONG, STRENGTHS - 1).astype(np.int64)
    return Reduced(lab, edges, direction * STRENGTHS + strength)


def descriptors(labels: Int[np.ndarray, "H W"], small: Reduced) -> Float[np.ndarray, "S C"]:
    """Histograms of each segment: the three Lab channels and the gradients, each group sums to one (colour as a whole)."""
    count = int(labels.max()) + 1
    bins = np.clip(small.lab * (COLOURS / 256), 0, COLOURS - 1).astype(np.int64)
    colour = np.concatenate([_histogram(labels, bins[..., c], count, COLOURS) for c in range(3)], 1)
    texture = _histogram(labels, small.turn, count, TURNS * STRENGTHS)
    size = np.bincount(labels.ravel(), minlength=count)[:, None]
    return np.concatenate([colour / (3 * size), texture / size], 1)


def _histogram(
    labels: Int[np.ndarray, "H W"], bins: Int[np.ndarray, "H W"], count: int, number: int
) -> Float[np.ndarray, "S C"]:
    flat = np.bincount((labels * number + bins).ravel(), minlength=count * number)
    return flat.reshape(count, number).astype(np.float64)
