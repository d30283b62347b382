"""RegionVLM: an image tower, a projection, a text tower and a learnable temperature.

Letters: N images, R regions, T texts, D embedding, F features before projection.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn

from villa_dist.config import ModelConfig
from villa_dist.encoders.image import IMAGE_TOWERS
from villa_dist.encoders.text import TEXT_TOWERS, TokenBatch, tokenize_words

MAX_SCALE = 100.0


def to_unit_range(pixels: UInt8[Tensor, "N 3 H W"]) -> Float[Tensor, "N 3 H W"]:
    return pixels.to(torch.float32) / 255.0


class RegionVLM(nn.Module):
    """Embeds whole images, regions and texts in one space; all embeddings have unit length."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.image = IMAGE_TOWERS[config.image.name](config.image)
        self.projection = nn.Linear(self.image.feature_dim, config.dim)
        self.text = TEXT_TOWERS[config.text.name](config.text, config.dim)
        # one element, not a 0-dim tensor: DeepSpeed refuses those
        self.log_scale = nn.Parameter(torch.full((1,), math.log(1.0 / config.temperature)))

    @property
    def scale(self) -> Float[Tensor, ""]:
        return self.log_scale[0].exp().clamp(max=MAX_SCALE)

    def embed_whole(self, pixels: UInt8[Tensor, "N 3 H W"]) -> Float[Tensor, "N D"]:
        maps = self.image.feature_map(to_unit_range(pixels))
        return F.normalize(self.projection(self.image.whole(maps)), dim=-1)

    def region_features(
        self, pixels: UInt8[Tensor, "N 3 H W"], boxes: Float[Tensor, "R 4"], image_of: Int[Tensor, " R"]
    ) -> Float[Tensor, "R F"]:
        return self.image.regions(self.image.feature_map(to_unit_range(pixels)), boxes, image_of)

    def embed_regions(
        self, pixels: UInt8[Tensor, "N 3 H W"], boxes: Float[Tensor, "R 4"], image_of: Int[Tensor, " R"]
    ) -> Float[Tensor, "R D"]:
        return F.normalize(self.projection(self.region_features(pixels, boxes, image_of)), dim=-1)

    def tokenize(self, texts: Sequence[str]) -> TokenBatch:
        return tokenize_words(texts, self.config.text.buckets)

    def embed_texts(self, batch: TokenBatch) -> Float[Tensor, "T D"]:
        embedding: Tensor = self.text(batch.to(self.log_scale.device))
        return embedding

    def embed_groups(self, batch: TokenBatch, group_of: Int[Tensor, " S"], groups: int) -> Float[Tensor, "T D"]:
        """Texts made of several sentences (or attributes of several prompts): the unit mean of their embeddings."""
        return group_mean(self.embed_texts(batch), group_of, groups)


def group_mean(embedding: Float[Tensor, "S D"], group_of: Int[Tensor, " S"], groups: int) -> Float[Tensor, "T D"]:
    total = embedding.new_zeros(groups, embedding.shape[1]).index_add(0, group_of.to(embedding.device), embedding)
    return F.normalize(total, dim=-1)
