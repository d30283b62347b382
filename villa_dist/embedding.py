"""What a user asks of a region VLM: embeddings of images, of boxes in them and of texts, in one space, and their scores.

`villa_dist.RegionVLM` and the code in an exported folder share it. Letters: N images, R boxes, T texts, D embedding.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from shards.errors import VillaError

IMAGES_AT_ONCE, TEXTS_AT_ONCE = 16, 256
EDGE = 0.5  # pixels that a box may reach over the image's edge, as rounded boxes do


class Embeds(ABC):
    """Every embedding is a row of float32 of unit length, on the model's device, without gradients.

    An image is whatever `pixels_of` takes. A subclass says how a batch of images of one size is embedded.
    """

    dim: int

    @torch.no_grad()
    def embed_image(self, images: Any) -> Float[Tensor, "N D"]:
        """Whole images, one or a list of them; N is 1 for one. Raises: VillaError for what is no image."""
        every = [self.pixels_of(i) for i in (images if isinstance(images, list | tuple) else [images])]
        found = torch.zeros(len(every), self.dim, device=self.embeds_on)
        by_size: dict[tuple[int, ...], list[int]] = {}
        for n, pixels in enumerate(every):
            by_size.setdefault(tuple(pixels.shape), []).append(n)
        for alike in by_size.values():
            for start in range(0, len(alike), IMAGES_AT_ONCE):
                chosen = alike[start : start + IMAGES_AT_ONCE]
                found[chosen] = self.whole_batch(torch.stack([every[n] for n in chosen]).to(self.embeds_on))
        return found

    @torch.no_grad()
    def embed_regions(self, image: Any, boxes: Any) -> Float[Tensor, "R D"]:
        """Boxes of one image: R x 4 numbers (a list, an array, a tensor), x1, y1, x2, y2 in pixels of the image, whose top
        left corner is 0, 0. Raises: VillaError that names the first box without area, not finite or outside."""
        pixels = self.pixels_of(image)
        checked = checked_boxes(boxes, int(pixels.shape[2]), int(pixels.shape[1])).to(self.embeds_on)
        if not len(checked):
            return torch.zeros(0, self.dim, device=self.embeds_on)
        image_of = torch.zeros(len(checked), dtype=torch.int64, device=self.embeds_on)
        return self.regions_batch(pixels[None].to(self.embeds_on), checked, image_of)

    @torch.no_grad()
    def embed_text(self, texts: str | Sequence[str]) -> Float[Tensor, "T D"]:
        """Texts, one or several; T is 1 for one. Each is taken as it is, without a prompt around it."""
        every = [texts] if isinstance(texts, str) else list(texts)
        strange = next((t for t in every if not isinstance(t, str)), None)
        if strange is not None:
            raise VillaError(f"a text is a {type(strange).__name__}; give a str or a list of them")
        parts = [torch.zeros(0, self.dim, device=self.embeds_on)]
        for start in range(0, len(every), TEXTS_AT_ONCE):
            parts.append(self.texts_batch(every[start : start + TEXTS_AT_ONCE]))
        return torch.cat(parts)

    def score(self, image: Any, boxes: Any, texts: str | Sequence[str]) -> Float[Tensor, "R T"]:
        """Cosine, -1 to 1, of each box of an image with each text. `(model.scale * score).softmax(1)` are probabilities over
        the texts, as in training. boxes: as in `embed_regions`; None: the whole image, so R is 1."""
        regions = self.embed_image(image) if boxes is None else self.embed_regions(image, boxes)
        return regions @ self.embed_text(texts).T

    # ---- what a subclass says

    @property
    @abstractmethod
    def embeds_on(self) -> torch.device:
        """Where embeddings are made."""

    @abstractmethod
    def pixels_of(self, image: Any) -> UInt8[Tensor, "3 H W"]:
        """Raises: VillaError for what is no image."""

    @abstractmethod
    def whole_batch(self, pixels: UInt8[Tensor, "N 3 H W"]) -> Float[Tensor, "N D"]:
        """Of images of one size."""

    @abstractmethod
    def regions_batch(
        self, pixels: UInt8[Tensor, "N 3 H W"], boxes: Float[Tensor, "R 4"], image_of: Int[Tensor, " R"]
    ) -> Float[Tensor, "R D"]:
        """Of images of one size."""

    @abstractmethod
    def texts_batch(self, texts: list[str]) -> Float[Tensor, "T D"]:
        """Of a few texts."""


def checked_boxes(boxes: Any, width: int, height: int) -> Float[Tensor, "R 4"]:
    """Boxes as a float tensor, cut to the image. Raises: VillaError naming the first one that cannot be embedded."""
    try:
        given = boxes.detach().cpu() if isinstance(boxes, Tensor) else torch.tensor(boxes)
        found = given.to(torch.float32)
    except (TypeError, ValueError, RuntimeError) as error:
        raise VillaError(
            f"boxes cannot be read ({error}); give R x 4 numbers, each row x1, y1, x2, y2 in pixels"
        ) from None
    if not found.numel() and found.ndim in (1, 2):
        return found.new_zeros(0, 4)
    if found.ndim != 2 or found.shape[1] != 4:
        raise VillaError(f"boxes have shape {tuple(found.shape)}; give R x 4, each row x1, y1, x2, y2 in pixels")
    for n, (x1, y1, x2, y2) in enumerate(found.tolist()):
        said = f"box {n} = [{x1:g}, {y1:g}, {x2:g}, {y2:g}]"
        if not all(map(math.isfinite, (x1, y1, x2, y2))):
            raise VillaError(f"{said} is not finite")
        if x2 <= x1 or y2 <= y1:
            raise VillaError(f"{said} has no area; boxes are x1, y1, x2, y2 with x1 < x2 and y1 < y2, not x, y, w, h")
        if min(x1, y1) < -EDGE or x2 > width + EDGE or y2 > height + EDGE:
            raise VillaError(
                f"{said} reaches outside the image of {width}x{height} (width x height); boxes are in its pixels, not in "
                "fractions of it; clip them"
            )
    return found.clamp(min=0).minimum(found.new_tensor([width, height, width, height]))
