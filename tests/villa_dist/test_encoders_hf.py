"""Published CLIP, SigLIP and SigLIP 2 towers against the transformers library itself, on tiny random checkpoints."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("DS_ACCELERATOR", "cpu")

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tiny_checkpoints import DIM, FAMILIES, PATCH, SIDE, write
from transformers import AutoTokenizer

from villa_dist import models
from villa_dist.config import ModelConfig
from villa_dist.encoders.preprocess import normalise
from villa_dist.encoders.text import padded, token_batch
from villa_dist.vlm.model import RegionVLM

TEXTS = ["a cat", "two", "red dog, a cat", "A CAT a cat a cat a cat a cat a cat a cat a cat", ""]


class Tiny(NamedTuple):
    family: str
    folder: str
    model: Any
    processor: Any


@pytest.fixture(scope="module", params=FAMILIES)
def tiny(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    folder = tmp_path_factory.mktemp(request.param)
    return Tiny(request.param, str(folder), *write(request.param, folder))


def built(tiny: Tiny, **image: Any) -> RegionVLM:
    config = ModelConfig.model_validate({"image": {"kind": "hf", **image}, "weights": tiny.folder})
    return RegionVLM(config).eval()


def photo(height: int, width: int, seed: int = 0) -> torch.Tensor:
    """Smooth enough that resizing matters little."""
    coarse = torch.rand(1, 3, 5, 5, generator=torch.Generator().manual_seed(seed))
    return (F.interpolate(coarse, size=(height, width), mode="bicubic")[0].clamp(0, 1) * 255).to(torch.uint8)


def stacked(images: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Padded with noise, which must not matter."""
    sizes = torch.tensor([i.shape[1:] for i in images])
    batch = torch.randint(0, 256, (len(images), 3, *sizes.amax(0).tolist()), dtype=torch.uint8)
    for n, image in enumerate(images):
        batch[n, :, : image.shape[1], : image.shape[2]] = image
    return batch, sizes


def library_whole(tiny: Tiny, image: torch.Tensor) -> torch.Tensor:
    inputs = tiny.processor(image.permute(1, 2, 0).numpy(), return_tensors="pt", input_data_format="channels_last")
    return F.normalize(tiny.model.get_image_features(**inputs).pooler_output, dim=-1)[0]


@torch.no_grad()
def test_whole_images_equal_the_library(tiny: Tiny) -> None:
    """Of the input's own size, so that no resizing is between: to 1e-5, one by one and in a padded batch."""
    vlm = built(tiny)
    sizes = [(SIDE, SIDE)] * 3 if tiny.family != "siglip2" else [(48, 48), (32, 72), (72, 32)]
    images = [photo(h, w, n) for n, (h, w) in enumerate(sizes)]
    expected = torch.stack([library_whole(tiny, i) for i in images])
    assert (vlm.embed_whole(*stacked(images)) - expected).abs().max() < 1e-5
    assert expected.std(0).max() > 1e-3, "the images are told apart"


@torch.no_grad()
def test_whole_photos_equal_the_library_within_its_rounding(tiny: Tiny) -> None:
    vlm = built(tiny)
    for height, width in ((90, 60), (50, 131), (20, 31)):
        image = photo(height, width, 3)
        found = vlm.embed_whole(image[None])[0]
        assert (found - library_whole(tiny, image)).abs().max() < 2e-3


@torch.no_grad()
def test_texts_equal_the_library(tiny: Tiny) -> None:
    vlm, tokenizer = built(tiny), AutoTokenizer.from_pretrained(tiny.folder)
    inputs = tokenizer(TEXTS, padding="max_length", truncation=True, return_tensors="pt")
    if tiny.family != "clip":
        inputs = {"input_ids": inputs["input_ids"]}  # SigLIP was trained to attend to its padding
    expected = F.normalize(tiny.model.get_text_features(**inputs).pooler_output, dim=-1)
    found = vlm.embed_texts(vlm.tokenize(TEXTS))
    assert (found - expected).abs().max() < 1e-5
    one_by_one = torch.cat([vlm.embed_texts(vlm.tokenize([t])) for t in TEXTS])
    assert (found - one_by_one).abs().max() < 1e-6
    assert found.shape == (len(TEXTS), DIM if tiny.family == "clip" else 32)
    assert vlm.log_scale.item() == pytest.approx(float(tiny.model.logit_scale), abs=1e-6)


@pytest.mark.parametrize("left", [False, True])
def test_texts_are_padded_on_their_side(left: bool) -> None:
    ids = [[5, 6, 7], [8], [9, 4]]
    found = padded(token_batch(ids), 4, 1, left=left).tolist()
    assert found == [[1] * (4 - len(i)) + i if left else i + [1] * (4 - len(i)) for i in ids]


@torch.no_grad()
def test_position_embeddings_of_other_sizes_equal_the_library(tiny: Tiny) -> None:
    tower = built(tiny).image
    image = normalise(photo(64, 64)[None], tower.preprocess)
    tokens, seen, _ = tower.embed([image[0]])
    found = tower.pool(tower.layers(tokens, seen), seen)
    vision = tiny.model.vision_model
    if tiny.family == "siglip2":
        patches = image[0].view(3, 8, PATCH, 8, PATCH).permute(1, 3, 2, 4, 0).reshape(1, 64, -1)
        shape = torch.tensor([[8, 8]])
        expected = vision(patches, pixel_attention_mask=torch.ones(1, 64), spatial_shapes=shape).pooler_output
    else:
        expected = vision(image, interpolate_pos_encoding=True).pooler_output
    assert (found - expected).abs().max() < 1e-5


BOXES = torch.tensor(
    [
        [3.0, 5.0, 40.0, 30.0],
        [0.0, 0.0, 20.0, 47.0],
        [10.0, 2.0, 14.0, 9.0],
        [1.0, 1.0, 60.0, 40.0],
        [44.0, 43.0, 48.0, 48.0],  # in the corner of a small image, beyond the centre of its last cell
    ]
)
IMAGE_OF = torch.tensor([2, 0, 1, 2, 0])  # in no order, and images with two


@pytest.mark.parametrize("regions", ["dense", "crops"])
@torch.no_grad()
def test_a_padded_batch_equals_its_images_alone(tiny: Tiny, regions: str) -> None:
    vlm = built(tiny, regions=regions, roi_bins=3)
    images = [photo(48, 48, 1), photo(30, 96, 2), photo(64, 64, 4)]
    pixels, sizes = stacked(images)
    together = vlm.embed_regions(pixels, BOXES, IMAGE_OF, sizes)
    for r, n in enumerate(IMAGE_OF.tolist()):
        alone = vlm.embed_regions(images[n][None], BOXES[r : r + 1], torch.tensor([0]))
        assert (together[r] - alone[0]).abs().max() < 2e-6, r
    assert torch.isfinite(together).all() and (together.norm(dim=1) - 1).abs().max() < 1e-5
    none = vlm.embed_regions(pixels, BOXES[:0], IMAGE_OF[:0], sizes)
    assert none.shape == (0, together.shape[1])


@torch.no_grad()
def test_a_region_over_a_whole_siglip_image_is_the_image(tmp_path: Path) -> None:
    """As many bins as cells, one sample each: RoIAlign hands on the very tokens that pooling takes."""
    for family in ("siglip", "siglip2"):
        folder = tmp_path / family
        vlm = built(Tiny(family, str(folder), *write(family, folder)), roi_bins=SIDE // PATCH)
        image = photo(SIDE, SIDE, 5)[None]
        region = vlm.embed_regions(image, torch.tensor([[0.0, 0.0, SIDE, SIDE]]), torch.tensor([0]))
        assert (region - vlm.embed_whole(image)).abs().max() < 1e-5


@torch.no_grad()
def test_dense_clip_regions_are_means_of_values(tmp_path: Path) -> None:
    """Against the library's own modules, called by hand; a region of whole cells is the mean of those cells."""
    tiny = Tiny("clip", str(tmp_path), *write("clip", tmp_path))
    vision = tiny.model.vision_model
    image = photo(SIDE, SIDE, 6)
    boxes = torch.tensor([[8.0, 16.0, 32.0, 40.0]])  # columns 1 to 3, rows 2 to 4
    hidden: list[torch.Tensor] = []
    last = vision.encoder.layers[-1]
    hook = last.register_forward_pre_hook(lambda _, inputs: hidden.append(inputs[0]))
    out = vision(normalise(image[None], built(tiny).image.preprocess))
    hook.remove()
    before = hidden[0]
    values = F.linear(last.layer_norm1(before), last.self_attn.v_proj.weight, last.self_attn.v_proj.bias)
    mixed = before + F.linear(values, last.self_attn.out_proj.weight, last.self_attn.out_proj.bias)
    by_value = mixed + last.mlp(last.layer_norm2(mixed))
    for tokens, flag in ((by_value, True), (out.last_hidden_state, False)):
        grid = vision.post_layernorm(tokens)[0, 1:].view(6, 6, -1)
        expected = F.normalize(tiny.model.visual_projection(grid[2:5, 1:4].mean((0, 1))), dim=-1)
        found = built(tiny, values=flag, roi_bins=3).embed_regions(image[None], boxes, torch.tensor([0]))
        assert (found[0] - expected).abs().max() < 1e-5


@torch.no_grad()
def test_a_crop_is_the_region_as_an_image(tiny: Tiny) -> None:
    vlm = built(tiny, regions="crops")
    image = photo(90, 120, 8)
    region = vlm.embed_regions(image[None], torch.tensor([[10.0, 20.0, 58.0, 68.0]]), torch.tensor([0]))
    assert (region - vlm.embed_whole(image[None, :, 20:68, 10:58])).abs().max() < 1e-6
    wide = built(tiny, regions="crops", context=1.5)
    region = wide.embed_regions(image[None], torch.tensor([[20.0, 30.0, 52.0, 62.0]]), torch.tensor([0]))
    assert (region - vlm.embed_whole(image[None, :, 22:70, 12:60])).abs().max() < 1e-6


@torch.no_grad()
def test_a_finished_model_needs_no_checkpoint(tiny: Tiny, tmp_path: Path) -> None:
    vlm = built(tiny)
    models.write(str(tmp_path / "m"), vlm, "f")
    moved = Path(tiny.folder).rename(tmp_path / "elsewhere")
    try:
        again = models.load_vlm(str(tmp_path / "m"))
    finally:
        moved.rename(tiny.folder)
    image = photo(70, 50)[None]
    boxes, image_of = torch.tensor([[3.0, 4.0, 40.0, 60.0]]), torch.tensor([0])
    assert torch.equal(again.embed_whole(image), vlm.embed_whole(image))
    assert torch.equal(again.embed_regions(image, boxes, image_of), vlm.embed_regions(image, boxes, image_of))
    assert torch.equal(again.embed_texts(again.tokenize(TEXTS)), vlm.embed_texts(vlm.tokenize(TEXTS)))
    assert again.log_scale.item() == vlm.log_scale.item()


@torch.no_grad()
def test_eager_attention_and_half_precision_agree(tiny: Tiny) -> None:
    vlm = built(tiny)
    eager = ModelConfig.model_validate({"image": {"kind": "hf"}, "weights": tiny.folder, "attention": "eager"})
    pixels, sizes = stacked([photo(48, 48, 1), photo(30, 96, 2)])
    boxes, image_of = BOXES[1:3], torch.tensor([0, 1])
    expected = vlm.embed_regions(pixels, boxes, image_of, sizes)
    assert (RegionVLM(eager).eval().embed_regions(pixels, boxes, image_of, sizes) - expected).abs().max() < 1e-5
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = vlm.embed_regions(pixels, boxes, image_of, sizes)
    assert half.dtype == torch.float32 and (half * expected).sum(1).min() > 0.99


def test_gradients_reach_every_parameter(tiny: Tiny) -> None:
    vlm = built(tiny)
    image = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (2, 3, 60, 50), np.uint8))
    loss = (vlm.embed_whole(image) @ vlm.embed_texts(vlm.tokenize(TEXTS)).T).square().sum() * vlm.scale
    loss.backward()
    silent = [n for n, p in vlm.named_parameters() if p.grad is None]
    assert not silent
