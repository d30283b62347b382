"""Published towers on several ranks equal one process, loss and gradients, ranks without regions included."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

os.environ.setdefault("DS_ACCELERATOR", "cpu")
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "villa_dist"))

import numpy as np
import pytest
import tiny_checkpoints
import tiny_clip
import torch
from rank_pool import RankPool, averaged

from villa_dist.config import ModelConfig
from villa_dist.data.loader import PairBatch
from villa_dist.distributed import world_size
from villa_dist.train.objective import RegionObjective
from villa_dist.vlm.model import RegionVLM

PROMPTS = [["a cat", "cat a"], ["two"], ["red dog"], ["a"]]
COUNTS = [3, 1, 0, 0]  # regions of each image: the second of two ranks has none
SIZES = torch.tensor([[60, 50], [48, 70], [60, 70], [33, 64]])


def batch(first: int, stop: int) -> PairBatch:
    make = torch.Generator().manual_seed(1)
    image_of = torch.repeat_interleave(torch.arange(4), torch.tensor(COUNTS))
    low = torch.rand(4, 2, generator=make) * 20
    boxes = torch.cat([low, low + 5 + torch.rand(4, 2, generator=make) * 20], 1)
    pixels = torch.randint(0, 256, (4, 3, 60, 70), dtype=torch.uint8, generator=make)
    mine = (image_of >= first) & (image_of < stop)
    number = torch.arange(int(mine.sum()))
    attribute = torch.tensor([0, 1, 3, 2])[mine]
    return PairBatch(
        pixels[first:stop],
        [],
        boxes[mine],
        image_of[mine] - first,
        number,
        attribute,
        None,
        stop - first,
        SIZES[first:stop],
    )


def step(rank: int, world: int, values: dict[str, Any]) -> tuple[float, dict[str, np.ndarray]]:
    torch.manual_seed(0)
    objective = RegionObjective(RegionVLM(ModelConfig.model_validate(values)), PROMPTS)
    part = 4 // world
    loss = objective(batch(rank * part, (rank + 1) * part))
    loss.backward()
    grads = {n: p.grad if p.grad is not None else torch.zeros_like(p) for n, p in objective.named_parameters()}
    if world_size() > 1:
        return averaged(loss.detach()).item(), {n: averaged(g).numpy() for n, g in grads.items()}
    return loss.item(), {n: g.numpy() for n, g in grads.items()}


@pytest.mark.slow
@pytest.mark.parametrize("regions", ["dense", "crops"])
@pytest.mark.parametrize("kind", ["clip_rn50", "clip", "siglip", "siglip2"])
def test_two_ranks_equal_one(ranks: RankPool, tmp_path: Path, kind: str, regions: str) -> None:
    values: dict[str, Any] = {"image": {"kind": "hf", "regions": regions}, "weights": str(tmp_path)}
    if kind == "clip_rn50":
        torch.save(tiny_clip.state_dict(), tmp_path / "m.pt")
        values["image"]["kind"] = kind
        values |= {"weights": str(tmp_path / "m.pt"), "text": {"vocabulary": tiny_clip.vocabulary(tmp_path)}}
    else:
        tiny_checkpoints.write(kind, tmp_path)
    expected_loss, expected = step(0, 1, values)
    assert np.isfinite(expected_loss) and any(g.any() for g in expected.values())
    for loss, grads in ranks.run(step, 2, values):
        assert loss == pytest.approx(expected_loss, abs=1e-4)
        for name, gradient in expected.items():
            assert np.abs(grads[name] - gradient).max() < 1e-4 * max(1.0, np.abs(gradient).max()), name
