"""What the region objective adds to its loss: near duplicates, whole images, and a batch embedded a few images at a time."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "villa_dist"))

import pytest
import tiny_checkpoints
import torch
import torch.nn.functional as F
from test_objectives import MODEL, PROMPTS, UNEVEN
from test_objectives import batch as conv_batch
from test_published_ranks import PROMPTS as HF_PROMPTS
from test_published_ranks import batch as hf_batch
from torch import Tensor, nn

from shards.errors import VillaError
from villa_dist.config import Config, ModelConfig
from villa_dist.config_base import ConfigError
from villa_dist.config_file import load
from villa_dist.config_train import TrainConfig
from villa_dist.data.loader import PairBatch
from villa_dist.losses import Pairs, multi_positive
from villa_dist.train import near, objective
from villa_dist.train.objective import RegionObjective, WholeObjective
from villa_dist.vlm.model import RegionVLM

# ---- near duplicates


def cone(alike: int) -> Tensor:
    """40 attributes in a narrow cone (cosines above .9), the first `alike` of them nearly one."""
    axis = F.normalize(torch.randn(64), dim=-1)
    own = F.normalize(torch.randn(40, 64), dim=-1)
    own[:alike] = F.normalize(own[0] + 0.02 * torch.randn(alike, 64), dim=-1)
    return F.normalize(axis + 0.3 * own, dim=-1)


def test_near_duplicates_are_found_in_a_cone_of_prompts() -> None:
    embedding = cone(3)
    assert (embedding @ embedding.T).min() > 0.8, "raw cosines tell nothing here"
    like = near.reference(embedding, 0.9)
    assert like is not None
    found = near.near_texts(like.float(), 0.9)
    assert sorted(zip(found.text.tolist(), found.other.tolist(), strict=True)) == [
        (a, b) for a in range(3) for b in range(3) if a != b
    ]


def test_a_tower_that_tells_nothing_apart_never_switches_negatives_off(caplog: pytest.LogCaptureFixture) -> None:
    near.LOG.propagate = True
    assert near.reference(cone(20), 0.9) is None
    assert "near_duplicates" in caplog.text and "null" in caplog.text


def test_near_duplicates_are_left_out_of_the_loss() -> None:
    torch.manual_seed(3)
    vlm = RegionVLM(MODEL).eval()
    data = conv_batch(0, 4, UNEVEN, mentions=False)
    reference = F.normalize(torch.eye(6) + 0.01, dim=-1)
    reference[1] = reference[0]
    losses = {
        name: RegionObjective(vlm, PROMPTS, TrainConfig(near_duplicates=threshold), table)(data).item()
        for name, threshold, table in (("plain", 0.9, None), ("near", 0.9, reference), ("off", None, reference))
    }
    made = RegionObjective(vlm, PROMPTS)
    u = vlm.embed_regions(data.pixels, data.boxes, data.image_of)
    said = torch.zeros(len(u), 6, dtype=torch.bool)
    said[data.region, data.attribute] = True
    out = torch.zeros_like(said)
    out[:, 0], out[:, 1] = said[:, 1] & ~said[:, 0], said[:, 0] & ~said[:, 1]
    assert out.any()
    v = made.embed_attributes(torch.arange(6))
    pairs, ignored = Pairs(data.region, data.attribute), Pairs(*out.nonzero().unbind(1))
    assert losses["near"] == pytest.approx(multi_positive(u, v, vlm.scale, pairs, ignored=ignored).item(), abs=1e-6)
    assert losses["plain"] == losses["off"] == pytest.approx(multi_positive(u, v, vlm.scale, pairs).item(), abs=1e-6)
    assert losses["near"] != losses["plain"]


# ---- parameters and whole images


def test_only_sigmoid_has_a_bias_and_no_exported_model_has() -> None:
    vlm = RegionVLM(MODEL)
    names = {loss: set(RegionObjective(vlm, PROMPTS, TrainConfig(loss=loss)).state_dict()) for loss in LOSSES}
    assert names["sigmoid"] - names["multi_positive"] == {"bias"}
    assert names["infonce"] == names["multi_positive"] == {f"vlm.{n}" for n in vlm.state_dict()}
    bias = RegionObjective(vlm, PROMPTS, TrainConfig(loss="sigmoid")).bias
    assert bias is not None and bias.shape == (1,) and bias.item() == -10.0


LOSSES = ("multi_positive", "sigmoid", "infonce")


@pytest.mark.parametrize("loss", LOSSES)
def test_whole_images_are_a_weighted_addition(loss: Any) -> None:
    torch.manual_seed(3)
    vlm, data = RegionVLM(MODEL), conv_batch(0, 4, UNEVEN, mentions=False)
    alone = RegionObjective(vlm, PROMPTS, TrainConfig(loss=loss))(data)
    both = RegionObjective(vlm, PROMPTS, TrainConfig(loss=loss, whole_weight=0.7))(data)
    assert both.item() == pytest.approx(alone.item() + 0.7 * WholeObjective(vlm)(data).item(), abs=1e-5)
    parameters = list(vlm.parameters())
    found = torch.autograd.grad(both, parameters)
    expected = torch.autograd.grad(alone + 0.7 * WholeObjective(vlm)(data), parameters)
    for mine, theirs in zip(found, expected, strict=True):
        assert torch.allclose(mine, theirs, atol=2e-5 * max(1.0, float(theirs.abs().max())))


# ---- a few images at a time


@pytest.fixture(scope="module")
def hf_model(tmp_path_factory: pytest.TempPathFactory) -> ModelConfig:
    folder = tmp_path_factory.mktemp("clip")
    tiny_checkpoints.write("clip", folder)
    return ModelConfig.model_validate({"image": {"kind": "hf"}, "weights": str(folder)})


def whole_batch() -> PairBatch:
    return replace(hf_batch(0, 4), texts=["a cat . red", "two", "red dog . a", ""])


def gradients(module: nn.Module, data: PairBatch) -> tuple[float, dict[str, Tensor]]:
    module.zero_grad()
    loss = module(data)
    loss.backward()
    return loss.item(), {n: p.grad.clone() for n, p in module.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("micro", [1, 3, 4, 9])
@pytest.mark.parametrize("options", [{}, {"loss": "sigmoid"}, {"loss": "infonce"}, {"whole_weight": 0.5}], ids=str)
def test_chunks_have_the_whole_batchs_gradient(hf_model: ModelConfig, micro: int, options: dict[str, Any]) -> None:
    """fp32: the loss within 1e-5, gradients within 1e-5 of each parameter's largest."""
    vlm = RegionVLM(hf_model)
    expected_loss, expected = gradients(RegionObjective(vlm, HF_PROMPTS, TrainConfig(**options)), whole_batch())
    chunked = RegionObjective(vlm, HF_PROMPTS, TrainConfig(**options, micro_images=micro))
    loss, found = gradients(chunked, whole_batch())
    assert loss == pytest.approx(expected_loss, abs=1e-5)
    assert found.keys() == expected.keys() and any(g.any() for g in expected.values())
    for name, gradient in expected.items():
        assert (found[name] - gradient).abs().max() < 1e-5 * max(1.0, float(gradient.abs().max())), name


def test_chunks_keep_no_more_than_their_embeddings(hf_model: ModelConfig) -> None:
    """Numbers saved for the backward pass, outside of it, do not grow with the tower's depth."""
    kept: list[int] = []

    def saved(micro: int | None) -> int:
        kept.clear()
        module = RegionObjective(RegionVLM(hf_model), HF_PROMPTS, TrainConfig(micro_images=micro))
        parameters = {p.data_ptr() for p in module.parameters()}

        def pack(x: Tensor) -> Tensor:
            kept.append(0 if x.data_ptr() in parameters else x.numel())
            return x

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            module(whole_batch())
        return sum(kept)

    assert saved(1) < saved(None) / 20


def test_dropout_is_drawn_again_as_it_was(hf_model: ModelConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    vlm = RegionVLM(hf_model)
    vlm.projection = nn.Sequential(vlm.projection, nn.Dropout(0.5))
    module = RegionObjective(vlm, HF_PROMPTS, TrainConfig(micro_images=2))
    torch.manual_seed(1)
    _, found = gradients(module, whole_batch())
    plain = lambda embed, parts, beside: tuple(torch.cat(c) for c in zip(*(embed(p) for p in parts), strict=True))  # noqa: E731
    monkeypatch.setattr(objective, "recomputed", plain)
    torch.manual_seed(1)
    _, expected = gradients(module, whole_batch())
    torch.manual_seed(2)
    _, other = gradients(module, whole_batch())
    name = "vlm.projection.0.weight"
    assert torch.allclose(found[name], expected[name], atol=1e-6) and not torch.allclose(found[name], other[name])


def test_batch_statistics_are_refused(tmp_path: Path) -> None:
    with pytest.raises(VillaError, match=r"image\.stem\.0\.1.*leave it out"):
        RegionObjective(RegionVLM(MODEL), PROMPTS, TrainConfig(micro_images=2))
    config = tmp_path / "config.yaml"
    config.write_text("train: {micro_images: 8}\n")
    with pytest.raises(ConfigError, match="micro_images"):
        load(str(config))
    assert Config().train.micro_images is None
