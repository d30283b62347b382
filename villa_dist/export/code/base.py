"""What the exported models share: images, texts and settings as they come from a folder.

Letters: N images, R boxes, T texts, D embedding, F features.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from jaxtyping import UInt8
from torch import Tensor
from transformers.utils.hub import cached_file

from shards.errors import VillaError
from villa_dist.embedding import Embeds
from villa_dist.encoders.preprocess import Preprocess
from villa_dist.encoders.tokenizer import TextTokenizer


class FolderModel(Embeds):
    """A model whose `config.villa` says how it was built, and whose tokenizer lies beside its weights."""

    config: Any
    device: torch.device

    @property
    def embeds_on(self) -> torch.device:
        return self.device

    def pixels_of(self, image: Any) -> UInt8[Tensor, "3 H W"]:
        """A PIL image (converted to RGB), or uint8 H x W x 3 (an array), or uint8 3 x H x W (a tensor)."""
        if hasattr(image, "convert"):
            rgb = image.convert("RGB")
            flat = torch.frombuffer(bytearray(rgb.tobytes()), dtype=torch.uint8)
            return flat.view(rgb.height, rgb.width, 3).permute(2, 0, 1)
        if isinstance(image, str):
            raise VillaError(f"{image}: give an opened image (PIL.Image.open), not a path")
        channels_first = isinstance(image, Tensor)
        found = image if isinstance(image, Tensor) else torch.tensor(image)
        if found.dtype != torch.uint8 or found.ndim != 3 or found.shape[0 if channels_first else 2] != 3:
            raise VillaError(
                f"an image of shape {tuple(found.shape)} and type {found.dtype}; give a PIL image, a uint8 array of "
                "H x W x 3 or a uint8 tensor of 3 x H x W"
            )
        return found if channels_first else found.permute(2, 0, 1)

    def settings(self) -> tuple[Any, dict[str, Any]]:
        """(those of the image tower, what its towers were published with)."""
        return settings_of(self.config.villa["model"]["image"]), self.config.villa.get("published") or {}


class PublishedFolderModel(FolderModel):
    """One whose towers came from a published checkpoint."""

    tokenizer: TextTokenizer | None = None

    def preprocess(self) -> Preprocess:
        return Preprocess.from_json(self.config.villa["published"]["preprocess"])

    def tokenizer_of_folder(self) -> TextTokenizer:
        """Read with the first text. Raises: VillaError when tokenizer.json is not in the folder the model came from."""
        if self.tokenizer is None:
            place = self.config.name_or_path
            file = cached_file(place, "tokenizer.json", _raise_exceptions_for_missing_entries=False) if place else None
            if file is None:
                raise VillaError(f"{place or 'this model'} has no tokenizer.json; load the exported folder itself")
            with open(file, encoding="utf-8") as f:
                self.tokenizer = TextTokenizer(f.read(), **self.config.villa["published"]["tokenizer"])
        return self.tokenizer


def settings_of(section: dict[str, Any]) -> Any:
    """A section of the config, its keys as attributes."""
    return SimpleNamespace(**section)
