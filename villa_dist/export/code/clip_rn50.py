"""ViLLA with CLIP's ResNet and text transformer (arXiv 2103.00020); regions as RegionCLIP takes them."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from villa_dist.encoders.clip_rn50 import ClipResNetTower, ResNetSizes
from villa_dist.encoders.clip_text import ClipTextTower, TextSizes
from villa_dist.export.code.base import PublishedFolderModel
from villa_dist.export.code.own import OwnTowers, VillaConfig


class VillaModel(PublishedFolderModel, OwnTowers):
    """embed_image, embed_regions, embed_text and score; see `Embeds`."""

    def __init__(self, config: VillaConfig) -> None:
        super().__init__(config)
        image, published = self.settings()
        sizes = published["architecture"]
        self.image = ClipResNetTower(image, ResNetSizes.from_json(sizes["image"]), self.preprocess())
        self.projection = self.image.projection()
        self.text = ClipTextTower(TextSizes(**sizes["text"]))
        self.finish()

    def texts_batch(self, texts: list[str]) -> Float[Tensor, "T D"]:
        self.text.tokenizer = self.tokenizer_of_folder()
        found: Tensor = self.text(self.text.tokenize(texts).to(self.device))
        return found
