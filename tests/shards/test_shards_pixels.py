"""Pixels worked out by hand for each documented conversion."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

from shards.decode import DecodeError, decode_image, upright_size


def encoded(image: Image.Image, form: str = "PNG", **options: Any) -> bytes:
    sink = io.BytesIO()
    image.save(sink, form, **options)
    return sink.getvalue()


def grey16(*rows: list[int]) -> Image.Image:
    return Image.fromarray(np.array(rows, np.uint16))


def first_channel(data: bytes) -> list[list[int]]:
    pixels = decode_image(data)
    assert (pixels == pixels[..., :1]).all(), "grey"
    return pixels[..., 0].tolist()


def test_sixteen_bits_run_from_the_images_lowest_to_its_highest_value() -> None:
    """1000 * 255 / 65535 = 3.9, 30000 * 255 / 65535 = 116.7; and with the lowest at 10000 and the highest at 50000,
    10000 * 255 / 40000 = 63.75, 19000 * 255 / 40000 = 121.1."""
    assert first_channel(encoded(grey16([0, 1000], [30_000, 65_535]))) == [[0, 4], [117, 255]]
    assert first_channel(encoded(grey16([10_000, 20_000], [29_000, 50_000]))) == [[0, 64], [121, 255]]


def test_a_transparent_value_of_sixteen_bits_is_white() -> None:
    assert first_channel(encoded(grey16([0, 1000], [30_000, 65_535]), transparency=30_000)) == [[0, 4], [255, 255]]


TURNED = {  # of the picture AB / CD / EF, by the EXIF standard
    1: ["AB", "CD", "EF"],
    2: ["BA", "DC", "FE"],
    3: ["FE", "DC", "BA"],
    4: ["EF", "CD", "AB"],
    5: ["ACE", "BDF"],
    6: ["ECA", "FDB"],
    7: ["FDB", "ECA"],
    8: ["BDF", "ACE"],
}


@pytest.mark.parametrize("orientation", TURNED)
@pytest.mark.parametrize("form", ["PNG", "WEBP"])
def test_orientation(form: str, orientation: int) -> None:
    picture = np.array([[ord(c) for c in row] for row in TURNED[1]], np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(Image.fromarray(picture).convert("RGB"), form, exif=exif, lossless=True)
    assert ["".join(map(chr, row)) for row in first_channel(data)] == TURNED[orientation]
    assert upright_size(data) == (len(TURNED[orientation][0]), len(TURNED[orientation]))


def test_alpha_over_white() -> None:
    """100 * 128/255 + 255 * 127/255 = 177.2; 200 * 128/255 + 127 = 227.4."""
    assert decode_image(encoded(Image.new("LA", (1, 1), (100, 128)))).tolist() == [[[177, 177, 177]]]
    assert decode_image(encoded(Image.new("RGBA", (1, 1), (100, 200, 0, 128)))).tolist() == [[[177, 227, 127]]]
    assert decode_image(encoded(Image.new("RGBA", (1, 1), (1, 2, 3, 0)))).tolist() == [[[255, 255, 255]]]


def test_a_palette_with_a_half_clear_entry() -> None:
    """10 * 128/255 + 127 = 132.0, 137.0 and 142.1 for 20 and 30; the second entry is opaque."""
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putpixel((1, 0), 1)
    assert decode_image(encoded(image, transparency=bytes([128, 255]))).tolist() == [[[132, 137, 142], [200, 100, 50]]]
    assert decode_image(encoded(image)).tolist() == [[[10, 20, 30], [200, 100, 50]]]


def test_cmyk() -> None:
    """Ink C 0, M 128, Y 255, K 64 leaves red 191, green 191 * (1 - 128/255) = 95, blue 0."""
    image = Image.new("CMYK", (16, 16), (0, 128, 255, 64))
    pixels = decode_image(encoded(image, "JPEG", quality=100)).astype(int)
    assert np.abs(pixels - (191, 95, 0)).max() <= 2


def test_one_bit_and_grey() -> None:
    assert first_channel(encoded(Image.new("1", (2, 1), 1))) == [[255, 255]]
    assert first_channel(encoded(Image.fromarray(np.array([[0, 7, 255]], np.uint8)))) == [[0, 7, 255]]


@pytest.mark.parametrize("form", ["PNG", "WEBP"])
def test_the_first_frame(form: str) -> None:
    frames = [Image.new("RGB", (2, 2), colour) for colour in ((1, 2, 3), (200, 0, 0))]
    data = encoded(frames[0], form, save_all=True, append_images=frames[1:], duration=10, lossless=True)
    assert decode_image(data).tolist() == [[[1, 2, 3]] * 2] * 2


@pytest.mark.parametrize("data", [b"", b"\x89PNG", b"\xff\xd8\xff", b"GIF89a\1\0\1\0", b"x" * 99])
def test_a_size_that_cannot_be_read_is_a_refusal(data: bytes) -> None:
    with pytest.raises(DecodeError) as error:
        upright_size(data)
    assert error.value.reason == "undecodable_image"
