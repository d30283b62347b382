"""Blocks computed again in the backward pass, and the two ways to attend: the same gradients."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

os.environ.setdefault("DS_ACCELERATOR", "cpu")
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "villa_dist"))

import pytest
import tiny_checkpoints
import tiny_clip
import torch
from test_published_ranks import PROMPTS, batch
from torch import Tensor, nn

from shards.errors import VillaError
from villa_dist.config import ModelConfig
from villa_dist.config_train import OptimConfig, TrainConfig
from villa_dist.train.local import free_port, leave, set_rank_environment
from villa_dist.train.objective import RegionObjective
from villa_dist.train.recompute import blocks, recompute_blocks
from villa_dist.vlm.model import RegionVLM


def objective(kind: str, folder: Path, **values: Any) -> RegionObjective:
    if kind == "clip_rn50":
        torch.save(tiny_clip.state_dict(), folder / "m.pt")
        values |= {"weights": str(folder / "m.pt"), "text": {"vocabulary": tiny_clip.vocabulary(folder)}}
        values["image"] = {"kind": kind}
    else:
        tiny_checkpoints.write(kind, folder)
        values |= {"image": {"kind": "hf"}, "weights": str(folder)}
    return RegionObjective(RegionVLM(ModelConfig.model_validate(values)), PROMPTS, TrainConfig())


def gradients(module: nn.Module) -> tuple[float, dict[str, Tensor]]:
    loss = module(batch(0, 4))
    loss.backward()
    return loss.item(), {n: p.grad for n, p in module.named_parameters() if p.grad is not None}


def kept(module: nn.Module) -> int:
    """Bytes that a forward pass keeps for the backward."""
    found: dict[int, int] = {}

    def pack(x: Tensor) -> Tensor:
        found[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        module(batch(0, 4))
    own = {p.untyped_storage().data_ptr() for p in module.parameters()}
    return sum(size for at, size in found.items() if at not in own)


@pytest.mark.parametrize(("kind", "number"), [("clip", 6), ("siglip2", 6), ("clip_rn50", None)])
def test_gradients_are_the_same_and_less_is_kept(tmp_path: Path, kind: str, number: int | None) -> None:
    plain = objective(kind, tmp_path)
    expected_loss, expected = gradients(plain)
    module = objective(kind, tmp_path)
    before, count = kept(module), recompute_blocks(module)
    assert count == number or number is None
    assert kept(module) < 0.7 * before
    loss, found = gradients(module)
    assert loss == expected_loss and found.keys() == expected.keys()
    for name, gradient in expected.items():
        assert torch.equal(found[name], gradient), name


def test_a_frozen_text_tower_is_left_alone(tmp_path: Path) -> None:
    module = objective("clip", tmp_path)
    module.vlm.text.requires_grad_(False)
    assert len(list(blocks(module))) == 3


def test_batch_statistics_are_refused() -> None:
    with pytest.raises(VillaError, match=r"image\.stem.*twice"):
        recompute_blocks(RegionVLM(ModelConfig()))
    with pytest.raises(VillaError, match="nothing"):
        recompute_blocks(nn.Linear(2, 2))


def test_sdpa_and_eager_have_one_gradient(tmp_path: Path) -> None:
    """fp32, within 1e-5 of each parameter's largest; what the config names is what runs."""
    found = {}
    for way in ("sdpa", "eager"):
        module = objective("siglip", tmp_path, attention=way)
        for tower in (module.vlm.image, module.vlm.text):
            assert tower.model.config._attn_implementation == way
        found[way] = gradients(module)
    assert found["sdpa"][0] == pytest.approx(found["eager"][0], rel=1e-5)
    for name, gradient in found["eager"][1].items():
        assert (found["sdpa"][1][name] - gradient).abs().max() <= 1e-5 * max(1.0, gradient.abs().max().item()), name


def one_rank(rank: int, world: int, port: int, stages: list[int], folder: str) -> None:
    """In processes of their own, since DeepSpeed keeps global state. Rank 1 has no region at all."""
    from deepspeed.utils import safe_get_full_grad

    from villa_dist.train.engine import Engine, init_process_group

    set_rank_environment(rank, world, "127.0.0.1", port)
    torch.set_num_threads(1)
    init_process_group()
    part = 4 // world
    for stage in stages:
        config = OptimConfig(batch_images=4, zero_stage=stage, activation_checkpointing=True)
        model = ModelConfig.model_validate({"image": {"kind": "hf"}, "weights": folder})
        engine = Engine(RegionObjective(RegionVLM(model), PROMPTS), config)
        loss = engine(batch(rank * part, (rank + 1) * part))
        engine.raw.backward(loss)
        found = {n: safe_get_full_grad(p) if stage else p.grad for n, p in engine.module.named_parameters()}
        torch.save((loss.item(), found), f"{folder}/{stage}-{rank}.pt")
        engine.raw.step()
        engine.close()
    leave(0)


@pytest.mark.slow
def test_ranks_under_zero_end_with_the_same_gradient(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ZeRO-3 cuts only layers of 100,000 numbers and more."""
    wide = {**tiny_checkpoints.TINY, "hidden_size": 64, "intermediate_size": 2048}
    monkeypatch.setattr(tiny_checkpoints, "TINY", wide)
    expected_loss, expected = gradients(objective("clip", tmp_path))
    stages = [0, 1, 3]
    torch.multiprocessing.spawn(one_rank, args=(2, free_port(), stages, str(tmp_path)), nprocs=2)
    for stage in stages:
        for rank in (0, 1):
            loss, found = torch.load(tmp_path / f"{stage}-{rank}.pt")
            assert loss == pytest.approx(expected_loss, abs=1e-4)
            for name, gradient in expected.items():
                assert (found[name] - gradient).abs().max() < 1e-4 * max(1.0, gradient.abs().max().item()), name
