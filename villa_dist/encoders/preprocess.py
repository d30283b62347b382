"""From decoded pixels to a tower's input, and boxes along with them. No torchvision.

Resizing is PIL's (antialiased, across and then down, 8 bits between) to within 2 of 255 levels; Pillow 13 goes down first
where that is cheaper, from which single pixels of noise differ by up to 6 levels, the mean by 0.2. Pixel edges map to
pixel edges, so a box maps by one factor an axis and an offset, exactly, and back.
Sizes are (height, width); boxes are xyxy in pixels. Letters: N images, R boxes, S the images of a shape.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from torch import Tensor

Size = tuple[int, int]
LONGEST = 8  # an image more than this much longer than wide is cut to it before a centre crop, which bounds memory


@dataclass(frozen=True)
class Preprocess:
    """What a checkpoint expects of a whole image.

    short: length its shorter side is resized to before a `side` x `side` centre is cut out (CLIP); None: it is
    squashed to `side` x `side` (SigLIP). max_patches: it keeps its shape, within so many patches (SigLIP 2 NaFlex).
    """

    side: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    short: int | None = None
    filter: Literal["bicubic", "bilinear"] = "bicubic"
    max_patches: int | None = None

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Preprocess:
        return cls(**{**values, "mean": tuple(values["mean"]), "std": tuple(values["std"])})


CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class Placement:
    """Where a part of an image (`cut`: top, left, height, width) lies in an input of `shape`.

    The cut is resized to `resized`, of which the `shape` at (top, left) is kept.
    """

    cut: tuple[int, int, int, int]
    resized: Size
    shape: Size
    top: int = 0
    left: int = 0

    @property
    def factor(self) -> tuple[float, float]:
        """Input pixels an image pixel, (across, down)."""
        return self.resized[1] / self.cut[3], self.resized[0] / self.cut[2]

    def to_input(self, boxes: Float[Tensor, "R 4"]) -> Float[Tensor, "R 4"]:
        across, down = self.factor
        scale = boxes.new_tensor([across, down, across, down])
        start = boxes.new_tensor([self.cut[1], self.cut[0]] * 2)
        return (boxes - start) * scale - boxes.new_tensor([self.left, self.top] * 2)

    def to_image(self, boxes: Float[Tensor, "R 4"]) -> Float[Tensor, "R 4"]:
        """The inverse of `to_input`."""
        across, down = self.factor
        scale = boxes.new_tensor([across, down, across, down])
        start = boxes.new_tensor([self.cut[1], self.cut[0]] * 2)
        return (boxes + boxes.new_tensor([self.left, self.top] * 2)) / scale + start


def whole_placement(size: Size, config: Preprocess, patch: int) -> Placement:
    """A whole image as the checkpoint was trained to see it."""
    height, width = size
    every = (0, 0, height, width)
    if config.max_patches is not None:
        shape = patch_shape(size, patch, config.max_patches)
        return Placement(every, shape, shape)
    square = (config.side, config.side)
    if config.short is None:
        return Placement(every, square, square)
    longest = LONGEST * min(size)
    if max(size) > longest:
        every = (max(0, height - longest) // 2, max(0, width - longest) // 2, min(height, longest), min(width, longest))
        height, width = every[2:]
    if width <= height:
        resized = (int(config.short * height / width), config.short)
    else:
        resized = (config.short, int(config.short * width / height))
    return Placement(every, resized, square, (resized[0] - config.side) // 2, (resized[1] - config.side) // 2)


def dense_placement(size: Size, side: int, patch: int, shape: Literal["aspect", "square"]) -> Placement:
    """All of an image in about side x side pixels, for a feature map; both lengths are multiples of `patch`."""
    cells = max(side // patch, 1)
    fitted = (cells * patch, cells * patch) if shape == "square" else patch_shape(size, patch, cells * cells)
    return Placement((0, 0, *size), fitted, fitted)


def crop_placement(size: Size, box: Sequence[float], context: float, config: Preprocess, patch: int) -> Placement:
    """A region as an image of its own: its box times `context`, on whole pixels inside the image, squashed to the square
    (or, with `max_patches`, in its own shape). Nothing of it is cut off, as a centre crop would."""
    height, width = size
    x1, y1, x2, y2 = box
    half_w, half_h = (x2 - x1) * context / 2, (y2 - y1) * context / 2
    x, y = (x1 + x2) / 2, (y1 + y2) / 2
    left, top = (min(max(math.floor(v), 0), n - 1) for v, n in ((x - half_w, width), (y - half_h, height)))
    right, bottom = min(max(math.ceil(x + half_w), left + 1), width), min(max(math.ceil(y + half_h), top + 1), height)
    cut = (top, left, bottom - top, right - left)
    if config.max_patches is not None:
        shape = patch_shape((cut[2], cut[3]), patch, config.max_patches)
    else:
        shape = (config.side, config.side)
    return Placement(cut, shape, shape)


@lru_cache(maxsize=4096)
def patch_shape(size: Size, patch: int, max_patches: int) -> Size:
    """The largest shape near an image's own whose sides are multiples of `patch`, within `max_patches` patches.

    SigLIP 2's rule (arXiv 2502.14786): both sides are scaled alike and rounded up to whole patches; the scale is
    searched by halving to 1e-5, as the published one is, since its last digits decide close cases.
    """

    def scaled(scale: float) -> Size:
        height, width = (max(patch, math.ceil(length * scale / patch) * patch) for length in size)
        return height, width

    low, high = 1e-6, 100.0
    while high - low >= 1e-5:
        middle = (low + high) / 2
        height, width = scaled(middle)
        if (height / patch) * (width / patch) <= max_patches:
            low = middle
        else:
            high = middle
    return scaled(low)


def resize(image: UInt8[Tensor, "3 H W"], shape: Size, kind: str) -> UInt8[Tensor, "3 h w"]:
    if image.shape[1:] == shape:
        return image
    if image.device.type == "cpu":
        return F.interpolate(image[None], size=shape, mode=kind, antialias=True, align_corners=False)[0]
    return resize_float(image, shape, kind)


def resize_float(image: UInt8[Tensor, "3 H W"], shape: Size, kind: str) -> UInt8[Tensor, "3 h w"]:
    """`resize` by the float kernels, the only ones of other devices: across, then down, rounded where PIL rounds."""
    for target in ((image.shape[1], shape[1]), shape):
        found = F.interpolate(image[None].float(), size=target, mode=kind, antialias=True, align_corners=False)[0]
        image = found.clamp(0, 255).round().to(torch.uint8)
    return image


def place(image: UInt8[Tensor, "3 H W"], placement: Placement, kind: str) -> UInt8[Tensor, "3 h w"]:
    """Cut, resize and cut again as the placement says."""
    top, left, height, width = placement.cut
    resized = resize(image[:, top : top + height, left : left + width], placement.resized, kind)
    height, width = placement.shape
    return resized[:, placement.top : placement.top + height, placement.left : placement.left + width]


def normalise(images: UInt8[Tensor, "N 3 h w"], config: Preprocess) -> Float[Tensor, "N 3 h w"]:
    mean, std = (torch.tensor(v, device=images.device).view(3, 1, 1) for v in (config.mean, config.std))
    return (images.to(torch.float32) / 255.0 - mean) / std


def sizes_of(pixels: UInt8[Tensor, "N 3 H W"], sizes: Int[Tensor, "N 2"] | None) -> list[Size]:
    """Every image's own (height, width) in a padded batch; without `sizes`, all fill it."""
    if sizes is None:
        return [(int(pixels.shape[2]), int(pixels.shape[3]))] * int(pixels.shape[0])
    return [(height, width) for height, width in sizes.tolist()]


def by_shape(placements: Sequence[Placement]) -> dict[Size, list[int]]:
    """Which inputs have which shape, in order of first appearance: those can be one batch without padding."""
    found: dict[Size, list[int]] = {}
    for index, placement in enumerate(placements):
        found.setdefault(placement.shape, []).append(index)
    return found
