"""Region proposals: the protocol of backends, and what is kept of their boxes.

Letters: N photos, R regions of one photo. Boxes are xyxy in pixels of the photo, float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from jaxtyping import Float, UInt8

from shards.errors import ShardError
from villa_dist.config import RegionsConfig
from villa_dist.regions.boxes import area, clip, large_enough
from villa_dist.regions.nms import soft_nms
from villa_dist.types import RegionSet

OVERLAP = 0.4  # IoU with a better box, over which a box is ranked lower


@dataclass(frozen=True, slots=True)
class Photo:
    """What a backend may look at. pixels: None where it needs none; given: boxes that came with the sample."""

    key: str
    width: int
    height: int
    pixels: UInt8[np.ndarray, "H W 3"] | None = None
    given: Float[np.ndarray, "R 4"] | None = None


class Proposer(Protocol):
    """A backend. Equal photos and an equal config give equal boxes.

    ranked: its objectness orders boxes, so that too many and overlapping ones can be dropped.
    """

    needs_pixels: bool
    ranked: bool

    def propose(self, photos: Sequence[Photo]) -> list[RegionSet]:
        """Raw boxes of each photo, in any order; they may reach outside it. Raises: VillaError."""
        ...


@dataclass(frozen=True, slots=True)
class Kept:
    """Regions of one photo. dropped: boxes that lay outside the photo or had no area."""

    regions: RegionSet
    dropped: int


def regions_of(proposer: Proposer, config: RegionsConfig, photos: Sequence[Photo]) -> list[Kept]:
    """Propose, and keep what is fit to use. Raises: ShardError naming the photo whose boxes are not numbers."""
    found = proposer.propose(photos)
    return [keep(raw, config, photo, ranked=proposer.ranked) for raw, photo in zip(found, photos, strict=True)]


def keep(raw: RegionSet, config: RegionsConfig, photo: Photo, *, ranked: bool) -> Kept:
    """Boxes inside the photo; of ranked ones those of `min_size` whose IoU with a better one is at most `nms_iou`, at most
    `top_k`, best first, each ranked lower the more it overlaps better ones.

    With `keep_whole_image` the photo itself comes last, objectness 0, unless a box already is the photo.
    """
    if not (np.isfinite(raw.boxes).all() and np.isfinite(raw.objectness).all()):
        raise ShardError(
            f"sample {photo.key!r} ({photo.width}x{photo.height}): regions.proposals: {config.proposals} gave boxes or "
            "scores that are NaN or infinite; mend its boxes or use other weights"
        )
    boxes = clip(raw.boxes.astype(np.float32).reshape(-1, 4), photo.width, photo.height)
    objectness = raw.objectness.astype(np.float32)
    inside = large_enough(boxes, 0.0)
    dropped = int((~inside).sum())
    if ranked:
        inside &= large_enough(boxes, least_side(config.min_size, photo.width, photo.height))
    boxes, objectness = boxes[inside], objectness[inside]
    if ranked:
        best = soft_nms(boxes, objectness, OVERLAP, config.nms_iou, config.top_k)
        boxes, objectness = boxes[best], objectness[best]
    if config.keep_whole_image and photo.width and photo.height:
        boxes, objectness = with_whole(boxes, objectness, photo)
    return Kept(RegionSet(boxes, objectness), dropped)


def least_side(min_size: float, width: int, height: int) -> float:
    """`min_size` in pixels: below 1 it is a fraction of the shorter side."""
    return min_size * min(width, height) if min_size < 1 else min_size


def with_whole(
    boxes: Float[np.ndarray, "R 4"], objectness: Float[np.ndarray, " R"], photo: Photo
) -> tuple[Float[np.ndarray, "R1 4"], Float[np.ndarray, " R1"]]:
    """The boxes and the whole photo after them, once."""
    if len(boxes) and float(area(boxes).max()) >= photo.width * photo.height:
        return boxes, objectness
    whole = np.array([[0, 0, photo.width, photo.height]], np.float32)
    return np.concatenate([boxes, whole]), np.append(objectness, np.float32(0))
