"""The DocMNIST generator, vectorised over a shard and deterministic per (seed, split, shard).

Letters of shapes: N images of a shard, R regions, A = 20 attributes, S sentences.

An image takes regions while its attribute count stays within the target complexity, up to nine; a region is a coloured
digit, with probability 2/3 under a white one-pixel outline of a circle or rectangle in one of three sizes. Images are
added until the attribute budget is spent, so a higher complexity means fewer images; `images` instead fixes their number.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from villa_dist.docmnist import words
from villa_dist.docmnist.digits import SPLITS, Digits

CELL, GRID = 28, 3
SIDE = CELL * GRID
INK = 120  # pixels at least this bright take the colour
# matplotlib's hsv map at 0, .2, .4, .6, .8, in whole numbers
COLOURS_RGB = np.array([[255, 0, 0], [208, 255, 0], [0, 255, 92], [0, 116, 255], [184, 0, 255]], np.uint8)
CIRCLE_RADIUS, RECTANGLE_EXTENT = (1, 3, 5), (1, 4, 7)
PLACES = 15  # corners and centres are drawn from [5, 20)
RECTANGLE, CIRCLE, NO_SHAPE = 0, 1, 2


@dataclass(frozen=True)
class ShardPlan:
    """A shard's number, and how many images it holds: the last shard of a budget is cut short."""

    shard: int
    images: int


@dataclass(frozen=True)
class DocShard:
    """pixels N x 84 x 84 x 3 uint8; texts N; image_of R; boxes R x 4 xyxy; attributes R x 20 bool."""

    pixels: np.ndarray
    texts: list[str]
    image_of: np.ndarray
    boxes: np.ndarray
    attributes: np.ndarray


def structure(target: int, seed: int, split: str, shard: int, images: int) -> tuple[np.ndarray, np.ndarray]:
    """Shapes N x 9 and which slots are kept N x 9: the leading slots that fit under the target."""
    rng = np.random.default_rng([seed, SPLITS.index(split), shard, 0])
    shapes = rng.integers(0, 3, (images, GRID * GRID))
    spent = np.where(shapes == NO_SHAPE, 2, 4).cumsum(1)
    return shapes, spent <= target


def plan(target: int, seed: int, split: str, budget: int, images: int | None, shard_images: int) -> list[ShardPlan]:
    """Shards of a split: by attribute budget (the paper's setting) or by a number of images."""
    shards: list[ShardPlan] = []
    if images is not None:
        for shard, start in enumerate(range(0, images, shard_images)):
            shards.append(ShardPlan(shard, min(shard_images, images - start)))
        return shards
    spent = 0
    while True:
        shapes, kept = structure(target, seed, split, len(shards), shard_images)
        counts = (np.where(shapes == NO_SHAPE, 2, 4) * kept).sum(1)
        over = np.nonzero(spent + counts.cumsum() > budget)[0]
        if len(over):
            if over[0]:
                shards.append(ShardPlan(len(shards), int(over[0])))
            return shards
        shards.append(ShardPlan(len(shards), shard_images))
        spent += int(counts.sum())


@dataclass(frozen=True)
class Flaws:
    """text_noise: chance that a text leaves out an attribute, and that it mentions one which no region has. coupling: chance
    that a digit has the colour that goes with it (digit modulo 5) instead of any."""

    text_noise: float = 0.0
    coupling: float = 0.0


def generate(
    target: int,
    seed: int,
    split: str,
    chosen: ShardPlan,
    shard_images: int,
    digits: Digits,
    flaws: Flaws = Flaws(),
) -> DocShard:
    """All samples of one shard. `shard_images` is the length of the stream the shard is cut from."""
    shapes_NG, kept_NG = (a[: chosen.images] for a in structure(target, seed, split, chosen.shard, shard_images))
    rng = np.random.default_rng([seed, SPLITS.index(split), chosen.shard, 1])
    shape_R = shapes_NG[kept_NG]
    image_of_R = np.nonzero(kept_NG)[0]
    regions = len(shape_R)
    digit_R = rng.integers(0, len(digits.labels), regions)
    colour_R = rng.integers(0, len(words.COLOURS), regions)
    spoil = np.random.default_rng([seed, SPLITS.index(split), chosen.shard, 2])
    coupled_R = spoil.random(regions) < flaws.coupling
    colour_R[coupled_R] = digits.labels[digit_R[coupled_R]] % len(words.COLOURS)
    size_R = rng.integers(0, len(words.SIZES), regions)
    place_R2 = rng.integers(0, PLACES, (regions, 2))
    cells_NG = rng.random((chosen.images, GRID * GRID)).argsort(1)
    cell_R = np.sort(np.where(kept_NG, cells_NG, GRID * GRID), axis=1)
    cell_R = cell_R[cell_R < GRID * GRID]  # distinct random cells, in reading order

    patch_RHW3 = render(digits.images[digit_R], colour_R, shape_R, size_R, place_R2)
    pixels = np.zeros((chosen.images, GRID, CELL, GRID, CELL, 3), np.uint8)
    pixels[image_of_R, cell_R // GRID, :, cell_R % GRID] = patch_RHW3

    outlined = shape_R != NO_SHAPE
    attributes_RA = np.zeros((regions, len(words.ATTRIBUTES)), bool)
    rows = np.arange(regions)
    attributes_RA[rows, digits.labels[digit_R]] = True
    attributes_RA[rows, words.FIRST_COLOUR + colour_R] = True
    attributes_RA[rows[outlined], words.FIRST_SHAPE + shape_R[outlined]] = True
    attributes_RA[rows[outlined], words.FIRST_SIZE + size_R[outlined]] = True

    corner_R2 = np.stack([cell_R % GRID, cell_R // GRID], 1) * CELL
    return DocShard(
        pixels.reshape(chosen.images, SIDE, SIDE, 3),
        texts(*_spoilt(attributes_RA, image_of_R, chosen.images, flaws.text_noise, spoil), chosen.images, rng),
        image_of_R,
        np.concatenate([corner_R2, corner_R2 + CELL], 1).astype(np.float32),
        attributes_RA,
    )


def _spoilt(
    attributes_RA: np.ndarray, image_of_R: np.ndarray, images: int, noise: float, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """What the texts say (rows x A, and the image of each row): the regions' attributes, some dropped and others added."""
    if noise == 0:
        return attributes_RA, image_of_R
    held_NA = np.zeros((images, attributes_RA.shape[1]), bool)
    np.logical_or.at(held_NA, image_of_R, attributes_RA)
    wrong_NA = rng.random(held_NA.shape) < noise
    kept_RA = attributes_RA & ~(held_NA & wrong_NA)[image_of_R]
    return np.concatenate([kept_RA, ~held_NA & wrong_NA]), np.concatenate([image_of_R, np.arange(images)])


def texts(attributes_RA: np.ndarray, image_of_R: np.ndarray, images: int, rng: np.random.Generator) -> list[str]:
    """One sentence for every attribute of every region, duplicates removed, shuffled, joined by " . "."""
    region, attribute = np.nonzero(attributes_RA)
    template = (rng.random(len(attribute)) * words.SENTENCE_COUNT[attribute]).astype(int)
    said_NS = np.zeros((images, len(words.SENTENCES)), bool)
    said_NS[image_of_R[region], words.FIRST_SENTENCE[attribute] + template] = True
    order_NS = np.where(said_NS, rng.random(said_NS.shape), 2.0).argsort(1)
    count_N = said_NS.sum(1)
    return [" . ".join(words.SENTENCES[s] for s in order_NS[n, : count_N[n]]) for n in range(images)]


def render(
    grey_RHW: np.ndarray, colour_R: np.ndarray, shape_R: np.ndarray, size_R: np.ndarray, place_R2: np.ndarray
) -> np.ndarray:
    """Coloured digits with their outlines, R x 28 x 28 x 3 uint8."""
    patch = np.where((grey_RHW >= INK)[..., None], COLOURS_RGB[colour_R][:, None, None], grey_RHW[..., None])
    outlined = shape_R != NO_SHAPE
    masks = outline_masks()[shape_R[outlined], size_R[outlined], place_R2[outlined, 0], place_R2[outlined, 1]]
    patch[outlined] = np.where(masks[..., None], np.uint8(255), patch[outlined])
    return np.asarray(patch, np.uint8)


@lru_cache(maxsize=1)
def outline_masks() -> np.ndarray:
    """White outlines for every (shape, size, row - 5, column - 5): 2 x 3 x 15 x 15 x 28 x 28 bool."""
    masks = np.zeros((2, len(words.SIZES), PLACES, PLACES, CELL, CELL), bool)
    for size in range(len(words.SIZES)):
        ring = np.array(circle_points(CIRCLE_RADIUS[size]))
        extent = RECTANGLE_EXTENT[size]
        for i in range(PLACES):
            for j in range(PLACES):
                row, column = i + 5, j + 5
                masks[CIRCLE, size, i, j, ring[:, 0] + row, ring[:, 1] + column] = True
                masks[RECTANGLE, size, i, j] = _rectangle(row, column, extent)
    return masks


def _rectangle(row: int, column: int, extent: int) -> np.ndarray:
    """The perimeter one pixel outside [row, row + extent] x [column, column + extent], cut at the cell's edge."""
    low = np.array([row, column]) - 1
    high = np.minimum(np.array([row, column]) + extent + 1, CELL - 1)
    mask = np.zeros((CELL, CELL), bool)
    mask[low[0] : high[0] + 1, low[1]] = mask[low[0] : high[0] + 1, high[1]] = True
    mask[low[0], low[1] : high[1] + 1] = mask[high[0], low[1] : high[1] + 1] = True
    return mask


def circle_points(radius: int) -> list[tuple[int, int]]:
    """Bresenham's circle of an integer radius around (0, 0)."""
    points: set[tuple[int, int]] = set()
    column, row, d = 0, radius, 3 - 2 * radius
    while row >= column:
        for a, b in ((row, column), (column, row)):
            points.update({(a, b), (a, -b), (-a, b), (-a, -b)})
        if d < 0:
            d += 4 * column + 6
        else:
            d += 4 * (column - row) + 10
            row -= 1
        column += 1
    return sorted(points)


def png(pixels_HW3: np.ndarray) -> bytes:
    """A minimal RGB PNG (filter none, zlib level 1): several times faster than an encoder that tries filters."""
    height, width, _ = pixels_HW3.shape
    rows = np.zeros((height, 1 + 3 * width), np.uint8)
    rows[:, 1:] = pixels_HW3.reshape(height, 3 * width)
    ihdr = width.to_bytes(4, "big") + height.to_bytes(4, "big") + b"\x08\x02\0\0\0"
    body = zlib.compress(rows.tobytes(), 1)
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", ihdr) + _chunk(b"IDAT", body) + _chunk(b"IEND", b"")


def _chunk(kind: bytes, data: bytes) -> bytes:
    return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")
