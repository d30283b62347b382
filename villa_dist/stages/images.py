"""Decoding a shard in batches of images, for the stages that embed regions."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from shards.decode import decode_image, image_member
from shards.errors import ShardError
from shards.reader import BaseShard
from villa_dist.config import Config
from villa_dist.data.transforms import stack

HELD_PIXELS = 1 << 26  # decoded at one time, 200 MB


@dataclass(frozen=True)
class ImageBatch:
    """Images of one size with their regions. N images, R regions."""

    pixels: Tensor  # N 3 H W uint8
    boxes: Tensor  # R 4
    image_of: Tensor  # R, 0 to N - 1
    places: Tensor  # R, where each region stands in the shard


def embed_regions(
    embed: Callable[[Tensor, Tensor, Tensor], Tensor],
    base: BaseShard,
    boxes: np.ndarray,
    box_at: np.ndarray,
    config: Config,
    width: int,
) -> Tensor:
    """`embed(pixels, boxes, image_of)` over a whole shard, batch by batch: R x width, in the order of `boxes`.

    Raises: ShardError when an embedding is not finite.
    """
    whole = torch.zeros(len(boxes), width)
    with torch.inference_mode():
        for batch in image_batches(base, boxes, box_at, config.regions.batch_images, config.data.max_pixels):
            if len(batch.places):
                whole[batch.places] = embed(batch.pixels, batch.boxes, batch.image_of).to(whole)
    if not bool(torch.isfinite(whole).all()):
        raise ShardError(
            f"shard {base.place}: region embeddings hold NaN or infinity; the model is damaged, train it again"
        )
    return whole


def image_batches(
    base: BaseShard, boxes: np.ndarray, box_at: np.ndarray, size: int, max_pixels: int
) -> Iterator[ImageBatch]:
    """Batches of up to `size` images; `boxes[box_at[i]:box_at[i + 1]]` are those of image i.

    Only images of the same height and width share a batch: padding would reach into the features of boxes at the right
    and bottom edges, and an image's embeddings would depend on its neighbours in the shard. Images are grouped among those
    decoded together, up to `size` of them or HELD_PIXELS.
    """
    held: list[tuple[int, np.ndarray]] = []
    room = HELD_PIXELS
    for row in range(len(base)):
        pixels = decode_image(image_member(base.sample(row)), max_pixels)
        room -= pixels.shape[0] * pixels.shape[1]
        if held and (len(held) == size or room < 0):
            yield from _by_size(held, boxes, box_at)
            held, room = [], HELD_PIXELS - pixels.shape[0] * pixels.shape[1]
        held.append((row, pixels))
    yield from _by_size(held, boxes, box_at)


def _by_size(held: list[tuple[int, np.ndarray]], boxes: np.ndarray, box_at: np.ndarray) -> Iterator[ImageBatch]:
    groups: dict[tuple[int, ...], list[tuple[int, np.ndarray]]] = {}
    for row, pixels in held:
        groups.setdefault(pixels.shape, []).append((row, pixels))
    for group in groups.values():
        places = np.concatenate([np.arange(box_at[row], box_at[row + 1]) for row, _ in group])
        counts = [box_at[row + 1] - box_at[row] for row, _ in group]
        yield ImageBatch(
            torch.from_numpy(stack([pixels for _, pixels in group])),
            torch.from_numpy(boxes[places].astype(np.float32)),
            torch.from_numpy(np.repeat(np.arange(len(group)), counts)),
            torch.from_numpy(places),
        )
