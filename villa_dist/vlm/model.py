"""RegionVLM: an image tower, a projection, a text tower and a learnable temperature.

Letters: N images, R regions, T texts, D embedding, F features before projection.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn

from shards.errors import VillaError
from villa_dist.config import ModelConfig
from villa_dist.encoders import published as checkpoints
from villa_dist.encoders.image import IMAGE_TOWERS, ImageTower
from villa_dist.encoders.published import Published
from villa_dist.encoders.text import TEXT_TOWERS, TokenBatch

MAX_SCALE = 100.0
DIM, TEMPERATURE = 128, 0.07  # of models from scratch, unless the config says otherwise


class RegionVLM(nn.Module):
    """Embeds whole images, regions and texts in one space; all embeddings have unit length.

    published: what the towers are built from, with its weights if it has any; None: what `config.weights` names, if it
    names something. Raises: VillaError when a checkpoint is missing, of another kind, or has tensors of other shapes.
    """

    def __init__(self, config: ModelConfig, published: Published | None = None) -> None:
        super().__init__()
        if published is None and config.published:
            published = checkpoints.read(config)
        self.config = config
        self.published = published.without_weights() if published else None
        self.image: Any = IMAGE_TOWERS[config.image.kind](config.image, published, config.attention)
        self.dim = embedding_dim(config, self.image)
        own = self.image.dim is not None
        self.projection = self.image.projection() if own else nn.Linear(self.image.feature_dim, self.dim)
        self.text: Any = TEXT_TOWERS[config.text.kind](config.text, self.dim, published, config.attention)
        if self.text.dim != self.dim:
            raise VillaError(
                f"{config.weights}: images have {self.dim} dimensions and texts {self.text.dim}; give a whole model"
            )
        log_scale = published.log_scale if published else math.log(1.0 / TEMPERATURE)
        if config.temperature is not None:
            log_scale = math.log(1.0 / config.temperature)
        # one element, not a 0-dim tensor: DeepSpeed refuses those
        self.log_scale = nn.Parameter(torch.full((1,), log_scale))
        if published is not None and published.weights is not None:
            weights = {**published.weights, "log_scale": self.log_scale.detach()}
            checkpoints.load_weights(self, weights, f"model.weights: {config.weights}")
        if config.text.frozen:
            self.text.requires_grad_(False)

    @property
    def scale(self) -> Float[Tensor, ""]:
        return self.log_scale[0].exp().clamp(max=MAX_SCALE)

    def embed_whole(
        self, pixels: UInt8[Tensor, "N 3 H W"], sizes: Int[Tensor, "N 2"] | None = None
    ) -> Float[Tensor, "N D"]:
        """sizes: each image's height and width in the padded batch; None: all fill it."""
        return unit(self.projection(self.image.encode_whole(pixels, sizes)))

    def region_features(
        self,
        pixels: UInt8[Tensor, "N 3 H W"],
        boxes: Float[Tensor, "R 4"],
        image_of: Int[Tensor, " R"],
        sizes: Int[Tensor, "N 2"] | None = None,
    ) -> Float[Tensor, "R F"]:
        features: Tensor = self.image.encode_regions(pixels, boxes, image_of, sizes)
        return features

    def embed_regions(
        self,
        pixels: UInt8[Tensor, "N 3 H W"],
        boxes: Float[Tensor, "R 4"],
        image_of: Int[Tensor, " R"],
        sizes: Int[Tensor, "N 2"] | None = None,
    ) -> Float[Tensor, "R D"]:
        return unit(self.projection(self.region_features(pixels, boxes, image_of, sizes)))

    def embed_both(
        self,
        pixels: UInt8[Tensor, "N 3 H W"],
        boxes: Float[Tensor, "R 4"],
        image_of: Int[Tensor, " R"],
        sizes: Int[Tensor, "N 2"] | None = None,
    ) -> tuple[Float[Tensor, "N D"], Float[Tensor, "R D"]]:
        """`embed_whole` and `embed_regions`, from one pass over the pixels where the tower has one input for both."""
        if not hasattr(self.image, "encode_both"):
            return self.embed_whole(pixels, sizes), self.embed_regions(pixels, boxes, image_of, sizes)
        whole_NF, region_RF = self.image.encode_both(pixels, boxes, image_of)
        return unit(self.projection(whole_NF)), unit(self.projection(region_RF))

    def tokenize(self, texts: Sequence[str]) -> TokenBatch:
        tokens: TokenBatch = self.text.tokenize(texts)
        return tokens

    def embed_texts(self, batch: TokenBatch) -> Float[Tensor, "T D"]:
        embedding: Tensor = self.text(batch.to(self.log_scale.device))
        return embedding

    def embed_groups(self, batch: TokenBatch, group_of: Int[Tensor, " S"], groups: int) -> Float[Tensor, "T D"]:
        """Texts made of several sentences (or attributes of several prompts): the unit mean of their embeddings."""
        return group_mean(self.embed_texts(batch), group_of, groups)


def unit(features: Float[Tensor, "N D"]) -> Float[Tensor, "N D"]:
    return F.normalize(features.float(), dim=-1)


def embedding_dim(config: ModelConfig, image: ImageTower) -> int:
    """Raises: VillaError when the config and the checkpoint differ."""
    if image.dim is None:
        return config.dim or DIM
    if config.dim not in (None, image.dim):
        raise VillaError(
            f"model.dim={config.dim}, but embeddings of {config.weights} have {image.dim} dimensions; leave model.dim out"
        )
    return image.dim


def group_mean(embedding: Float[Tensor, "S D"], group_of: Int[Tensor, " S"], groups: int) -> Float[Tensor, "T D"]:
    total = embedding.new_zeros(groups, embedding.shape[1]).index_add(0, group_of.to(embedding.device), embedding)
    return F.normalize(total, dim=-1)
