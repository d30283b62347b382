"""Inputs of towers: resizing against PIL and the library's processors, boxes to and fro, batches of images."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil
from transformers.models.siglip2.image_processing_pil_siglip2 import (
    Siglip2ImageProcessorPil,
    get_image_size_for_max_num_patches,
)

from villa_dist.data.plan import batches
from villa_dist.encoders import preprocess as pre
from villa_dist.encoders.hf_checkpoint import preprocess_of
from villa_dist.encoders.parts import adaptive_roi_align, spans

LEVEL = 1 / 255 / 0.2613  # one of 255 grey levels after CLIP's normalisation


def whole(image: np.ndarray, config: pre.Preprocess, patch: int = 16) -> np.ndarray:
    placed = pre.whole_placement(image.shape[:2], config, patch)
    pixels = pre.place(torch.from_numpy(image).permute(2, 0, 1), placed, config.filter)
    return pre.normalise(pixels[None], config)[0].numpy()


def noisy(height: int, width: int) -> np.ndarray:
    rng = np.random.default_rng(height * width)
    coarse = rng.integers(0, 256, (height // 3 + 1, width // 3 + 1, 3), np.uint8)
    return np.array(Image.fromarray(coarse).resize((width, height)))


SIZES = [(480, 640), (333, 500), (224, 224), (100, 90), (37, 200), (640, 427)]


@pytest.mark.parametrize("size", SIZES)
def test_clip_and_siglip_inputs_are_the_librarys(size: tuple[int, int], tmp_path: Path) -> None:
    image = noisy(*size)
    for family, processor in (("clip", CLIPImageProcessorPil()), ("siglip", SiglipImageProcessorPil())):
        processor.save_pretrained(tmp_path / family)
        config = preprocess_of(tmp_path / family, family, {"image_size": 1})  # type: ignore[arg-type]
        expected = processor(image, return_tensors="np")["pixel_values"][0]
        found = whole(image, config)
        assert found.shape == expected.shape == (3, 224, 224)
        difference = np.abs(found - expected)  # Pillow 13 goes down first where that is cheaper
        assert difference.max() < 8 * LEVEL and difference.mean() < 0.25 * LEVEL


@pytest.mark.parametrize("size", SIZES)
def test_naflex_inputs_are_the_librarys(size: tuple[int, int], tmp_path: Path) -> None:
    processor = Siglip2ImageProcessorPil(max_num_patches=100)
    processor.save_pretrained(tmp_path)
    config = preprocess_of(tmp_path, "siglip2", {"num_patches": 256, "patch_size": 16})
    inputs = processor(noisy(*size), return_tensors="np")
    found = whole(noisy(*size), config)
    rows, columns = inputs["spatial_shapes"][0].tolist()
    assert found.shape == (3, 16 * rows, 16 * columns)
    expected = inputs["pixel_values"][0][: rows * columns].reshape(rows, columns, 16, 16, 3)
    expected = expected.transpose(4, 0, 2, 1, 3).reshape(found.shape)
    assert np.abs(found - expected).max() < 2.1 * 2 / 255
    assert found.std() > 0.1


def test_both_kernels_round_as_pil_does() -> None:
    image = torch.from_numpy(noisy(101, 77)).permute(2, 0, 1)
    for kind, number in (("bicubic", 3), ("bilinear", 2)):
        for shape in ((64, 64), (130, 50)):
            across = Image.fromarray(image.permute(1, 2, 0).numpy()).resize((shape[1], 101), number)
            expected = np.asarray(across.resize(shape[::-1], number))
            for found in (pre.resize(image, shape, kind), pre.resize_float(image, shape, kind)):
                assert np.abs(found.permute(1, 2, 0).numpy().astype(int) - expected).max() <= 2


sides = st.integers(1, 900)


@given(sides, sides, st.sampled_from([8, 14, 16, 32]), st.integers(1, 300))
def test_patch_shapes_are_the_librarys_and_within_budget(height: int, width: int, patch: int, budget: int) -> None:
    found = pre.patch_shape((height, width), patch, budget)
    assert found == get_image_size_for_max_num_patches(height, width, patch, budget)
    assert found[0] % patch == found[1] % patch == 0
    assert patch * patch <= found[0] * found[1] <= budget * patch * patch


def test_a_long_strip_stays_within_memory() -> None:
    config = pre.Preprocess(224, pre.CLIP_MEAN, pre.CLIP_STD, short=224)
    for size in ((3, 60_000), (60_000, 3), (1, 1)):
        placed = pre.whole_placement(size, config, 16)
        assert placed.shape == (224, 224) and max(placed.resized) <= 8 * 224
        assert placed.top + 224 <= placed.resized[0] and placed.left + 224 <= placed.resized[1]


fractions = st.floats(0, 1, width=32)
KINDS = st.sampled_from(["clip", "siglip", "naflex", "dense", "square", "crop"])


def placement(kind: str, size: tuple[int, int], box: list[float]) -> pre.Placement:
    config = pre.Preprocess(64, pre.CLIP_MEAN, pre.CLIP_STD, short=70 if kind == "clip" else None)
    if kind in ("dense", "square"):
        return pre.dense_placement(size, 64, 16, "aspect" if kind == "dense" else "square")
    if kind == "crop":
        return pre.crop_placement(size, box, 1.3, config, 16)
    naflex = pre.Preprocess(64, pre.CLIP_MEAN, pre.CLIP_STD, max_patches=16)
    return pre.whole_placement(size, naflex if kind == "naflex" else config, 16)


@given(KINDS, sides, sides, st.lists(fractions, min_size=4, max_size=4))
def test_boxes_go_to_the_input_and_back(kind: str, height: int, width: int, corners: list[float]) -> None:
    x, y = sorted(corners[::2]), sorted(corners[1::2])
    box = [x[0] * width, y[0] * height, x[1] * width, y[1] * height]
    placed = placement(kind, (height, width), box)
    boxes = torch.tensor([box], dtype=torch.float64)
    there = placed.to_input(boxes)
    assert (placed.to_image(there) - boxes).abs().max() < 1e-9 * max(height, width) * 100
    if kind in ("siglip", "naflex", "dense", "square"):  # all of the image is in the input
        rows, columns = placed.shape
        corner = placed.to_input(torch.tensor([[0.0, 0.0, width, height]], dtype=torch.float64))
        assert torch.allclose(corner, torch.tensor([[0.0, 0.0, columns, rows]], dtype=torch.float64))
    if kind == "crop":  # the box lies inside its crop
        assert there.min() > -1e-6 and there.max() < 64 + 1e-6


@pytest.mark.parametrize("kind", ["clip", "siglip", "naflex", "dense", "crop"])
def test_a_mark_lands_where_its_box_says(kind: str) -> None:
    """A bright rectangle on black: its pixels in the input are inside the box's image, and fill it."""
    image = np.zeros((180, 240, 3), np.uint8)
    image[60:120, 100:140] = 255
    box = [100.0, 60.0, 140.0, 120.0]
    placed = placement(kind, (180, 240), [80.0, 40.0, 150.0, 130.0])
    found = pre.place(torch.from_numpy(image).permute(2, 0, 1), placed, "bilinear")[0]
    rows, columns = np.nonzero(found.numpy() > 127)
    x1, y1, x2, y2 = placed.to_input(torch.tensor([box]))[0].tolist()
    assert abs(columns.min() - x1) <= 0.51 and abs(columns.max() + 1 - x2) <= 0.51
    assert abs(rows.min() - y1) <= 0.51 and abs(rows.max() + 1 - y2) <= 0.51


def test_strange_processors_are_named(tmp_path: Path) -> None:
    def failure(**values: object) -> str:
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(values))
        with pytest.raises(Exception, match="preprocessor_config") as error:
            preprocess_of(tmp_path, "clip", {"image_size": 32})
        return str(error.value)

    assert "resample 1" in failure(resample=1)
    assert "no square" in failure(size={"height": 30, "width": 40})
    assert "no square" in failure(size={"shortest_edge": 20}, crop_size={"height": 30, "width": 30})
    assert "three numbers" in failure(image_mean=[0.5])


image_sizes = st.lists(st.tuples(st.integers(1, 50), st.integers(1, 50), st.integers(0, 9)), max_size=30)


@settings(max_examples=60)
@given(image_sizes, st.integers(1, 8), st.integers(1, 5000), st.integers(1, 20))
def test_batches_keep_to_the_limits_and_lose_nothing(
    images: list[tuple[int, int, int]], most: int, pixels: int, boxes: int
) -> None:
    sizes, counts = [i[:2] for i in images], [i[2] for i in images]
    found = list(batches(sizes, counts, max_images=most, max_pixels=pixels, max_boxes=boxes))
    assert [n for run in found for n in run] == list(range(len(images)))

    def over(run: range) -> bool:
        tall, wide = max(sizes[n][0] for n in run), max(sizes[n][1] for n in run)
        return len(run) > most or len(run) * tall * wide > pixels or sum(counts[n] for n in run) > boxes

    for run, after in zip(found, [*found[1:], None], strict=False):
        assert len(run) == 1 or not over(run)
        if after is not None:  # it was closed because the next image did not fit
            assert over(range(run.start, run.stop + 1))


def test_batches_look_one_image_ahead() -> None:
    """Decoding is lazy: no more than a batch and one image are in memory."""
    asked = 0

    def sizes() -> object:
        nonlocal asked
        for _ in range(100):
            asked += 1
            yield 10, 10

    for run in batches(sizes(), [0] * 100, max_images=4, max_pixels=10**9, max_boxes=9):  # type: ignore[arg-type]
        assert asked <= run.stop + 1


def test_samples_follow_the_size_of_a_box() -> None:
    """A large box averages all the cells of its bins; one sample a bin would miss those between."""
    maps = torch.arange(64 * 64, dtype=torch.float32).view(1, 1, 64, 64) % 2 * 8  # stripes one cell wide
    boxes = torch.tensor([[0.0, 0.0, 64.0, 64.0], [0.0, 0.0, 4.0, 4.0]])
    found = adaptive_roi_align(maps, boxes, torch.tensor([0, 0]), 4, 1)
    assert torch.allclose(found[0], torch.full((1, 4, 4), 4.0))
    assert torch.equal(found[1], maps[0, :, :4, :4])


def test_spans_cover_everything_once() -> None:
    with torch.no_grad():
        assert [range(10)[s] for s in spans(10, 4)] == [range(0, 4), range(4, 8), range(8, 10)]
        assert list(spans(0, 4)) == [slice(0, 0)]
    assert list(spans(10, 4)) == [slice(0, 10)]
