"""CLIP's ResNets (arXiv 2103.00020, section 2.4): RN50 and its wider and deeper kin, with the names of OpenAI's weights.

A stem of three convolutions, average pooling before every strided convolution (antialiasing), and attention pooling.
Regions as RegionCLIP (arXiv 2112.09106) and ViLLA take them: stages to layer3, RoIAlign to the trained grid (14 x 14
at 224 pixels), layer4, attention pooling.

A whole image of the trained size and a region over all of it are the same computation: 14 bins on a 14 x 14 map with one
sample a bin read exactly its cells. On a map of another size RoIAlign resamples, and the two differ.

Letters: N images, R regions, C channels, h x w map, F width of the embedding.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn

from villa_dist.config import ImageTowerConfig
from villa_dist.encoders.parts import adaptive_roi_align, crops, merge, spans, to_inputs
from villa_dist.encoders.preprocess import (
    Placement,
    Preprocess,
    by_shape,
    dense_placement,
    normalise,
    place,
    sizes_of,
    whole_placement,
)

STRIDE = 16  # of layer3's map
CHUNK = 128  # regions or crops encoded at once where no gradient is kept, which bounds memory
PATCH = 32  # inputs have multiples of it, so that every stage halves evenly


@dataclass(frozen=True)
class ResNetSizes:
    """RN50: layers (3, 4, 6, 3), width 64, heads 32, side 224, dim 1024."""

    layers: tuple[int, int, int, int]
    width: int
    heads: int
    side: int
    dim: int

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> ResNetSizes:
        a, b, c, d = values["layers"]
        return cls(**{**values, "layers": (a, b, c, d)})


class FixedBatchNorm(nn.BatchNorm2d):
    """Batch norm by its stored statistics, in training too: no image depends on its batch, nor a run on its world size.

    Scale and shift learn. RegionCLIP fine-tunes so as well.
    """

    def forward(self, input: Float[Tensor, "N C h w"]) -> Float[Tensor, "N C h w"]:
        if not input.numel():  # the fused kernel's backward divides by the number of places
            return input * self.weight.view(1, -1, 1, 1)
        return F.batch_norm(
            input, self.running_mean, self.running_var, self.weight, self.bias, training=False, eps=self.eps
        )


class Bottleneck(nn.Module):
    expansion = 4

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 1, bias=False)
        self.bn1 = FixedBatchNorm(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = FixedBatchNorm(channels)
        self.avgpool = nn.AvgPool2d(stride) if stride > 1 else nn.Identity()
        self.conv3 = nn.Conv2d(channels, channels * self.expansion, 1, bias=False)
        self.bn3 = FixedBatchNorm(channels * self.expansion)
        self.downsample: nn.Sequential | None = None
        if stride > 1 or channels_in != channels * self.expansion:
            parts: dict[str, nn.Module] = {
                "-1": nn.AvgPool2d(stride) if stride > 1 else nn.Identity(),
                "0": nn.Conv2d(channels_in, channels * self.expansion, 1, bias=False),
                "1": FixedBatchNorm(channels * self.expansion),
            }
            self.downsample = nn.Sequential()
            for name, part in parts.items():
                self.downsample.add_module(name, part)

    def forward(self, x: Float[Tensor, "N C h w"]) -> Float[Tensor, "N c i j"]:
        out = F.relu(self.bn1(self.conv1(x)))
        out = F.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(self.avgpool(out)))
        return F.relu(out + (x if self.downsample is None else self.downsample(x)))


class AttentionPool(nn.Module):
    """One attention layer whose query is the mean of all places; its output is the embedding."""

    def __init__(self, cells: int, channels: int, heads: int, dim: int) -> None:
        super().__init__()
        self.cells, self.heads = cells, heads
        self.positional_embedding = nn.Parameter(torch.randn(cells * cells + 1, channels) / channels**0.5)
        self.k_proj = nn.Linear(channels, channels)
        self.q_proj = nn.Linear(channels, channels)
        self.v_proj = nn.Linear(channels, channels)
        self.c_proj = nn.Linear(channels, dim)

    def forward(self, maps: Float[Tensor, "N C h w"]) -> Float[Tensor, "N F"]:
        number, channels, height, width = maps.shape
        places = maps.flatten(2).transpose(1, 2)
        tokens = torch.cat([places.mean(1, keepdim=True), places], 1) + self.positions(height, width)[None]

        def split(x: Tensor) -> Tensor:
            return x.view(number, x.shape[1], self.heads, channels // self.heads).transpose(1, 2)

        q, k, v = split(self.q_proj(tokens[:, :1])), split(self.k_proj(tokens)), split(self.v_proj(tokens))
        pooled = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(number, channels)
        embedding: Tensor = self.c_proj(pooled)
        return embedding

    def positions(self, height: int, width: int) -> Float[Tensor, "P C"]:
        """The mean's and each place's position; bicubic between the trained ones on a grid of another shape."""
        if (height, width) == (self.cells, self.cells):
            return self.positional_embedding
        grid = self.positional_embedding[1:].T.reshape(1, -1, self.cells, self.cells)
        grid = F.interpolate(grid, size=(height, width), mode="bicubic", align_corners=False)
        return torch.cat([self.positional_embedding[:1], grid[0].flatten(1).T])


class ClipResNetTower(nn.Module):
    """CLIP's modified ResNet. `dim` is the width of whole-image and region embeddings; no projection follows."""

    def __init__(self, config: ImageTowerConfig, sizes: ResNetSizes, preprocess: Preprocess) -> None:
        super().__init__()
        self.config, self.sizes, self.preprocess = config, sizes, preprocess
        self.side = config.size or sizes.side
        width = sizes.width
        self.bins = sizes.side // STRIDE
        self.dim = self.feature_dim = sizes.dim
        self.conv1 = nn.Conv2d(3, width // 2, 3, 2, 1, bias=False)
        self.bn1 = FixedBatchNorm(width // 2)
        self.conv2 = nn.Conv2d(width // 2, width // 2, 3, padding=1, bias=False)
        self.bn2 = FixedBatchNorm(width // 2)
        self.conv3 = nn.Conv2d(width // 2, width, 3, padding=1, bias=False)
        self.bn3 = FixedBatchNorm(width)
        self.avgpool = nn.AvgPool2d(2)
        channels, stages = width, []
        for index, (blocks, stride) in enumerate(zip(sizes.layers, (1, 2, 2, 2), strict=True)):
            planes = width * 2**index
            stage = [Bottleneck(channels, planes, stride)]
            channels = planes * Bottleneck.expansion
            stage += [Bottleneck(channels, planes, 1) for _ in range(1, blocks)]
            stages.append(nn.Sequential(*stage))
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.attnpool = AttentionPool(sizes.side // PATCH, channels, sizes.heads, sizes.dim)

    def projection(self) -> nn.Module:
        return nn.Identity()  # attention pooling ends in it

    def feature_map(self, images: Float[Tensor, "N 3 h w"]) -> Float[Tensor, "N C i j"]:
        """Normalised images to layer3's map, of stride 16."""
        x = F.relu(self.bn1(self.conv1(images.contiguous(memory_format=torch.channels_last))))
        x = F.relu(self.bn2(self.conv2(x)))
        x = self.avgpool(F.relu(self.bn3(self.conv3(x))))
        maps: Tensor = self.layer3(self.layer2(self.layer1(x)))
        return maps

    def whole(self, maps: Float[Tensor, "N C i j"]) -> Float[Tensor, "N F"]:
        embedding: Tensor = self.attnpool(self.layer4(maps))
        return embedding

    def regions(
        self, maps: Float[Tensor, "N C i j"], boxes: Float[Tensor, "R 4"], image_of: Int[Tensor, " R"]
    ) -> Float[Tensor, "R F"]:
        """Boxes in pixels of the input."""
        found = []
        for span in spans(len(boxes), CHUNK):
            found.append(self.whole(adaptive_roi_align(maps, boxes[span], image_of[span], self.bins, STRIDE)))
        return torch.cat(found)

    def encode_whole(
        self, pixels: UInt8[Tensor, "N 3 H W"], sizes: Int[Tensor, "N 2"] | None = None
    ) -> Float[Tensor, "N F"]:
        every = sizes_of(pixels, sizes)
        return self.encode(pixels, range(len(every)), [whole_placement(s, self.preprocess, PATCH) for s in every])

    def encode(
        self, pixels: UInt8[Tensor, "N 3 H W"], image_of: range | list[int], placements: list[Placement]
    ) -> Float[Tensor, "M F"]:
        """M parts of images, all of the trained square."""
        found, shape = [], (self.preprocess.side, self.preprocess.side)
        for span in spans(len(placements), CHUNK):
            chosen = zip(image_of[span], placements[span], strict=True)
            images = [place(pixels[n], p, self.preprocess.filter) for n, p in chosen]
            stacked = torch.stack(images) if images else pixels.new_zeros(0, 3, *shape)
            found.append(self.whole(self.feature_map(normalise(stacked, self.preprocess))))
        return torch.cat(found)

    def encode_regions(
        self,
        pixels: UInt8[Tensor, "N 3 H W"],
        boxes: Float[Tensor, "R 4"],
        image_of: Int[Tensor, " R"],
        sizes: Int[Tensor, "N 2"] | None = None,
    ) -> Float[Tensor, "R F"]:
        """Regions in pixels of the images. Images of one input shape are one batch, so that none is padded."""
        every = sizes_of(pixels, sizes)
        if self.config.regions == "crops":
            placed = crops(every, boxes, image_of, self.config, self.preprocess, PATCH)
            return self.encode(pixels, image_of.tolist(), placed)
        placements = [dense_placement(s, self.side, PATCH, self.config.shape) for s in every]
        features, order = [], []
        for images in by_shape(placements).values():
            chosen = torch.tensor(images, device=image_of.device)
            mine = torch.isin(image_of, chosen).nonzero()[:, 0]
            stacked = torch.stack([place(pixels[n], placements[n], self.preprocess.filter) for n in images])
            maps = self.feature_map(normalise(stacked, self.preprocess))
            inputs = to_inputs(boxes[mine], image_of[mine], placements)
            features.append(self.regions(maps, inputs, torch.searchsorted(chosen, image_of[mine])))
            order.append(mine)
        return merge(features, order)
