"""ViLLA with a convolutional image tower and a tower of hashed words, both trained from scratch."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

from villa_dist.encoders.image import ConvTower
from villa_dist.encoders.text import WordTower
from villa_dist.export.code.base import settings_of
from villa_dist.export.code.own import OwnTowers, VillaConfig


class VillaModel(OwnTowers):
    """embed_image, embed_regions, embed_text and score; see `Embeds`."""

    def __init__(self, config: VillaConfig) -> None:
        super().__init__(config)
        image, _ = self.settings()
        self.image = ConvTower(image)
        self.projection = nn.Linear(self.image.feature_dim, self.dim)
        self.text = WordTower(settings_of(config.villa["model"]["text"]), self.dim)
        self.finish()

    def texts_batch(self, texts: list[str]) -> Float[Tensor, "T D"]:
        found: Tensor = self.text(self.text.tokenize(texts).to(self.device))
        return found
