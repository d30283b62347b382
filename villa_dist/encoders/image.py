"""Image towers: their protocol, the backends, and the small one that is trained from scratch.

ConvTower has a stem to a feature map and a region head that embeds whatever RoIAlign cuts from it. The whole image goes
through the same head convolutionally and its places are averaged, so that whole images and regions are embedded at one
scale (sending the whole image through the head as one box puts digits at chance).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn

from villa_dist.config import ImageTowerConfig
from villa_dist.encoders.norm import GlobalBatchNorm
from villa_dist.encoders.published import Published
from villa_dist.roi_align import roi_align

FLAT = 1e-3  # total weight below which an image counts as flat and its embedding fades to zero


class ImageTower(Protocol):
    """What an image tower offers: features of whole images and of regions, from pixels as they are decoded.

    `feature_dim` is the width of features, which `projection()` (a new module, with the checkpoint's shape for published
    towers) takes to embeddings of width `dim`; dim is None where the config decides. Resizing, normalising and carrying
    boxes into the input are the tower's own business.
    """

    feature_dim: int
    dim: int | None

    def projection(self) -> nn.Module: ...

    def encode_whole(
        self, pixels: UInt8[Tensor, "N 3 H W"], sizes: Int[Tensor, "N 2"] | None = None
    ) -> Float[Tensor, "N F"]:
        """sizes: each image's height and width in the padded batch; None: all fill it."""
        ...

    def encode_regions(
        self,
        pixels: UInt8[Tensor, "N 3 H W"],
        boxes: Float[Tensor, "R 4"],
        image_of: Int[Tensor, " R"],
        sizes: Int[Tensor, "N 2"] | None = None,
    ) -> Float[Tensor, "R F"]:
        """boxes: xyxy in pixels of the images as decoded."""
        ...


def to_unit_range(pixels: UInt8[Tensor, "N 3 H W"]) -> Float[Tensor, "N 3 H W"]:
    return pixels.to(torch.float32) / 255.0


def conv_block(channels_in: int, channels_out: int, stride: int) -> nn.Sequential:
    convolution = nn.Conv2d(channels_in, channels_out, 3, stride, 1, bias=False)
    return nn.Sequential(convolution, GlobalBatchNorm(channels_out), nn.ReLU())


def mean_by_activation(places: Float[Tensor, "N F h w"]) -> Float[Tensor, "N F"]:
    """Mean over places, each weighted by its mean activation above the image's least active place.

    A plain mean embeds an image that is mostly background as background, which no region is.
    """
    weight = places.mean(1, keepdim=True)
    weight = weight - weight.amin((2, 3), keepdim=True)
    pooled: Tensor = (places * weight).sum((2, 3)) / (weight.sum((2, 3)) + FLAT)
    return pooled


class ConvTower(nn.Module):
    """A small convolutional tower trained from scratch: stride 4 to the map, stride 8 in the head."""

    stride = 4
    dim = None

    def __init__(self, config: ImageTowerConfig) -> None:
        super().__init__()
        width = config.width
        self.bins = config.roi_bins
        self.feature_dim = 8 * width
        self.stem = nn.Sequential(
            conv_block(3, width // 2, 2), conv_block(width // 2, width, 2), conv_block(width, width, 1)
        )
        cells = (self.bins + 1) // 2
        self.least = 2 * self.stride * (cells - 1) + 1  # pixels a side of which the head makes one place
        self.head = nn.Sequential(
            conv_block(width, 2 * width, 2),
            nn.Conv2d(2 * width, self.feature_dim, cells, bias=False),  # a region becomes one place
            GlobalBatchNorm(self.feature_dim),
            nn.ReLU(),
        )

    def feature_map(self, pixels: Float[Tensor, "N 3 H W"]) -> Float[Tensor, "N C h w"]:
        maps: Tensor = self.stem(pixels.contiguous(memory_format=torch.channels_last))
        return maps

    def padded(self, pixels: UInt8[Tensor, "N 3 H W"]) -> UInt8[Tensor, "N 3 H2 W2"]:
        """Black to the right and below, up to `least` a side."""
        down, right = (max(self.least - side, 0) for side in pixels.shape[2:])
        return F.pad(pixels, (0, right, 0, down)) if down or right else pixels

    def whole(self, maps: Float[Tensor, "N C h w"]) -> Float[Tensor, "N F"]:
        return mean_by_activation(self.head(maps))

    def regions(
        self, maps: Float[Tensor, "N C h w"], boxes: Float[Tensor, "R 4"], image_of: Int[Tensor, " R"]
    ) -> Float[Tensor, "R F"]:
        cut = roi_align(maps, boxes, image_of, bins=self.bins, scale=1 / self.stride, samples=1)
        pooled: Tensor = self.head(cut).mean((2, 3))
        return pooled

    def projection(self) -> nn.Module:
        raise NotImplementedError("the config's `dim` decides: nn.Linear(feature_dim, dim)")

    def encode_whole(
        self, pixels: UInt8[Tensor, "N 3 H W"], sizes: Int[Tensor, "N 2"] | None = None
    ) -> Float[Tensor, "N F"]:
        return self.whole(self.feature_map(to_unit_range(self.padded(pixels))))

    def encode_regions(
        self,
        pixels: UInt8[Tensor, "N 3 H W"],
        boxes: Float[Tensor, "R 4"],
        image_of: Int[Tensor, " R"],
        sizes: Int[Tensor, "N 2"] | None = None,
    ) -> Float[Tensor, "R F"]:
        return self.regions(self.feature_map(to_unit_range(pixels)), boxes, image_of)

    def encode_both(
        self, pixels: UInt8[Tensor, "N 3 H W"], boxes: Float[Tensor, "R 4"], image_of: Int[Tensor, " R"]
    ) -> tuple[Float[Tensor, "N F"], Float[Tensor, "R F"]]:
        """Whole images and regions from one map."""
        maps = self.feature_map(to_unit_range(self.padded(pixels)))
        return self.whole(maps), self.regions(maps, boxes, image_of)


def _clip_rn50(config: ImageTowerConfig, published: Published | None, attention: str) -> nn.Module:
    from villa_dist.encoders.clip_rn50 import ClipResNetTower, ResNetSizes

    assert published is not None
    return ClipResNetTower(config, ResNetSizes.from_json(published.architecture["image"]), published.preprocess)


def _hf(config: ImageTowerConfig, published: Published | None, attention: str) -> nn.Module:
    from villa_dist.encoders.hf_image import HFImageTower
    from villa_dist.encoders.hf_library import build  # transformers takes seconds to import

    assert published is not None
    model = build(published.family, "vision", published.architecture, attention)
    return HFImageTower(config, published.family, published.preprocess, published.dim, model)


# all are nn.Modules that keep to ImageTower; those of a checkpoint are built with random weights
IMAGE_TOWERS: dict[str, Callable[[ImageTowerConfig, Published | None, str], Any]] = {
    "conv": lambda config, published, attention: ConvTower(config),
    "clip_rn50": _clip_rn50,
    "hf": _hf,
}
