"""One training step on several ranks equals the same step on one: loss and averaged gradients of every parameter."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from rank_pool import RankPool, averaged
from torch import nn

from villa_dist.config import ImageTowerConfig, MappingConfig, ModelConfig, TextTowerConfig
from villa_dist.config_train import TrainConfig
from villa_dist.data.loader import PairBatch
from villa_dist.distributed import world_size
from villa_dist.mapping.evidence import ALONE
from villa_dist.mapping.model import MappingModel
from villa_dist.train.objective import MappingObjective, RegionObjective, WholeObjective
from villa_dist.vlm.model import RegionVLM

IMAGES, SIDE, VOCABULARY = 4, 24, 6
TOWER = ImageTowerConfig(width=8, roi_bins=3)
MODEL = ModelConfig(image=TOWER, text=TextTowerConfig(buckets=64), dim=12)
PROMPTS = [["one thing", "thing one"], ["two"], ["three of it"], ["four", "for"], ["five"], ["six and more"]]
TEXTS = ["the first . a red thing", "the second", "the third . a red thing . more", ""]
REGION: dict[str, dict[str, Any]] = {
    "region": {},
    "region, sigmoid": {"loss": "sigmoid"},
    "region, infonce": {"loss": "infonce"},
    "region, whole": {"whole_weight": 0.7},
}
REFERENCE = nn.functional.normalize(
    torch.tensor([[1.0, 0, 0], [0.9, 0.1, 0], [0, 1, 0], [0, 0, 1], [0, 1, 0.1], [1, 1, 1]])
)
UNEVEN, ONE_SIDED = [3, 1, 1, 2], [4, 2, 0, 0]  # regions of each image


def batch(first: int, stop: int, counts: list[int], *, mentions: bool) -> PairBatch:
    """Images first to stop of a fixed batch of four."""
    random = np.random.default_rng(4)
    pixels = torch.from_numpy(random.integers(0, 256, (IMAGES, 3, SIDE, SIDE), np.uint8))
    image_of = np.repeat(np.arange(IMAGES), counts)
    low = random.uniform(0, 12, (len(image_of), 2))
    boxes = torch.from_numpy(np.concatenate([low, low + random.uniform(4, 12, low.shape)], 1).astype(np.float32))
    rows = np.arange(IMAGES) if mentions else np.arange(len(image_of))
    said = random.random((len(rows), VOCABULARY)) < 0.4
    said[np.arange(len(rows)), np.arange(len(rows)) % VOCABULARY] = True
    image_of_row = rows if mentions else image_of
    mine = (image_of >= first) & (image_of < stop)
    own = (image_of_row >= first) & (image_of_row < stop)
    row, attribute = (np.ascontiguousarray(n) for n in np.nonzero(said[own]))
    made = PairBatch(
        pixels=pixels[first:stop],
        texts=TEXTS[first:stop],
        boxes=boxes[mine],
        image_of=torch.from_numpy(image_of[mine] - first),
        region=torch.from_numpy(row),
        attribute=torch.from_numpy(attribute),
        feature=None,
        images=stop - first,
        weight=torch.tensor([0.4, 2.0, 1.3, 0.7])[first:stop],
    )
    return replace(made, others=(replace(made, pixels=255 - pixels[first:stop]),))


def objective(name: str) -> nn.Module:
    torch.manual_seed(3)
    if name == "whole":
        return WholeObjective(RegionVLM(MODEL))
    if name in REGION:
        return RegionObjective(RegionVLM(MODEL), PROMPTS, TrainConfig.model_validate(REGION[name]), REFERENCE)
    options = {"exclusive": ["a", "b"]} if name == "both, exclusive" else {}
    config = MappingConfig.model_validate({"loss": name.split(",")[0], "hidden": 16, **options})
    attribute = nn.functional.normalize(torch.randn(VOCABULARY, 12), dim=-1)
    group = torch.tensor([0, 1, 0, ALONE, 1, 0])
    expert = torch.tensor([0, 1, 0, 1, 1, 0])
    rate = torch.full((VOCABULARY,), 0.2)
    model = MappingModel(config, TOWER, attribute, rate, 0, group=group, expert=expert, experts=2)
    return MappingObjective(model, torch.full((VOCABULARY,), 0.4))


def step(rank: int, world: int, name: str, counts: list[int]) -> tuple[float, dict[str, np.ndarray]]:
    part = IMAGES // world
    model = objective(name)
    loss = model(batch(rank * part, (rank + 1) * part, counts, mentions=name != "whole" and name not in REGION))
    loss.backward()
    grads = {n: p.grad if p.grad is not None else torch.zeros_like(p) for n, p in model.named_parameters()}
    if world_size() > 1:
        return averaged(loss.detach()).item(), {n: averaged(g).numpy() for n, g in grads.items()}
    return loss.item(), {n: g.numpy() for n, g in grads.items()}


def check(ranks: RankPool, name: str, world: int, counts: list[int]) -> None:
    expected_loss, expected = step(0, 1, name, counts)
    assert np.isfinite(expected_loss)
    assert any(g.any() for g in expected.values())
    results: list[Any] = ranks.run(step, world, name, counts)
    for loss, grads in results:
        assert loss == pytest.approx(expected_loss, abs=2e-5)
        for parameter, gradient in expected.items():
            assert np.abs(grads[parameter] - gradient).max() < 2e-5 * max(1.0, np.abs(gradient).max()), parameter


@pytest.mark.parametrize("world", [2, 4])
def test_one_to_one_training(ranks: RankPool, world: int) -> None:
    check(ranks, "whole", world, UNEVEN)


@pytest.mark.parametrize("world", [2, 4])
@pytest.mark.parametrize("counts", [UNEVEN, ONE_SIDED], ids=["uneven", "ranks without regions"])
@pytest.mark.parametrize("name", REGION)
def test_region_training(ranks: RankPool, name: str, world: int, counts: list[int]) -> None:
    check(ranks, name, world, counts)


@pytest.mark.parametrize("world", [2, 4])
@pytest.mark.parametrize("counts", [UNEVEN, ONE_SIDED], ids=["uneven", "ranks without regions"])
def test_fitting_a_mapping_by_noisy_or(ranks: RankPool, world: int, counts: list[int]) -> None:
    check(ranks, "noisy_or", world, counts)


@pytest.mark.parametrize("name", ["contrastive", "negative_unlabelled", "both", "both, exclusive"])
def test_fitting_a_mapping_by_other_losses(ranks: RankPool, name: str) -> None:
    check(ranks, name, 2, UNEVEN)
