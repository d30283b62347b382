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

HELD_PIXELS = 1 << 26  # decoded at one time, 200 MB
SEE_PADDING = ("conv",)  # the others take each image at its own size


@dataclass(frozen=True)
class ImageBatch:
    """Images of a shard with their regions. N images, R regions."""

    pixels: Tensor  # N 3 H W uint8, padded
    boxes: Tensor  # R 4
    image_of: Tensor  # R, 0 to N - 1
    sizes: Tensor  # N 2, height and width before padding
    places: Tensor  # R, where each region stands in the shard


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
    whole = torch.zeros(len(boxes), width)
    device = next(model.parameters()).device
    with torch.inference_mode(), autocast(config.model.dtype, device):
        for batch in image_batches(base, boxes, box_at, config):
            if len(batch.places):
                inputs = (batch.pixels, batch.boxes, batch.image_of, batch.sizes)
                whole[batch.places] = embed(*(t.to(device) for t in inputs)).float().cpu()
    if not bool(torch.isfinite(whole).all()):
        raise ShardError(
            f"shard {base.place}: region embeddings hold NaN or infinity; the model is damaged, train it again"
        )
    return whole


def image_batches(base: BaseShard, boxes: np.ndarray, box_at: np.ndarray, config: Config) -> Iterator[ImageBatch]:
    """All images, in batches within the limits of `regions`; `boxes[box_at[i]:box_at[i + 1]]` are those of image i.

    Images decoded together, up to `batch_images` of them or HELD_PIXELS, are sorted by height and width, which keeps
    padding small. Towers that see the padding get images of one height and width at a time: it would reach into the
    features of boxes at the right and bottom edges, and an image's embedding would depend on its neighbours in the shard.
    """
    held: list[tuple[int, np.ndarray]] = []
    room = HELD_PIXELS
    for row, members in _members(base, config.regions.batch_images):
        pixels = decode_image(image_member(members), config.data.max_pixels)
        room -= pixels.shape[0] * pixels.shape[1]
        if held and (len(held) == config.regions.batch_images or room < 0):
            yield from _batched(held, boxes, box_at, config)
            held, room = [], HELD_PIXELS - pixels.shape[0] * pixels.shape[1]
        held.append((row, pixels))
    yield from _batched(held, boxes, box_at, config)


def _members(base: BaseShard, size: int) -> Iterator[tuple[int, dict[str, bytes]]]:
    for start in range(0, len(base), size):
        yield from enumerate(base.batch(range(start, min(start + size, len(base)))), start)


def _batched(
    held: list[tuple[int, np.ndarray]], boxes: np.ndarray, box_at: np.ndarray, config: Config
) -> Iterator[ImageBatch]:
    held = sorted(held, key=lambda row_pixels: row_pixels[1].shape)
    limits, counts = config.regions, np.diff(box_at)
    for span in batches(
        ((p.shape[0], p.shape[1]) for _, p in held),
        [int(counts[row]) for row, _ in held],
        max_images=limits.batch_images,
        max_pixels=limits.batch_pixels,
        max_boxes=limits.batch_boxes,
        one_size=config.model.image.kind in SEE_PADDING,
    ):
        rows = np.array([held[i][0] for i in span])
        images = [held[i][1] for i in span]
        places = np.concatenate([np.arange(box_at[row], box_at[row + 1]) for row in rows])
        yield ImageBatch(
            torch.from_numpy(stack(images)),
            torch.from_numpy(boxes[places].astype(np.float32)),
            torch.from_numpy(np.repeat(np.arange(len(rows)), counts[rows])),
            torch.tensor([p.shape[:2] for p in images]),
            torch.from_numpy(places),
        )
