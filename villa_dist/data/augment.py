"""Image, boxes, pairs and text changed together: a part of the image, its mirror image, other light. Pure.

What is drawn for a sample is a function of its identity alone (seed, epoch, shard, row), and all arithmetic is exact or
rounded in one place, so the same sample is changed alike by any process, whatever its threads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8
from PIL import Image

from villa_dist.data.samples import Row
from villa_dist.data.words import NONE, Sides
from villa_dist.regions.boxes import area, clip

INSIDE = 0.5  # of a box's area that a part of the image must hold for the box to stay
ASPECT = 4 / 3  # a part is at most so much wider, or taller, than the image is
TRIES = 10  # to find a part that holds a box with a pair
GREY = (0.299, 0.587, 0.114)
AUGMENT = 4  # what a random number is for


@dataclass(frozen=True)
class Augment:
    """crop: the least and the greatest share of the image's area that is kept, and shown as large as the whole was; None:
    all of it. flip: the chance of a mirror image. colour: how far brightness, contrast and saturation are moved from 1.

    counterpart: V, of each attribute the one it is in a mirrored image (`Sides.counterparts`); None: there are none.
    """

    crop: tuple[float, float] | None = None
    flip: float = 0.0
    colour: float = 0.0
    sides: Sides = field(default_factory=Sides)
    counterpart: Int[np.ndarray, " V"] | None = None


def augmented(row: Row, augment: Augment, identity: Sequence[int]) -> Row:
    """The row as `identity` (seed, epoch, shard, row) has it changed."""
    if row.pixels is None:
        return row
    random = np.random.default_rng([*identity, AUGMENT])
    flips = random.random() < augment.flip
    factors = 1.0 + augment.colour * random.uniform(-1.0, 1.0, 3)
    if augment.crop is not None:
        row = part_of(row, augment.crop, random)
    if flips:
        row = mirrored(row, augment.sides, augment.counterpart)
    if augment.colour and row.pixels is not None:
        row = replace(row, pixels=lit(row.pixels, *factors.tolist()))
    return row


def part_of(row: Row, limits: tuple[float, float], random: np.random.Generator) -> Row:
    """A random part of the image in the image's own size, with the boxes that lie inside it by half or more, clipped; pairs
    of the others go.

    Where the row has pairs, a part that keeps none of them is drawn again; after TRIES the image stays whole.
    """
    assert row.pixels is not None
    height, width = row.pixels.shape[:2]
    for _ in range(TRIES):
        x, y, w, h = draw_part(width, height, limits, random)
        boxes, inside = boxes_in(row.boxes, (x, y, x + w, y + h))
        if len(row.region) and not inside[row.region].any():
            continue
        scale = np.array([width / w, height / h] * 2, np.float32)
        resized = Image.fromarray(row.pixels).resize((width, height), Image.Resampling.BILINEAR, (x, y, x + w, y + h))
        return replace(only(row, inside), pixels=np.asarray(resized), boxes=boxes[inside] * scale)
    return row


def draw_part(
    width: int, height: int, limits: tuple[float, float], random: np.random.Generator
) -> tuple[int, int, int, int]:
    """x, y, width and height in whole pixels, of a share of the area between `limits` (to rounding)."""
    share, bend, across, down = random.random(4)
    area_share = limits[0] + share * (limits[1] - limits[0])
    stretch = ASPECT ** (bend - 0.5)  # sides by up to the square root of ASPECT each way
    stretch = min(max(stretch, area_share**0.5), area_share**-0.5)
    w = min(max(round(width * area_share**0.5 * stretch), 1), width)
    h = min(max(round(height * area_share**0.5 / stretch), 1), height)
    return int(across * (width - w + 1)), int(down * (height - h + 1)), w, h


def boxes_in(
    boxes: Float[np.ndarray, "R 4"], part: tuple[int, int, int, int]
) -> tuple[Float[np.ndarray, "R 4"], Bool[np.ndarray, " R"]]:
    """(boxes clipped to `part`, xyxy, and measured from its corner; which have at least INSIDE of their area in it)."""
    x1, y1, x2, y2 = part
    moved = clip(boxes - np.array([x1, y1, x1, y1], boxes.dtype), x2 - x1, y2 - y1)
    kept = area(moved)
    return moved, (kept >= INSIDE * area(boxes)) & (kept > 0)


def only(row: Row, keep: Bool[np.ndarray, " R"]) -> Row:
    """The row with the regions to keep alone, and their pairs. A row without pairs keeps its attributes."""
    number = np.cumsum(keep) - 1
    boxes = row.boxes[keep]
    embedding = row.embedding[keep] if row.embedding is not None else None
    if not len(row.region):
        return replace(row, boxes=boxes, embedding=embedding)
    pairs = keep[row.region]
    region = number[row.region[pairs]].astype(row.region.dtype)
    return replace(row, boxes=boxes, embedding=embedding, region=region, attribute=row.attribute[pairs])


def mirrored(row: Row, sides: Sides, counterpart: Int[np.ndarray, " V"] | None) -> Row:
    """Left and right exchanged: in the pixels, the boxes, the text and the attributes.

    A row with an attribute that has no counterpart stays as it is: to drop the pair would make the region a negative of
    what it shows, and to keep it would teach the opposite.
    """
    assert row.pixels is not None
    attribute = row.attribute
    if counterpart is not None and len(attribute):
        attribute = counterpart[attribute].astype(row.attribute.dtype)
        if (attribute == NONE).any():
            return row
    width = row.pixels.shape[1]
    boxes = np.stack([width - row.boxes[:, 2], row.boxes[:, 1], width - row.boxes[:, 0], row.boxes[:, 3]], 1)
    return replace(row, pixels=row.pixels[:, ::-1], boxes=boxes, attribute=attribute, text=sides.swapped(row.text))


def lit(
    pixels: UInt8[np.ndarray, "H W 3"], brightness: float, contrast: float, saturation: float
) -> UInt8[np.ndarray, "H W 3"]:
    """Brightness, then contrast about the image's mean grey, then saturation about each pixel's grey; rounded and clipped
    once, at the end. Hues stay, so that colour words stay true."""
    values = pixels.astype(np.float32) * np.float32(brightness)
    sums = pixels.sum((0, 1), dtype=np.int64)  # exact, in any order
    mean = brightness * sum(g * int(s) for g, s in zip(GREY, sums, strict=True)) / (pixels.shape[0] * pixels.shape[1])
    values = values * np.float32(contrast) + np.float32((1 - contrast) * mean)
    grey = (
        values[..., 0] * np.float32(GREY[0])
        + values[..., 1] * np.float32(GREY[1])
        + values[..., 2] * np.float32(GREY[2])
    )
    values = values * np.float32(saturation) + (grey * np.float32(1 - saturation))[..., None]
    return np.asarray(np.clip(np.rint(values), 0, 255), np.uint8)
