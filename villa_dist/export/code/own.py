"""What models whose towers are this package's share: their config, their scale, and how the towers become embeddings.

Letters: N images, R boxes, D embedding.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from villa_dist.export.code.base import FolderModel
from villa_dist.vlm.model import MAX_SCALE


class VillaConfig(PretrainedConfig):
    """villa: how the towers are built. dim: width of the embeddings."""

    model_type = "villa"

    def __init__(self, villa: dict[str, Any] | None = None, dim: int = 128, **others: Any) -> None:
        self.villa, self.dim = villa or {}, dim
        super().__init__(**others)


class OwnTowers(FolderModel, PreTrainedModel):
    """A model that makes `image`, `projection` and `text`, and then calls `finish`."""

    config_class = VillaConfig
    image: Any
    projection: nn.Module

    def __init__(self, config: VillaConfig) -> None:
        super().__init__(config)
        self.dim = config.dim

    def finish(self) -> None:
        self.log_scale = nn.Parameter(torch.zeros(1))
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """All weights come from the folder."""

    @property
    def scale(self) -> Float[Tensor, ""]:
        """What cosines were multiplied with in training: one over the temperature."""
        return self.log_scale[0].exp().clamp(max=MAX_SCALE)

    def whole_batch(self, pixels: UInt8[Tensor, "N 3 H W"]) -> Float[Tensor, "N D"]:
        return F.normalize(self.projection(self.image.encode_whole(pixels)).float(), dim=-1)

    def regions_batch(
        self, pixels: UInt8[Tensor, "N 3 H W"], boxes: Float[Tensor, "R 4"], image_of: Int[Tensor, " R"]
    ) -> Float[Tensor, "R D"]:
        return F.normalize(self.projection(self.image.encode_regions(pixels, boxes, image_of)).float(), dim=-1)
