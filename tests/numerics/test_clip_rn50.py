"""CLIP's ResNet and text transformer against a transcription in plain functions over the published tensors."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "villa_dist"))

import tiny_clip as tiny

from villa_dist.config import ModelConfig
from villa_dist.encoders.preprocess import CLIP_MEAN, CLIP_STD
from villa_dist.vlm.model import RegionVLM

State = dict[str, Tensor]


# ---- the transcription: N C H W arrays, one line an operation, names as published


def norm(s: State, name: str, x: Tensor) -> Tensor:
    mean, var = s[f"{name}.running_mean"], s[f"{name}.running_var"]
    scale = s[f"{name}.weight"] / torch.sqrt(var + 1e-5)
    return (x - mean[:, None, None]) * scale[:, None, None] + s[f"{name}.bias"][:, None, None]


def bottleneck(s: State, name: str, x: Tensor, stride: int) -> Tensor:
    out = torch.relu(norm(s, f"{name}.bn1", F.conv2d(x, s[f"{name}.conv1.weight"])))
    out = torch.relu(norm(s, f"{name}.bn2", F.conv2d(out, s[f"{name}.conv2.weight"], padding=1)))
    if stride > 1:
        out = F.avg_pool2d(out, stride)
    out = norm(s, f"{name}.bn3", F.conv2d(out, s[f"{name}.conv3.weight"]))
    if f"{name}.downsample.0.weight" in s:
        x = F.avg_pool2d(x, stride) if stride > 1 else x
        x = norm(s, f"{name}.downsample.1", F.conv2d(x, s[f"{name}.downsample.0.weight"]))
    return torch.relu(out + x)


def stage(s: State, number: int, x: Tensor) -> Tensor:
    for block in range(tiny.LAYERS[number - 1]):
        x = bottleneck(s, f"visual.layer{number}.{block}", x, 2 if number > 1 and block == 0 else 1)
    return x


def attention_pool(s: State, x: Tensor) -> Tensor:
    """As published: nn.functional's attention over (mean, places), of which the mean's output is kept."""
    channels = x.shape[1]
    x = x.flatten(2).permute(2, 0, 1)
    x = torch.cat([x.mean(0, keepdim=True), x]) + s["visual.attnpool.positional_embedding"][:, None]
    weights = {f"{p}_proj_weight": s[f"visual.attnpool.{p}_proj.weight"] for p in "qkv"}
    out, _ = F.multi_head_attention_forward(
        x[:1],
        x,
        x,
        channels,
        tiny.WIDTH * 32 // 64,
        None,
        torch.cat([s[f"visual.attnpool.{p}_proj.bias"] for p in "qkv"]),
        None,
        None,
        False,
        0.0,
        s["visual.attnpool.c_proj.weight"],
        s["visual.attnpool.c_proj.bias"],
        use_separate_proj_weight=True,
        need_weights=False,
        **weights,
    )
    return out[0]


def to_layer3(s: State, images: Tensor) -> Tensor:
    x = images
    for n in (1, 2, 3):
        x = F.conv2d(x, s[f"visual.conv{n}.weight"], stride=2 if n == 1 else 1, padding=1)
        x = torch.relu(norm(s, f"visual.bn{n}", x))
    x = F.avg_pool2d(x, 2)
    return stage(s, 3, stage(s, 2, stage(s, 1, x)))


def embed_text(s: State, ids: list[int]) -> Tensor:
    x = s["token_embedding.weight"][ids] + s["positional_embedding"][: len(ids)]
    heads, width = tiny.TEXT_WIDTH // 64, tiny.TEXT_WIDTH
    for b in range(tiny.TEXT_LAYERS):
        p = f"transformer.resblocks.{b}"
        y = F.layer_norm(x, (width,), s[f"{p}.ln_1.weight"], s[f"{p}.ln_1.bias"])
        q, k, v = (y @ s[f"{p}.attn.in_proj_weight"].T + s[f"{p}.attn.in_proj_bias"]).chunk(3, -1)
        parts = []
        for q_h, k_h, v_h in zip(q.chunk(heads, -1), k.chunk(heads, -1), v.chunk(heads, -1), strict=True):
            logits = q_h @ k_h.T / 8.0
            logits = logits.masked_fill(torch.ones_like(logits).triu(1).bool(), float("-inf"))
            parts.append(logits.softmax(-1) @ v_h)
        x = x + torch.cat(parts, -1) @ s[f"{p}.attn.out_proj.weight"].T + s[f"{p}.attn.out_proj.bias"]
        y = F.layer_norm(x, (width,), s[f"{p}.ln_2.weight"], s[f"{p}.ln_2.bias"])
        y = y @ s[f"{p}.mlp.c_fc.weight"].T + s[f"{p}.mlp.c_fc.bias"]
        y = y * torch.sigmoid(1.702 * y)
        x = x + y @ s[f"{p}.mlp.c_proj.weight"].T + s[f"{p}.mlp.c_proj.bias"]
    last = F.layer_norm(x[-1], (width,), s["ln_final.weight"], s["ln_final.bias"])
    return F.normalize(last @ s["text_projection"], dim=-1)


# ---- the tests


@pytest.fixture(scope="module")
def state() -> State:
    return tiny.state_dict()


@pytest.fixture(scope="module")
def vlm(state: State, tmp_path_factory: pytest.TempPathFactory) -> RegionVLM:
    folder = tmp_path_factory.mktemp("clip")
    torch.save(state, folder / "RN.pt")
    return built(folder)


def built(folder: Path, **image: object) -> RegionVLM:
    values = {
        "image": {"kind": "clip_rn50", **image},
        "text": {"vocabulary": tiny.vocabulary(folder)},
        "weights": str(folder / "RN.pt"),
    }
    return RegionVLM(ModelConfig.model_validate(values)).eval()


def noise(*shape: int) -> Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def prepared(pixels: Tensor) -> Tensor:
    mean, std = (torch.tensor(v)[:, None, None] for v in (CLIP_MEAN, CLIP_STD))
    return (pixels.double() / 255 - mean) / std


@torch.no_grad()
def test_a_whole_image_equals_the_transcription(state: State, vlm: RegionVLM) -> None:
    pixels = noise(2, 3, tiny.SIDE, tiny.SIDE)
    s = {k: v.double() for k, v in state.items()}
    maps = to_layer3(s, prepared(pixels))
    assert maps.shape[2:] == (2 * tiny.CELLS, 2 * tiny.CELLS)
    expected = F.normalize(attention_pool(s, stage(s, 4, maps)), dim=-1)
    assert (vlm.embed_whole(pixels) - expected).abs().max() < 1e-5


@torch.no_grad()
def test_a_region_of_whole_cells_equals_the_transcription(state: State, vlm: RegionVLM) -> None:
    """Upright images of twice the trained side: a region of 6 x 6 cells is cut out of the map without resampling."""
    wide = RegionVLM(
        vlm.config.model_copy(update={"image": vlm.config.image.model_copy(update={"size": 2 * tiny.SIDE})})
    )
    pixels = noise(1, 3, 2 * tiny.SIDE, 2 * tiny.SIDE)
    s = {k: v.double() for k, v in state.items()}
    maps = to_layer3(s, prepared(pixels))
    box = torch.tensor([[32.0, 64.0, 128.0, 160.0]])  # columns 2 to 7, rows 4 to 9
    expected = F.normalize(attention_pool(s, stage(s, 4, maps[:, :, 4:10, 2:8])), dim=-1)
    found = wide.eval().embed_regions(pixels, box, torch.tensor([0]))
    assert (found - expected).abs().max() < 1e-5


@torch.no_grad()
def test_a_region_over_the_whole_image_is_the_image(vlm: RegionVLM) -> None:
    """At the trained size, where bins are cells; on a larger map RoIAlign resamples and the two differ."""
    box, first = torch.tensor([[0.0, 0.0, tiny.SIDE, tiny.SIDE]]), torch.tensor([0])
    pixels = noise(1, 3, tiny.SIDE, tiny.SIDE)
    assert (vlm.embed_regions(pixels, box, first) - vlm.embed_whole(pixels)).abs().max() < 1e-6
    size = vlm.config.image.model_copy(update={"size": tiny.SIDE + 64})
    larger = RegionVLM(vlm.config.model_copy(update={"image": size})).eval()
    assert (larger.embed_regions(pixels, box, first) - vlm.embed_whole(pixels)).abs().max() > 1e-3


@torch.no_grad()
def test_a_mixed_batch_equals_its_images_alone(vlm: RegionVLM) -> None:
    images = [noise(3, 96, 96), noise(3, 60, 200), noise(3, 100, 101), noise(3, 61, 199)]
    sizes = torch.tensor([i.shape[1:] for i in images])
    pixels = noise(4, 3, *sizes.amax(0).tolist())
    for n, image in enumerate(images):
        pixels[n, :, : image.shape[1], : image.shape[2]] = image
    boxes = torch.tensor([[3.0, 5.0, 40.0, 30.0], [0, 0, 20, 47], [10, 2, 14, 9], [1, 1, 60, 40], [50, 5, 190, 60]])
    image_of = torch.tensor([2, 0, 1, 2, 3])
    for regions in ("dense", "crops"):
        chosen = vlm.config.image.model_copy(update={"regions": regions})
        model = RegionVLM(vlm.config.model_copy(update={"image": chosen})).eval()
        together = model.embed_regions(pixels, boxes, image_of, sizes)
        for r, n in enumerate(image_of.tolist()):
            alone = model.embed_regions(images[n][None], boxes[r : r + 1], torch.tensor([0]))
            assert (together[r] - alone[0]).abs().max() < 2e-6
        assert model.embed_regions(pixels, boxes[:0], image_of[:0], sizes).shape == (0, tiny.DIM)


@torch.no_grad()
def test_texts_equal_the_transcription(state: State, vlm: RegionVLM) -> None:
    texts = ["a cat", "", "two dogs and a cat in one very long text that is cut"]
    found = vlm.embed_texts(vlm.tokenize(texts))
    s = {k: v.double() for k, v in state.items()}
    for text, embedding in zip(texts, found, strict=True):
        ids = vlm.text.tokenizer.ids([text])[0]
        assert ids[0] == 49_406 and ids[-1] == 49_407 and len(ids) <= tiny.LENGTH
        assert (embedding - embed_text(s, ids)).abs().max() < 1e-5
    assert vlm.log_scale.item() == pytest.approx(3.7)


def test_statistics_stay_and_gradients_flow(vlm: RegionVLM, state: State) -> None:
    """In training too, batch norm uses the published statistics; a rank without regions still runs backward."""
    vlm.train()
    pixels = noise(2, 3, 70, 96)
    loss = vlm.embed_whole(pixels).square().sum() + vlm.embed_texts(vlm.tokenize(["a cat"])).sum()
    loss = loss + vlm.embed_regions(pixels, torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64)).sum()
    (loss * vlm.scale).backward()
    assert not [n for n, p in vlm.named_parameters() if p.grad is None]
    assert torch.equal(vlm.image.bn1.running_mean, state["visual.bn1.running_mean"])
    vlm.eval()
