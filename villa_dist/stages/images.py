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


@dataclass(frozen=True)
class ImageBatch:
    """Images `rows` of a shard with their regions. N images, R regions."""

    rows: range
    pixels: Tensor  # N 3 H W uint8
    boxes: Tensor  # R 4
    image_of: Tensor  # R, 0 to N - 1


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
    parts = [torch.zeros(0, width)]
    with torch.inference_mode():
        for batch in image_batches(base, boxes, box_at, config.regions.batch_images, config.data.max_pixels):
            parts.append(embed(batch.pixels, batch.boxes, batch.image_of))
    whole = torch.cat(parts)
    if not bool(torch.isfinite(whole).all()):
        raise ShardError(
            f"shard {base.place}: region embeddings hold NaN or infinity; the model is damaged, train it again"
        )
    return whole


def image_batches(
    base: BaseShard, boxes: np.ndarray, box_at: np.ndarray, size: int, max_pixels: int
) -> Iterator[ImageBatch]:
    """Batches of up to `size` images in tar order; `boxes[box_at[i]:box_at[i + 1]]` are those of image i."""
    for start in range(0, len(base), size):
        rows = range(start, min(start + size, len(base)))
        pixels = [decode_image(image_member(members), max_pixels) for members in base.batch(rows)]
        counts = np.diff(box_at[start : rows.stop + 1])
        yield ImageBatch(
            rows,
            torch.from_numpy(stack(pixels)),
            torch.from_numpy(boxes[box_at[start] : box_at[rows.stop]].astype(np.float32)),
            torch.from_numpy(np.repeat(np.arange(len(rows)), counts)),
        )
