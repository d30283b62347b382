"""Every loss on 1, 2 and 4 ranks, in fp32 and bf16, equals its plain one-matrix form in one process.

Tolerances: the loss 1e-5. Gradients 1e-5 of fp32 embeddings; of bf16 ones, which have 8 bits, 2**-7 of the largest.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from rank_pool import RankPool, averaged
from test_multi_positive import dense_loss
from test_other_losses import dense_infonce, dense_sigmoid
from torch import Tensor

from villa_dist.losses import Pairs, gather_texts, infonce, multi_positive, near_pairs, sigmoid
from villa_dist.losses.pairs import Near, nobody
from villa_dist.train.objective import distinct_over_ranks

DIM, FEATURES, VOCABULARY, SCALE, BIAS = 8, 5, 11, 7.0, -2.0
LOSSES = ("multi_positive", "multi_positive, ignored", "sigmoid", "sigmoid, ignored", "infonce")
NEAR = Near(torch.tensor([0, 1, 2, 5]), torch.tensor([1, 0, 5, 2]))  # by their places among the distinct attributes


def batch() -> tuple[Tensor, list[tuple[int, int]]]:
    """21 regions and their attributes; regions 3 and 20 have none, attributes 4 and 9 do not occur."""
    random = np.random.default_rng(5)
    said = random.random((21, VOCABULARY)) < 0.2
    said[[3, 20]] = False
    said[:, [4, 9]] = False
    features = torch.from_numpy(random.standard_normal((21, FEATURES)).astype(np.float32))
    return features, [(int(r), int(a)) for r, a in zip(*said.nonzero(), strict=True)]


def parameters() -> tuple[Tensor, ...]:
    """Projection of regions, embeddings of attributes, scale, bias."""
    random = np.random.default_rng(6)
    region = torch.from_numpy(random.standard_normal((DIM, FEATURES)).astype(np.float32))
    text = torch.from_numpy(random.standard_normal((VOCABULARY, DIM)).astype(np.float32))
    return tuple(p.requires_grad_() for p in (region, text, torch.tensor([SCALE]), torch.tensor([BIAS])))


def embed(weight: Tensor, inputs: Tensor, kind: str) -> Tensor:
    unit = F.normalize(inputs @ weight.T, dim=-1)
    return unit.bfloat16() if kind == "bf16" else unit


def one_rank(
    rank: int, world: int, name: str, kind: str, bounds: list[int], tile: int
) -> tuple[float, list[np.ndarray]]:
    """Loss and averaged gradients on this rank, which holds regions bounds[rank] to bounds[rank + 1]."""
    features, said = batch()
    low, high = bounds[rank], bounds[rank + 1]
    region = torch.tensor([r - low for r, _ in said if low <= r < high], dtype=torch.int64)
    attribute = torch.tensor([a for r, a in said if low <= r < high], dtype=torch.int64)
    every = parameters()
    weight, embedding, scale, bias = every
    u = embed(weight, features[low:high], kind)
    distinct = distinct_over_ranks(attribute)
    each = -(-len(distinct) // world)
    padded = torch.zeros(each * world, dtype=torch.int64)
    padded[: len(distinct)] = distinct
    mine = F.normalize(embedding[padded[rank * each : (rank + 1) * each]], dim=-1)
    v = gather_texts(mine.bfloat16() if kind == "bf16" else mine)[: len(distinct)]
    pairs = Pairs(region, torch.searchsorted(distinct, attribute))
    ignored = near_pairs(pairs, NEAR, len(distinct)) if "ignored" in name else None
    if name.startswith("multi_positive"):
        loss = multi_positive(u, v, scale[0], pairs, tile, ignored)
    elif name.startswith("sigmoid"):
        loss = sigmoid(u, v, scale[0], bias, pairs, tile, ignored)
    else:
        loss = infonce(u, v, scale[0], pairs, tile)
    loss.backward()
    return loss.item(), [averaged(p.grad if p.grad is not None else torch.zeros_like(p)).numpy() for p in every]


def plainly(name: str, kind: str) -> tuple[float, list[Tensor]]:
    features, said = batch()
    every = parameters()
    weight, embedding, scale, bias = every
    attributes = sorted({a for _, a in said})
    pairs = Pairs(torch.tensor([r for r, _ in said]), torch.tensor([attributes.index(a) for _, a in said]))
    text = F.normalize(embedding[attributes], dim=-1)
    u = embed(weight, features, kind).double()
    v = (text.bfloat16() if kind == "bf16" else text).double()
    ignored = near_pairs(pairs, NEAR, len(attributes)) if "ignored" in name else nobody(pairs)
    assert ("ignored" in name) == (len(ignored.region) > 5)
    if name.startswith("multi_positive"):
        loss = dense_loss(u, v, scale[0].double(), pairs, ignored)
    elif name.startswith("sigmoid"):
        loss = dense_sigmoid(u, v, scale[0].double(), bias.double(), pairs, ignored)
    else:
        loss = dense_infonce(u, v, scale[0].double(), pairs)
    grads = torch.autograd.grad(loss, every, allow_unused=True)
    return loss.item(), [g if g is not None else torch.zeros_like(p) for g, p in zip(grads, every, strict=True)]


@pytest.mark.parametrize("tile", [4, 1024])
@pytest.mark.parametrize("kind", ["fp32", "bf16"])
@pytest.mark.parametrize(
    "bounds",
    [[0, 21], [0, 8, 21], [0, 21, 21], [0, 0, 21], [0, 3, 4, 15, 21], [0, 0, 10, 10, 21]],
    ids=["1 rank", "2 uneven", "2, second empty", "2, first empty", "4 uneven", "4, two empty"],
)
@pytest.mark.parametrize("name", LOSSES)
def test_ranks_together_equal_one_process(ranks: RankPool, name: str, bounds: list[int], kind: str, tile: int) -> None:
    expected_loss, expected = plainly(name, kind)
    for loss, grads in ranks.run(one_rank, len(bounds) - 1, name, kind, bounds, tile):
        assert loss == pytest.approx(expected_loss, abs=1e-5)
        for mine, theirs in zip(grads, expected, strict=True):
            limit = 1e-5 if kind == "fp32" else 2**-7 * theirs.abs().max().item() + 1e-5
            assert np.abs(mine - theirs.numpy()).max() < limit


def test_ranks_without_any_pair_have_no_loss(ranks: RankPool) -> None:
    for name in LOSSES:
        for loss, grads in ranks.run(no_pairs, 2, name):
            assert loss == 0.0 and not any(g.any() for g in grads)


def no_pairs(rank: int, world: int, name: str) -> tuple[float, list[np.ndarray]]:
    u, part = torch.randn(3 * rank, DIM, requires_grad=True), torch.randn(1, DIM, requires_grad=True)
    v, none = gather_texts(part)[:1], torch.zeros(0, dtype=torch.int64)
    pairs, scale = Pairs(none, none), torch.tensor(SCALE)
    if name.startswith("sigmoid"):
        loss = sigmoid(u, v, scale, torch.tensor(BIAS), pairs)
    else:
        loss = (infonce if name == "infonce" else multi_positive)(u, v, scale, pairs)
    loss.backward()
    assert u.grad is not None and part.grad is not None
    return loss.item(), [u.grad.numpy(), part.grad.numpy()]


def distinct_of(rank: int, world: int, parts: list[list[int]]) -> list[int]:
    return distinct_over_ranks(torch.tensor(parts[rank], dtype=torch.int64)).tolist()


@pytest.mark.parametrize("parts", [[[3, 1, 1]], [[5, 5], [0, 2]], [[], [7]], [[], []], [[4], [], [9, 1, 4], [0]]])
def test_ranks_agree_on_the_distinct_attributes(ranks: RankPool, parts: list[list[int]]) -> None:
    expected = sorted({i for part in parts for i in part})
    assert ranks.run(distinct_of, len(parts), parts) == [expected] * len(parts)
