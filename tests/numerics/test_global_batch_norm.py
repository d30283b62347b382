"""GlobalBatchNorm on several ranks with uneven counts equals nn.BatchNorm2d on the joined batch."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from rank_pool import RankPool
from torch import nn

from villa_dist.encoders.norm import GlobalBatchNorm

CHANNELS, SIDE = 3, 5


def data(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    random = np.random.default_rng(1)
    x = random.standard_normal((count, CHANNELS, SIDE, SIDE)) * [[[[0.5]], [[2.0]], [[7.0]]]] + [
        [[[0.0]], [[3.0]], [[-20.0]]]
    ]
    weight = random.standard_normal((count, CHANNELS, SIDE, SIDE))
    return torch.from_numpy(x.astype(np.float32)), torch.from_numpy(weight.astype(np.float32))


def fill(norm: nn.BatchNorm2d) -> nn.BatchNorm2d:
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([0.5, 1.0, 2.0]))
        norm.bias.copy_(torch.tensor([1.0, -1.0, 0.0]))
    return norm


def two_steps(norm: nn.BatchNorm2d, x: torch.Tensor, weight: torch.Tensor) -> dict[str, np.ndarray]:
    for _ in range(2):  # running statistics move twice
        inputs = x.clone().requires_grad_()
        norm.zero_grad()
        out = norm(inputs)
        (out * weight).sum().backward()
    assert norm.running_mean is not None
    assert norm.running_var is not None
    assert inputs.grad is not None
    assert norm.weight.grad is not None
    assert norm.bias.grad is not None
    values = {
        "out": out.detach(),
        "input": inputs.grad,
        "weight": norm.weight.grad,
        "bias": norm.bias.grad,
        "mean": norm.running_mean,
        "var": norm.running_var,
        "steps": norm.num_batches_tracked,
        "eval": norm.eval()(x).detach(),
    }
    return {k: v.numpy() for k, v in values.items() if v is not None}


def one_rank(rank: int, world: int, bounds: list[int]) -> dict[str, Any]:
    x, weight = data(bounds[-1])
    mine = slice(bounds[rank], bounds[rank + 1])
    return two_steps(fill(GlobalBatchNorm(CHANNELS)), x[mine], weight[mine])


@pytest.mark.parametrize("bounds", [[0, 8], [0, 3, 8], [0, 8, 8], [0, 1, 2, 2, 9]], ids=str)
def test_ranks_together_equal_one_batch_norm(ranks: RankPool, bounds: list[int]) -> None:
    x, weight = data(bounds[-1])
    expected = two_steps(fill(nn.BatchNorm2d(CHANNELS)), x, weight)
    found = ranks.run(one_rank, len(bounds) - 1, bounds)
    for name in ("out", "input", "eval"):
        assert np.abs(np.concatenate([f[name] for f in found]) - expected[name]).max() < 2e-5, name
    for name in ("weight", "bias"):
        assert np.abs(sum(f[name] for f in found) - expected[name]).max() < 1e-4, name
    for one in found:
        assert np.allclose(one["mean"], expected["mean"], atol=1e-5)
        assert np.allclose(one["var"], expected["var"], rtol=1e-5)
        assert one["steps"] == expected["steps"]


@pytest.mark.parametrize("shape", [(1, 3, 1, 1), (0, 3, 4, 4)])
def test_one_rank_with_one_place_or_none_does_not_fail(shape: tuple[int, ...]) -> None:
    norm = fill(GlobalBatchNorm(CHANNELS))
    x = torch.randn(shape, requires_grad=True)
    out = norm(x)
    out.sum().backward()
    assert out.shape == shape
    assert torch.isfinite(out).all()
    assert norm.num_batches_tracked == 0
