"""Decoding a shard in batches of images, for the stages that embed regions."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from shards.decode import decode_image, image_member
from shards.errors import ShardError
from shards.reader import BaseShard
from villa_dist.config import Config
from villa_dist.data.plan import batches
from villa_dist.data.transforms import stack
from villa_dist.encoders.precision import autocast


@dataclass(frozen=True)
class ImageBatch:
    """Images `rows` of a shard with their regions. N images, R regions."""

    rows: range
    pixels: Tensor  # N 3 H W uint8, padded
    boxes: Tensor  # R 4
    image_of: Tensor  # R, 0 to N - 1
    sizes: Tensor  # N 2, height and width before padding


def embed_regions(
    embed: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor],
    model: nn.Module,
    base: BaseShard,
    boxes: np.ndarray,
    box_at: np.ndarray,
    config: Config,
    width: int,
) -> Tensor:
    """`embed(pixels, boxes, image_of, sizes)` over a whole shard, batch by batch, where `model` is and in `model.dtype`.

    Returns R x width in fp32 on the CPU, in the order of `boxes`. Raises: ShardError when an embedding is not finite.
    """
    parts = [torch.zeros(0, width)]
    device = next(model.parameters()).device
    with torch.inference_mode(), autocast(config.model.dtype, device):
        for batch in image_batches(base, boxes, box_at, config):
            inputs = (batch.pixels, batch.boxes, batch.image_of, batch.sizes)
            parts.append(embed(*(t.to(device) for t in inputs)).float().cpu())
    whole = torch.cat(parts)
    if not bool(torch.isfinite(whole).all()):
        raise ShardError(
            f"shard {base.place}: region embeddings hold NaN or infinity; the model is damaged, train it again"
        )
    return whole


def image_batches(base: BaseShard, boxes: np.ndarray, box_at: np.ndarray, config: Config) -> Iterator[ImageBatch]:
    """Batches in tar order within the limits of `regions`; `boxes[box_at[i]:box_at[i + 1]]` are those of image i."""
    limits, held = config.regions, list[np.ndarray]()

    def sizes() -> Iterator[tuple[int, int]]:
        for start in range(0, len(base), limits.batch_images):
            for members in base.batch(range(start, min(start + limits.batch_images, len(base)))):
                held.append(decode_image(image_member(members), config.data.max_pixels))
                yield held[-1].shape[0], held[-1].shape[1]

    counts = np.diff(box_at)
    for rows in batches(
        sizes(),
        counts.tolist(),
        max_images=limits.batch_images,
        max_pixels=limits.batch_pixels,
        max_boxes=limits.batch_boxes,
    ):
        pixels = held[: len(rows)]
        del held[: len(rows)]
        yield ImageBatch(
            rows,
            torch.from_numpy(stack(pixels)),
            torch.from_numpy(boxes[box_at[rows.start] : box_at[rows.stop]].astype(np.float32)),
            torch.from_numpy(np.repeat(np.arange(len(rows)), counts[rows.start : rows.stop])),
            torch.tensor([p.shape[:2] for p in pixels]),
        )
