"""Whether an image may go into a base shard, and under which suffix: copied byte for byte, converted to PNG, or refused."""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageOps

from shards.decode import FORMATS, MAX_PIXELS, DecodeError, decode_image

CHECKS = ("full", "header", "none")
CONVERTIBLE = ("BMP", "GIF", "TIFF", "PPM")
SUFFIX = {"jpg": ("jpg", "jpeg"), "png": ("png",), "webp": ("webp",)}  # of the content -> suffixes that say so
_SAVED_AS_THEY_ARE = ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")


@dataclass(frozen=True)
class ImageRule:
    """check: full (decode every pixel, as later stages will), header (read the size only) or none (first bytes only).

    convert: store BMP, GIF (first frame), PPM and TIFF as PNG instead of refusing them.
    """

    check: str = "full"
    convert: bool = False
    max_pixels: int = MAX_PIXELS

    def accept(self, suffix: str, data: bytes) -> tuple[str, bytes]:
        """(suffix, content) to store; the content is `data` itself for JPEG, PNG and WebP.

        Raises: DecodeError with reason undecodable_image, unsupported_format or too_many_pixels.
        """
        kind = content_kind(data)
        if not kind:
            return "png", self._converted(data)
        if self.check == "full":
            decode_image(data, self.max_pixels)
        elif self.check == "header":
            with _open(data, FORMATS, self.max_pixels):
                pass
        return (suffix if suffix in SUFFIX[kind] else kind), data

    def _converted(self, data: bytes) -> bytes:
        with _open(data, CONVERTIBLE, self.max_pixels) as image:
            if not self.convert:
                raise DecodeError("unsupported_format", f"{image.format}; --convert stores such images as PNG")
            try:
                return _png(image)
            except DecodeError:
                raise
            except Exception as error:  # PIL raises a dozen kinds
                raise DecodeError("undecodable_image", f"{type(error).__name__}: {error}") from error


def content_kind(data: bytes) -> str:
    """jpg, png or webp by the first bytes, whatever the file is called; empty for anything else."""
    if data.startswith(b"\xff\xd8\xff"):
        return "jpg"
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "png"
    return "webp" if data[:4] == b"RIFF" and data[8:12] == b"WEBP" else ""


def _open(data: bytes, formats: tuple[str, ...], max_pixels: int) -> Image.Image:
    try:
        image = Image.open(io.BytesIO(data), formats=formats)
        width, height = image.size
    except Exception as error:  # PIL raises a dozen kinds
        known = ", ".join(formats)
        raise DecodeError("undecodable_image", f"not readable as any of {known} ({type(error).__name__})") from error
    if width * height > max_pixels:
        raise DecodeError("too_many_pixels", f"{width}x{height} is over the cap of {max_pixels} pixels")
    return image


def _png(image: Image.Image) -> bytes:
    """PNG of the first frame, upright, without metadata. 16-bit grey stays 16 bit; deeper grey becomes 16 bit by its own
    lowest and highest value; CMYK and the like become RGB."""
    image.load()
    upright = ImageOps.exif_transpose(image)
    if upright.mode.startswith("I;16"):
        upright = Image.fromarray(np.asarray(upright).astype(np.uint16))
    elif upright.mode in ("I", "F"):
        upright = Image.fromarray(_to_16_bit(np.asarray(upright, np.float64)))
    elif upright.mode not in _SAVED_AS_THEY_ARE:
        upright = upright.convert("RGBA" if "A" in upright.mode or "a" in upright.mode else "RGB")
    upright.info = {k: v for k, v in upright.info.items() if k == "transparency"}
    sink = io.BytesIO()
    upright.save(sink, "PNG")
    return sink.getvalue()


def _to_16_bit(values: np.ndarray) -> np.ndarray:
    if not np.isfinite(values).all():
        raise DecodeError("undecodable_image", "pixels that are not numbers")
    low, high = float(values.min()), float(values.max())
    if low >= 0 and high <= 65535 and np.array_equal(values, np.round(values)):
        return values.astype(np.uint16)
    return np.asarray(np.round((values - low) * (65535.0 / max(high - low, 1e-300))), np.uint16)
