"""From bytes to pixels and text: every kind of image becomes RGB, and what cannot be used is refused with a reason."""

from __future__ import annotations

import csv
import io
import json
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from shards.decode import DecodeError, decode_image, decode_json, decode_text, image_member, sample_text

SHARED_DATA = Path(__file__).resolve().parents[2].parent / "shared" / "data"
ODD = SHARED_DATA / "odd_images"
ODD_FILES = sorted(p.name for p in ODD.iterdir()) if ODD.is_dir() else []
GRADIENT = np.linspace(0, 255, 40 * 30 * 3).reshape(30, 40, 3).astype(np.uint8)


def encoded(image: Image.Image, form: str, **options: Any) -> bytes:
    sink = io.BytesIO()
    image.save(sink, form, **options)
    return sink.getvalue()


def png(width: int, height: int, depth: int, colour: int, rows: bytes) -> bytes:
    """A PNG by hand, whatever its header claims."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def refused(data: bytes, **options: int) -> DecodeError:
    with pytest.raises(DecodeError) as error:
        decode_image(data, **options)
    return error.value


@pytest.mark.parametrize("form", ["PNG", "WEBP"])
def test_lossless_rgb_is_unchanged(form: str) -> None:
    pixels = decode_image(encoded(Image.fromarray(GRADIENT), form, lossless=True))
    assert pixels.dtype == np.uint8
    assert np.array_equal(pixels, GRADIENT)


@pytest.mark.parametrize("mode", ["1", "L", "P"])
def test_grey_and_palette_become_rgb(mode: str) -> None:
    image = Image.fromarray(GRADIENT).convert(mode)
    assert np.array_equal(decode_image(encoded(image, "PNG")), np.asarray(image.convert("RGB")))


def test_sixteen_bits_are_rescaled_and_not_clipped() -> None:
    values = np.linspace(300, 60_000, 32 * 32).reshape(32, 32).astype(np.uint16)
    pixels = decode_image(encoded(Image.fromarray(values), "PNG"))
    assert pixels.shape == (32, 32, 3)
    expected = (values.astype(float) - 300) * 255 / (60_000 - 300)
    assert np.abs(pixels - expected[..., None]).max() <= 0.51
    assert len(np.unique(pixels)) == 256


def test_a_flat_sixteen_bit_image_decodes() -> None:
    assert not decode_image(encoded(Image.fromarray(np.full((4, 4), 40_000, np.uint16)), "PNG")).any()


def test_cmyk_becomes_rgb() -> None:
    inks = {
        (0, 255, 255, 0): (255, 0, 0),
        (255, 0, 255, 0): (0, 255, 0),
        (0, 0, 0, 255): (0, 0, 0),
        (0, 0, 0, 0): (255, 255, 255),
    }
    for ink, rgb in inks.items():
        pixels = decode_image(encoded(Image.new("CMYK", (16, 16), ink), "JPEG", quality=95))
        assert np.abs(pixels.astype(int) - rgb).max() < 12, ink


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_alpha_is_laid_over_white(mode: str) -> None:
    clear, half, full = (Image.new("RGBA", (4, 4), (0, 0, 0, alpha)).convert(mode) for alpha in (0, 128, 255))
    assert (decode_image(encoded(clear, "PNG")) == 255).all()
    assert np.abs(decode_image(encoded(half, "PNG")).astype(int) - 127).max() <= 1
    assert (decode_image(encoded(full, "PNG")) == 0).all()


@pytest.mark.parametrize(("mode", "clear"), [("P", 3), ("L", 3), ("RGB", (3, 3, 3))])
def test_a_transparent_colour_is_laid_over_white(mode: str, clear: object) -> None:
    image = Image.new(mode, (4, 4), clear)  # type: ignore[arg-type]
    if mode == "P":
        image.putpalette(list(range(100, 112)))
    image.putpixel((0, 0), 0 if mode != "RGB" else (0, 0, 0))
    pixels = decode_image(encoded(image, "PNG", transparency=clear))
    assert (pixels[1:] == 255).all()
    assert (pixels[0, 0] == np.asarray(image.convert("RGB"))[0, 0]).all()


TURNS = {
    3: lambda a: a[::-1, ::-1],
    6: lambda a: np.rot90(a, -1),
    8: np.rot90,
    2: lambda a: a[:, ::-1],
    5: lambda a: a.swapaxes(0, 1),
}


@pytest.mark.parametrize("orientation", TURNS)
@pytest.mark.parametrize("kind", ["PNG", "WEBP", "JPEG", "PNG of 16 bits"])
def test_exif_orientation_is_applied(kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    grey = kind == "PNG of 16 bits"
    source = GRADIENT[..., 0].astype(np.uint16) * 257 if grey else GRADIENT
    options: dict[str, Any] = {"quality": 95} if kind == "JPEG" else {"lossless": True}
    form = kind.split()[0]
    pixels = decode_image(encoded(Image.fromarray(source), form, exif=exif, **options))
    expected = TURNS[orientation](np.repeat(GRADIENT[..., :1], 3, 2) if grey else GRADIENT)
    assert pixels.shape == expected.shape
    if grey:
        lowest, highest = int(expected.min()), int(expected.max())
        expected = np.round((expected.astype(float) - lowest) * 255 / (highest - lowest))
    assert np.abs(pixels.astype(int) - expected).max() <= (12 if form == "JPEG" else 1)


@pytest.mark.parametrize("form", ["PNG", "WEBP"])
def test_an_animation_gives_its_first_frame(form: str) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "green", "blue")]
    data = encoded(frames[0], form, save_all=True, append_images=frames[1:], duration=10, lossless=True)
    assert (decode_image(data) == (255, 0, 0)).all()


@pytest.mark.parametrize("form", ["GIF", "BMP", "TIFF", "PPM", "ICO", "EPS"])
def test_other_formats_are_refused(form: str) -> None:
    assert refused(encoded(Image.new("RGB", (16, 16)), form)).reason == "undecodable_image"


@pytest.mark.parametrize("side", [8001, 12_000, 20_000, 65_000])
def test_a_bomb_is_refused_before_any_pixel_is_decoded(side: int) -> None:
    """The file holds a header and no pixels, so any attempt to decode it would fail for another reason."""
    error = refused(png(side, side, 8, 2, b""))
    assert error.reason == "too_many_pixels"
    assert str(side) in error.detail or str(side * side) in error.detail


def test_the_cap_is_the_callers() -> None:
    data = encoded(Image.new("RGB", (40, 30)), "PNG")
    assert decode_image(data, max_pixels=1200).shape == (30, 40, 3)
    assert refused(data, max_pixels=1199).reason == "too_many_pixels"


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP"])
def test_a_truncated_image_is_refused(form: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    data = encoded(Image.fromarray(noise), form)
    for share in (0.02, 0.3, 0.6, 0.95):
        assert refused(data[: int(share * len(data))]).reason == "undecodable_image"


@pytest.mark.parametrize("data", [b"", b"no image", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"RIFF\x10\0\0\0WEBPVP8 "])
def test_what_is_no_image_is_refused(data: bytes) -> None:
    assert refused(data).reason == "undecodable_image"


@given(
    form=st.sampled_from(["PNG", "JPEG", "WEBP"]),
    edits=st.lists(st.tuples(st.integers(0, 5000), st.integers(0, 255)), max_size=6),
)
def test_damaged_bytes_decode_or_are_refused(form: str, edits: list[tuple[int, int]]) -> None:
    data = bytearray(encoded(Image.fromarray(GRADIENT), form))
    for at, value in edits:
        data[at % len(data)] = value
    try:
        pixels = decode_image(bytes(data), max_pixels=100_000)
    except DecodeError as error:
        assert error.reason in ("undecodable_image", "too_many_pixels")
    else:
        assert pixels.dtype == np.uint8
        assert pixels.shape[2] == 3


@pytest.mark.parametrize("name", ODD_FILES or [pytest.param("", marks=pytest.mark.skip(reason=f"no {ODD}"))])
@pytest.mark.timeout(30)
def test_an_odd_image_decodes_or_is_refused(name: str) -> None:
    data = (ODD / name).read_bytes()
    try:
        pixels = decode_image(data)
    except DecodeError as error:
        assert error.reason in ("undecodable_image", "too_many_pixels")
    else:
        assert pixels.dtype == np.uint8
        assert pixels.ndim == 3
        assert pixels.shape[2] == 3


@pytest.mark.skipif(not ODD_FILES, reason=f"no {ODD}")
def test_what_pillow_loads_is_not_refused() -> None:
    with open(ODD / "pillow_13_verdicts.tsv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    good = [
        r["file"]
        for r in rows
        if r["pillow_verdict"] == "ok" and r["opened_as"].split()[0] in ("JPEG", "PNG", "WEBP", "MPO")
    ]
    assert len(good) > 40
    lost = {}
    for name in good:
        try:
            decode_image((ODD / name).read_bytes())
        except DecodeError as error:
            lost[name] = str(error)
    assert not lost


def test_text_is_utf8_with_or_without_a_mark() -> None:
    assert decode_text("grün 写真".encode()) == "grün 写真"
    assert decode_text(b"\xef\xbb\xbfred") == "red"
    with pytest.raises(DecodeError, match="byte 0xff at offset 3") as error:
        decode_text(b"red\xff")
    assert error.value.reason == "not_utf8"


@pytest.mark.parametrize("data", [b"", b"{", b"[1]", b'"text"', b"null", b"1" * 5000, b"[" * 100_000, b"{" * 100_000])
def test_json_that_is_no_object_is_refused(data: bytes) -> None:
    with pytest.raises(DecodeError) as error:
        decode_json(data)
    assert error.value.reason == "bad_json"
    with pytest.raises(DecodeError, match="not_utf8"):
        decode_json(b'{"text": "\xff"}')


def as_json(**values: object) -> dict[str, bytes]:
    return {"jpg": b"", "json": json.dumps(values).encode()}


def test_the_text_of_a_sample_is_its_txt_or_a_field_of_its_json() -> None:
    assert sample_text({"txt": b"from txt", **as_json(text="from json")}) == "from txt"
    assert sample_text(as_json(caption="second", text="first")) == "first"
    assert sample_text(as_json(text=None, caption="second")) == "second"
    assert sample_text(as_json(title="mine"), fields=("title",)) == "mine"


@pytest.mark.parametrize("members", [{"jpg": b""}, {"jpg": b"", "txt": b" \n"}, as_json(title="x"), as_json(text=7)])
def test_a_sample_without_text_names_what_it_has(members: dict[str, bytes]) -> None:
    with pytest.raises(DecodeError, match=r"found \.jpg") as error:
        sample_text(members)
    assert error.value.reason == "no_text"


def test_the_image_of_a_sample_is_found_by_its_suffix() -> None:
    assert image_member({"txt": b"t", "png": b"p"}) == b"p"
    assert image_member({"jpeg": b"j"}) == b"j"
    with pytest.raises(DecodeError, match=r"found \.txt, \.gif") as error:
        image_member({"txt": b"t", "gif": b"g"})
    assert error.value.reason == "no_image"


@pytest.mark.skipif(not (SHARED_DATA / "natural").is_dir(), reason="no photos")
def test_real_photos_decode(shared_data: Path) -> None:
    photos = sorted((shared_data / "natural/images").iterdir())[:5]
    assert all(decode_image(p.read_bytes()).std() > 1 for p in photos)
