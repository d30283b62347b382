"""micro_images under DeepSpeed: the gradients an engine ends with equal those of the whole batch at once, on one process."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

os.environ.setdefault("DS_ACCELERATOR", "cpu")
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "villa_dist"))

import pytest
import tiny_checkpoints
import torch
from test_published_ranks import PROMPTS, batch
from test_region_objective import gradients
from torch import Tensor
from torch.multiprocessing.spawn import spawn

from villa_dist.config import ModelConfig
from villa_dist.config_train import OptimConfig, TrainConfig
from villa_dist.train.local import free_port, leave, set_rank_environment
from villa_dist.train.objective import RegionObjective
from villa_dist.vlm.model import RegionVLM


def module(folder: str, options: dict[str, Any]) -> RegionObjective:
    model = ModelConfig.model_validate({"image": {"kind": "hf"}, "weights": folder})
    return RegionObjective(RegionVLM(model), PROMPTS, TrainConfig.model_validate(options))


def one_rank(rank: int, world: int, port: int, stages: list[int], options: dict[str, Any], folder: str) -> None:
    """In processes of their own, since DeepSpeed keeps global state. Rank 1 has no region at all."""
    from deepspeed.utils import safe_get_full_grad

    from villa_dist.train.engine import Engine, init_process_group

    set_rank_environment(rank, world, "127.0.0.1", port)
    torch.set_num_threads(1)
    init_process_group()
    part = 4 // world
    for stage in stages:
        engine = Engine(module(folder, options), OptimConfig(batch_images=4, zero_stage=stage))
        data = batch(rank * part, (rank + 1) * part)
        named = [(n, p) for n, p in engine.module.named_parameters() if p.requires_grad]
        cut = sum(p.numel() == 0 for _, p in named)  # parameters that are cut, between calls
        loss = engine(data)
        engine.raw.backward(loss)
        found = {n: safe_get_full_grad(p) if stage else p.grad for n, p in named}
        torch.save((cut, loss.item(), found), f"{folder}/{stage}-{rank}.pt")
        engine.raw.step()
        engine.close()
    leave(0)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("loss", "stages"), [("multi_positive", [0, 1, 2, 3]), ("sigmoid", [3])], ids=["multi_positive", "sigmoid"]
)
def test_engines_end_with_the_whole_batchs_gradient(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, loss: str, stages: list[int]
) -> None:
    """fp32, within 1e-4 of each parameter's largest, which is what two ranks differ by without chunks too."""
    # layers of 131,072 numbers: ZeRO-3 leaves those below 100,000 whole
    monkeypatch.setattr(
        tiny_checkpoints, "TINY", {**tiny_checkpoints.TINY, "hidden_size": 64, "intermediate_size": 2048}
    )
    tiny_checkpoints.write("clip", tmp_path)
    expected_loss, expected = gradients(module(str(tmp_path), {"loss": loss}), batch(0, 4))
    options = {"loss": loss, "micro_images": 1}
    spawn(one_rank, args=(2, free_port(), stages, options, str(tmp_path)), nprocs=2)
    for stage in stages:
        for rank in (0, 1):
            cut, found_loss, found = torch.load(tmp_path / f"{stage}-{rank}.pt")
            assert bool(cut) == (stage == 3)
            assert found_loss == pytest.approx(expected_loss, abs=1e-4)
            check(found, expected)


def check(found: dict[str, Tensor | None], expected: dict[str, Tensor]) -> None:
    for name, gradient in expected.items():
        mine = found[name]
        assert mine is not None, name
        assert (mine - gradient).abs().max() < 1e-4 * max(1.0, float(gradient.abs().max())), name
