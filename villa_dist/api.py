"""The Python interface: a trained model to ask, `from villa_dist import RegionVLM`.

`villa_dist.vlm.model.RegionVLM` is the module that is trained, with tensors in and out; this one takes images and texts.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from PIL import Image
from torch import Tensor

from shards.decode import DecodeError, decode_image, to_rgb
from shards.errors import VillaError
from villa_dist import trained
from villa_dist.embedding import Embeds
from villa_dist.encoders.precision import best_device
from villa_dist.vlm.model import RegionVLM as Towers


class RegionVLM(Embeds):
    """A trained region VLM. N images, R boxes, T texts, D = `dim`; every embedding is float32, of unit length, on `device`.

    An image is a path (.jpg, .png, .webp), a PIL image, or a uint8 array of H x W x 3 (RGB). Files and PIL images are turned
    upright by their orientation tag, 16-bit greys are rescaled, transparency is laid over white.

    >>> model = RegionVLM.from_pretrained("runs/quickstart")
    >>> model.score("photo.jpg", [[10, 20, 110, 220]], ["a red umbrella", "a dog"])   # 1 x 2 cosines
    """

    def __init__(self, towers: Towers) -> None:
        self.towers = towers.eval().requires_grad_(False)
        self.dim = towers.dim

    @classmethod
    def from_pretrained(cls, place: str | Path, *, device: torch.device | str | None = None) -> RegionVLM:
        """A model by where it is: a run (its `villa` model), a model's folder (<run>/models/<job>), a checkpoint of training
        (…/checkpoints/step-…), a folder that `villa export` wrote, or a CLIP or SigLIP folder or hub id.

        device: None for a GPU where there is one, else the CPU. Raises: VillaError saying what is there instead.
        """
        return cls(trained.find(str(place)).vlm).to(device or best_device())

    def to(self, device: torch.device | str) -> RegionVLM:
        """Move the model. Raises: VillaError for a device that is not there."""
        try:
            self.towers.to(device)
        except (RuntimeError, AssertionError) as error:
            said = str(error).splitlines()[0]
            raise VillaError(f"device {str(device)!r} cannot be used here ({said}); use cpu") from error
        return self

    @property
    def device(self) -> torch.device:
        return self.towers.log_scale.device

    @property
    def scale(self) -> Float[Tensor, ""]:
        """What cosines were multiplied with in training: one over the temperature."""
        return self.towers.scale

    @property
    def embeds_on(self) -> torch.device:
        return self.device

    def pixels_of(self, image: Any) -> UInt8[Tensor, "3 H W"]:
        return torch.from_numpy(np.ascontiguousarray(pixels_of(image).transpose(2, 0, 1)))

    def whole_batch(self, pixels: UInt8[Tensor, "N 3 H W"]) -> Float[Tensor, "N D"]:
        return self.towers.embed_whole(pixels)

    def regions_batch(
        self, pixels: UInt8[Tensor, "N 3 H W"], boxes: Float[Tensor, "R 4"], image_of: Int[Tensor, " R"]
    ) -> Float[Tensor, "R D"]:
        return self.towers.embed_regions(pixels, boxes, image_of)

    def texts_batch(self, texts: list[str]) -> Float[Tensor, "T D"]:
        return self.towers.embed_texts(self.towers.tokenize(texts))


def pixels_of(image: Any) -> UInt8[np.ndarray, "H W 3"]:
    """RGB pixels of a path, a PIL image or an array. Raises: VillaError saying what it is instead."""
    if isinstance(image, str | Path):
        try:
            return decode_image(Path(image).read_bytes())
        except OSError as error:
            raise VillaError(f"image {image} cannot be read: {error.strerror or error}") from error
        except DecodeError as error:
            raise VillaError(f"image {image} cannot be used: {error}; give a .jpg, .png or .webp") from error
    if isinstance(image, Image.Image):
        return to_rgb(image.copy())
    if isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3:
        if not image.size:
            raise VillaError(f"an image of shape {image.shape} has no pixels")
        return image
    what = f"{image.dtype} array of shape {image.shape}" if isinstance(image, np.ndarray) else type(image).__name__
    raise VillaError(f"an image is a {what}; give a path, a PIL image, or a uint8 array of H x W x 3 (RGB)")
