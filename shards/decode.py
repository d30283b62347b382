"""From bytes to pixels and text, by an allow-list of suffixes. Nothing here unpickles, executes or follows a path.

Pixels become RGB uint8: 16-bit grey images are rescaled to 8 bits by their own range of values (clipping at 255 ruins
radiographs), EXIF orientation is applied, CMYK and palettes are converted, alpha is laid over white, and the first
frame of an animation is taken.
"""

from __future__ import annotations

import io
import json
import re
import warnings
from typing import Any

import numpy as np
from PIL import Image, ImageOps

IMAGE_SUFFIXES = ("jpg", "jpeg", "png", "webp")
TEXT_SUFFIXES = ("txt", "json")
FORMATS = ("JPEG", "PNG", "WEBP")
Image.MAX_IMAGE_PIXELS = None  # our own cap is checked before a pixel is decoded; PIL's would hide it
MAX_PIXELS = 64_000_000
# once, here: catching warnings around each call is not safe in threads
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")
ADDRESS = re.compile(r" at 0x[0-9a-f]+")  # of objects that PIL names; it would differ from run to run


class DecodeError(Exception):
    """A sample that is refused: `reason` is one of a fixed set and is counted, `detail` says what was met."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


def decode_image(data: bytes, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """RGB pixels, uint8, H x W x 3.

    Raises: DecodeError with reason undecodable_image or too_many_pixels (checked before any pixel is decoded).
    """
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
        width, height = image.size
        if width * height > max_pixels:
            raise DecodeError("too_many_pixels", f"{width}x{height} is over the cap of {max_pixels} pixels")
        return to_rgb(image)
    except DecodeError:
        raise
    except Exception as error:  # PIL raises a dozen kinds, SyntaxError and struct.error among them
        detail = ADDRESS.sub("", f"{type(error).__name__}: {error}")
        raise DecodeError("undecodable_image", detail) from error


def upright_size(data: bytes) -> tuple[int, int]:
    """(width, height) in pixels as decoded, EXIF orientation applied, from the header alone.

    Raises: DecodeError(undecodable_image).
    """
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            width, height = image.size
            turned = image.getexif().get(0x0112, 1) in (5, 6, 7, 8)
    except Exception as error:  # PIL raises a dozen kinds, SyntaxError and struct.error among them
        detail = ADDRESS.sub("", f"{type(error).__name__}: {error}")
        raise DecodeError("undecodable_image", detail) from error
    return (height, width) if turned else (width, height)


def to_rgb(image: Image.Image) -> np.ndarray:
    """RGB pixels, uint8, H x W x 3, of an opened image, which is turned upright in place."""
    image.load()
    ImageOps.exif_transpose(image, in_place=True)  # a copy for nothing where it stands upright
    upright = image
    if upright.mode in ("I;16", "I;16B", "I;16L", "I", "F"):
        values = np.asarray(upright)
        grey = _rescale(values)
        grey[values == upright.info.get("transparency", -1)] = 255
        return np.repeat(grey[..., None], 3, axis=2)
    if upright.mode in ("RGBA", "LA", "PA") or "transparency" in upright.info:
        rgba = upright.convert("RGBA")
        upright = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    return np.asarray(upright if upright.mode == "RGB" else upright.convert("RGB"))


def _rescale(values: np.ndarray) -> np.ndarray:
    """16-bit grey to 8 bits: the image's own lowest and highest value become 0 and 255."""
    wide = values.astype(np.float64)
    low, high = float(wide.min()), float(wide.max())
    if high <= low:
        return np.zeros(wide.shape, np.uint8)
    return np.asarray(np.round((wide - low) * (255.0 / (high - low))), dtype=np.uint8)


def decode_text(data: bytes) -> str:
    """Raises: DecodeError(not_utf8) naming the first bad byte and its offset."""
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DecodeError("not_utf8", f"byte 0x{data[error.start]:02x} at offset {error.start}") from error


def decode_json(data: bytes) -> dict[str, Any]:
    """Raises: DecodeError with reason not_utf8 or bad_json."""
    try:
        value = json.loads(decode_text(data))
    except (ValueError, RecursionError) as error:
        raise DecodeError("bad_json", str(error)) from error
    if not isinstance(value, dict):
        raise DecodeError("bad_json", f"expected an object, found {type(value).__name__}")
    return value


def sample_text(members: dict[str, bytes], fields: tuple[str, ...] = ("text", "caption")) -> str:
    """The text of a sample: its .txt, else the first of `fields` in its .json.

    Raises: DecodeError(no_text) that names the members found.
    """
    if "txt" in members:
        text = decode_text(members["txt"])
    else:
        values = decode_json(members["json"]) if "json" in members else {}
        text = next((values[f] for f in fields if isinstance(values.get(f), str) and values[f].strip()), "")
    try:
        text.encode()
    except UnicodeEncodeError as error:  # JSON can escape half a character
        raise DecodeError("not_utf8", f"half a surrogate pair at character {error.start}") from error
    if not text.strip():
        found = ", ".join(f".{s}" for s in members) or "nothing"
        raise DecodeError("no_text", f"no text in a .txt or .json member; found {found}")
    return text


def image_member(members: dict[str, bytes]) -> bytes:
    """The image of a sample. Raises: DecodeError(no_image) that names the members found."""
    for suffix in IMAGE_SUFFIXES:
        if suffix in members:
            return members[suffix]
    found = ", ".join(f".{s}" for s in members) or "nothing"
    raise DecodeError("no_image", f"no image member (.jpg, .png or .webp); found {found}")
