"""The data that flows between stages: frozen records with array fields.

Letters: R regions, A attributes, P region-attribute pairs, D embedding. Boxes are xyxy in pixels of the image.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int, UInt8


@dataclass(frozen=True, slots=True)
class ImageText:
    """One sample as read: `image` is the encoded file."""

    key: str
    image: bytes
    text: str


@dataclass(frozen=True, slots=True)
class RegionSet:
    """Proposals of one image."""

    boxes: Float[np.ndarray, "R 4"]
    objectness: Float[np.ndarray, " R"]


@dataclass(frozen=True, slots=True)
class AttributeSet:
    """Attributes a text mentions, ascending ids, each with the characters (start, stop) it is first met in."""

    ids: Int[np.ndarray, " A"]
    spans: Int[np.ndarray, "A 2"]


@dataclass(frozen=True, slots=True)
class RegionAttributePairs:
    """attribute[p] is said of boxes[region[p]] with score[p]."""

    boxes: Float[np.ndarray, "R 4"]
    region: Int[np.ndarray, " P"]
    attribute: Int[np.ndarray, " P"]
    score: Float[np.ndarray, " P"]


@dataclass(frozen=True, slots=True)
class Decoded:
    """Pixels of one image, RGB."""

    key: str
    pixels: UInt8[np.ndarray, "H W 3"]
