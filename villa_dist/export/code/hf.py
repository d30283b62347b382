"""ViLLA on towers of the transformers library: its whole-image model, with regions added.

`CLIPModel` (or `SiglipModel`, `Siglip2Model`) loads the same folder without this code.
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from torch import Tensor
from transformers import CLIPModel as LibraryModel

from villa_dist.encoders.hf_image import HFImageTower
from villa_dist.encoders.text import longest, padded, token_batch
from villa_dist.export.code.base import PublishedFolderModel
from villa_dist.vlm.model import MAX_SCALE


class VillaModel(PublishedFolderModel, LibraryModel):
    """The library's model, and embed_image, embed_regions, embed_text and score; see `Embeds`."""

    image: HFImageTower

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        image, published = self.settings()
        self.family: str = published["family"]
        self.dim = int(published["dim"])
        tower = HFImageTower(image, self.family, self.preprocess(), self.dim, self.vision_model)
        self.__dict__["image"] = tower  # past nn.Module, which would count its weights twice

    @property
    def scale(self) -> Float[Tensor, ""]:
        """What cosines were multiplied with in training: one over the temperature."""
        return self.logit_scale.exp().clamp(max=MAX_SCALE).reshape(())

    def projected(self, features: Float[Tensor, "N F"]) -> Float[Tensor, "N D"]:
        if self.family == "clip":
            features = self.visual_projection(features)
        return F.normalize(features.float(), dim=-1)

    def whole_batch(self, pixels: UInt8[Tensor, "N 3 H W"]) -> Float[Tensor, "N D"]:
        return self.projected(self.image.encode_whole(pixels))

    def regions_batch(
        self, pixels: UInt8[Tensor, "N 3 H W"], boxes: Float[Tensor, "R 4"], image_of: Int[Tensor, " R"]
    ) -> Float[Tensor, "R D"]:
        return self.projected(self.image.encode_regions(pixels, boxes, image_of))

    def texts_batch(self, texts: list[str]) -> Float[Tensor, "T D"]:
        tokenizer = self.tokenizer_of_folder()
        batch = token_batch(tokenizer.ids(texts)).to(self.device)
        length = tokenizer.length if tokenizer.pad_to == "length" else longest(batch)
        ids_TL: Tensor = padded(batch, length, tokenizer.pad, left=tokenizer.side == "left")
        pooled = self.text_model(input_ids=ids_TL).pooler_output
        if self.family == "clip":
            pooled = self.text_projection(pooled)
        return F.normalize(pooled.float(), dim=-1)
