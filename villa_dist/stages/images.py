"""Embedding the regions of a window of decoded samples, in batches that fit the device."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from shards.errors import ShardError
from villa_dist.config import Config
from villa_dist.data.plan import batches
from villa_dist.data.transforms import stack
from villa_dist.encoders.precision import autocast
from villa_dist.stages.windows import Sample

SEE_PADDING = ("conv",)  # the others take each image at its own size
NO_BOXES = np.zeros((0, 4), np.float32)


@dataclass(frozen=True)
class ImageBatch:
    """Images of a window with their regions. N images, R regions."""

    pixels: Tensor  # N 3 H W uint8, padded
    boxes: Tensor  # R 4
    image_of: Tensor  # R, 0 to N - 1
    sizes: Tensor  # N 2, height and width before padding
    places: Tensor  # R, where each region stands in the window


def embed_regions(
    embed: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor],
    model: nn.Module,
    window: Sequence[Sample],
    boxes: Sequence[np.ndarray],
    config: Config,
    width: int,
    place: str,
    what: str = "region",
) -> Tensor:
    """`embed(pixels, boxes, image_of, sizes)` over a window, batch by batch, where `model` is and in `model.dtype`.

    boxes[i]: of window[i]. place: of the shard, and what: the embeddings are of, for messages. Returns R x width in fp32 on
    the CPU, in the order of `boxes`. Raises: ShardError when an embedding is not finite.
    """
    whole = torch.zeros(sum(len(b) for b in boxes), width)
    device = next(model.parameters()).device
    with torch.inference_mode(), autocast(config.model.dtype, device):
        for batch in image_batches(window, boxes, config):
            if len(batch.places):
                inputs = (batch.pixels, batch.boxes, batch.image_of, batch.sizes)
                whole[batch.places] = embed(*(t.to(device) for t in inputs)).float().cpu()
    if not bool(torch.isfinite(whole).all()):
        raise ShardError(f"shard {place}: {what} embeddings hold NaN or infinity; the model is damaged, train it again")
    return whole


def image_batches(window: Sequence[Sample], boxes: Sequence[np.ndarray], config: Config) -> Iterator[ImageBatch]:
    """The images of a window, in batches within the limits of `regions`.

    They are sorted by height and width, which keeps padding small. Towers that see the padding get images of one height
    and width at a time: it would reach into the features of boxes at the right and bottom edges, and an image's embedding
    would depend on its neighbours in the shard.
    """
    pixels = [pixels_of(sample) for sample in window]
    order = sorted(range(len(window)), key=lambda i: pixels[i].shape)
    limits, counts = config.regions, np.array([len(b) for b in boxes], np.int64)
    box_at = np.concatenate([[0], np.cumsum(counts)])
    joined = np.concatenate([NO_BOXES, *boxes]).astype(np.float32)
    for span in batches(
        (pixels[i].shape[:2] for i in order),
        counts[order].tolist(),
        max_images=limits.batch_images,
        max_pixels=limits.batch_pixels,
        max_boxes=limits.batch_boxes,
        one_size=config.model.image.kind in SEE_PADDING,
    ):
        rows = np.array([order[i] for i in span])
        images = [pixels[row] for row in rows]
        places = np.concatenate([np.arange(box_at[row], box_at[row + 1]) for row in rows])
        yield ImageBatch(
            torch.from_numpy(stack(images)),
            torch.from_numpy(joined[places]),
            torch.from_numpy(np.repeat(np.arange(len(rows)), counts[rows])),
            torch.tensor([p.shape[:2] for p in images]),
            torch.from_numpy(places),
        )


def pixels_of(sample: Sample) -> np.ndarray:
    assert sample.pixels is not None, "the window was read without pixels"
    return sample.pixels
