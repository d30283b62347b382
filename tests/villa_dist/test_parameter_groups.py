"""Parameter groups: depths of towers by hand-written expectation, and every parameter in one group."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny_checkpoints
import tiny_clip
import torch

from villa_dist.config import Config, ModelConfig
from villa_dist.config_train import OptimConfig
from villa_dist.train.groups import depth, parameter_groups, rate_factors
from villa_dist.train.objective import RegionObjective
from villa_dist.vlm.model import RegionVLM

CLIP = {  # ViT-B: 12 layers
    "model.embeddings.class_embedding": 0,
    "model.embeddings.patch_embedding.weight": 0,
    "model.embeddings.position_embedding.weight": 0,
    "model.pre_layrnorm.weight": 0,
    "model.encoder.layers.0.self_attn.q_proj.weight": 1,
    "model.encoder.layers.1.layer_norm1.bias": 2,
    "model.encoder.layers.11.mlp.fc2.weight": 12,
    "model.post_layernorm.weight": 13,
}
SIGLIP = {
    "model.embeddings.patch_embedding.bias": 0,
    "model.encoder.layers.10.mlp.fc1.bias": 11,
    "model.post_layernorm.bias": 13,
    "model.head.probe": 13,
    "model.head.attention.in_proj_weight": 13,
    "model.head.mlp.fc1.weight": 13,
}
RN50 = {  # 4 stages
    "conv1.weight": 0,
    "bn3.bias": 0,
    "layer1.0.conv1.weight": 1,
    "layer1.0.downsample.0.weight": 1,
    "layer3.5.bn2.weight": 3,
    "layer4.2.conv3.weight": 4,
    "attnpool.positional_embedding": 5,
    "attnpool.c_proj.weight": 5,
}
CONV = {"stem.0.0.weight": 0, "stem.2.1.bias": 0, "head.0.0.weight": 1, "head.1.weight": 1, "head.2.bias": 1}


@pytest.mark.parametrize(
    ("names", "blocks"), [(CLIP, 12), (SIGLIP, 12), (RN50, 4), (CONV, 1)], ids=["clip", "siglip", "rn50", "conv"]
)
def test_depth(names: dict[str, int], blocks: int) -> None:
    assert {name: depth(name, blocks) for name in names} == names


def test_factors() -> None:
    names = [f"vlm.image.{n}" for n in RN50] + ["vlm.text.transformer.resblocks.3.ln_1.weight", "vlm.log_scale", "bias"]
    found = rate_factors([*names, "vlm.projection.weight"], 0.5, 0.1)
    assert found["vlm.image.conv1.weight"] == 0.5**5
    assert found["vlm.image.layer4.2.conv3.weight"] == 0.5
    assert found["vlm.image.attnpool.c_proj.weight"] == 1.0
    assert found["vlm.text.transformer.resblocks.3.ln_1.weight"] == 0.1, "no decay by depth in a text tower"
    assert {found[n] for n in ("vlm.log_scale", "bias", "vlm.projection.weight")} == {1.0}
    expert = [f"model.experts.1.{n}" for n in ("tower.stem.0.0.weight", "tower.head.1.bias", "head.image.0.weight")]
    assert list(rate_factors(expert, 0.5, 1.0).values()) == [0.25, 0.5, 1.0]


def vlm(kind: str, folder: Path) -> RegionVLM:
    if kind == "conv":
        return RegionVLM(ModelConfig())
    if kind == "clip_rn50":
        torch.save(tiny_clip.state_dict(), folder / "m.pt")
        values: dict[str, Any] = {"weights": str(folder / "m.pt"), "text": {"vocabulary": tiny_clip.vocabulary(folder)}}
        return RegionVLM(ModelConfig.model_validate({"image": {"kind": kind}, **values}))
    tiny_checkpoints.write(kind, folder)
    return RegionVLM(ModelConfig.model_validate({"image": {"kind": "hf"}, "weights": str(folder)}))


@pytest.mark.parametrize(("kind", "blocks"), [("conv", 1), ("clip_rn50", 4), ("clip", 3), ("siglip2", 3)])
def test_groups_of_real_towers(tmp_path: Path, kind: str, blocks: int) -> None:
    """Every trained parameter is in one group; each block has a rate of its own; one dimension, no weight decay."""
    module = RegionObjective(vlm(kind, tmp_path), [["a"]])
    groups = parameter_groups(module, OptimConfig(layer_decay=0.5, weight_decay=0.3))
    assert sorted(id(p) for g in groups for p in g.params) == sorted(id(p) for p in module.parameters())
    assert sorted({g.factor for g in groups}) == [0.5**n for n in range(blocks + 1, -1, -1)]
    assert all((p.ndim > 1) == (g.weight_decay == 0.3) for g in groups for p in g.params)
    still = parameter_groups(module, OptimConfig())
    assert [(g.factor, g.weight_decay) for g in still] == [(1.0, 0.05), (1.0, 0.0)]
    module.vlm.text.requires_grad_(False)
    left = {id(p) for g in parameter_groups(module, OptimConfig()) for p in g.params}
    assert left and not left & {id(p) for p in module.vlm.text.parameters()}


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"train": {"offload": "optimizer", "zero_stage": 0}}, "train.zero_stage"),
        ({"pretrain": {"activation_checkpointing": True}}, "pretrain.activation_checkpointing"),
        ({"train": {"text_learning_rate": 0.1}, "model": {"text": {"frozen": True}}}, "model.text.frozen"),
        ({"mapping": {"fit": {"text_learning_rate": 0.1}}}, "mapping.fit.text_learning_rate"),
        ({"train": {"layer_decay": 0.0}}, "layer_decay"),
    ],
)
def test_options_without_effect_are_refused(values: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Config.model_validate(values)
