"""Regions as parts of images: boxes carried into inputs, RoIAlign on their maps, crops as images of their own.

Letters: N images, R regions, C channels, h x w map, P bins a side.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from villa_dist.config import ImageTowerConfig
from villa_dist.encoders.preprocess import Placement, Preprocess, Size, crop_placement
from villa_dist.roi_align import roi_align

MOST_SAMPLES = 8


def crops(
    sizes: Sequence[Size],
    boxes: Float[Tensor, "R 4"],
    image_of: Int[Tensor, " R"],
    config: ImageTowerConfig,
    preprocess: Preprocess,
    patch: int,
) -> list[Placement]:
    """One for each region."""
    return [
        crop_placement(sizes[n], box, config.context, preprocess, patch)
        for n, box in zip(image_of.tolist(), boxes.tolist(), strict=True)
    ]


def to_inputs(
    boxes: Float[Tensor, "R 4"], image_of: Int[Tensor, " R"], placed: Sequence[Placement]
) -> Float[Tensor, "R 4"]:
    """Boxes of images as boxes of those images' inputs; `placed` has one placement an image, of the whole of it."""
    factors = boxes.new_tensor([[p.factor[0], p.factor[1]] * 2 for p in placed]).view(-1, 4)
    return boxes * factors[image_of]


def adaptive_roi_align(
    maps: Float[Tensor, "N C h w"], boxes: Float[Tensor, "R 4"], image_of: Int[Tensor, " R"], bins: int, stride: int
) -> Float[Tensor, "R C P P"]:
    """RoIAlign whose bins take as many samples along each side as the box's longer side has cells to a bin.

    Boxes in pixels of the input. detectron2's kernel with sampling ratio 0, RegionCLIP's, counts each side by itself; the
    two agree where a box has no more than `bins` cells along its longer side: one sample.
    """
    longest_R = (boxes[:, 2:] - boxes[:, :2]).amax(1) if len(boxes) else boxes.new_zeros(0)
    samples_R = torch.ceil(longest_R / stride / bins - 1e-4).clamp(1, MOST_SAMPLES).to(torch.int64)
    found, order = [], []
    for samples in sorted({int(s) for s in samples_R.tolist()} or {1}):
        mine = (samples_R == samples).nonzero()[:, 0]
        found.append(roi_align(maps, boxes[mine], image_of[mine], bins=bins, scale=1 / stride, samples=samples))
        order.append(mine)
    return merge(found, order)


def merge(parts: Sequence[Tensor], order: Sequence[Tensor]) -> Tensor:
    """Rows computed group by group, back in their own order."""
    return torch.cat(list(parts))[torch.cat(list(order)).argsort()]


def spans(count: int, most: int) -> Iterator[slice]:
    """Slices of at most `most`, at least one. Where gradients are kept, all at once: every rank then calls a module
    equally often, whatever its number of regions."""
    step = max(count, 1) if torch.is_grad_enabled() else most
    for start in range(0, max(count, 1), step):
        yield slice(start, min(start + step, count))
