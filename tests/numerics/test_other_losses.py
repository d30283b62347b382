"""The tiled sigmoid and InfoNCE against scalar loops and dense autograd forms, on one process."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from test_multi_positive import dense_loss, log_sum_exp, problem
from torch import Tensor

from villa_dist.losses import Pairs, infonce, multi_positive, sigmoid

BIAS = -3.0


def sigmoid_by_loops(
    u: np.ndarray, v: np.ndarray, scale: float, pairs: set[tuple[int, int]], ignored: set[tuple[int, int]]
) -> float:
    total = 0.0
    for r, x in enumerate(u.tolist()):
        for t, y in enumerate(v.tolist()):
            if (r, t) not in ignored:
                z = 1.0 if (r, t) in pairs else -1.0
                logit = scale * sum(a * b for a, b in zip(x, y, strict=True)) + BIAS
                total += math.log(1.0 + math.exp(-z * logit))
    return total / len(pairs)


def dense_sigmoid(u: Tensor, v: Tensor, scale: Tensor, bias: Tensor, pairs: Pairs, ignored: Pairs) -> Tensor:
    z = -torch.ones(len(u), len(v), dtype=u.dtype)
    z[pairs.region, pairs.text] = 1
    z[ignored.region, ignored.text] = 0
    loss = -F.logsigmoid(z * (scale * u @ v.T + bias))
    return (loss * z.abs()).sum() / len(pairs.region)


def infonce_by_loops(u: np.ndarray, v: np.ndarray, scale: float, pairs: list[tuple[int, int]]) -> float:
    """Rows are regions with a pair; a row's text is the unit mean of its texts' embeddings."""
    rows = sorted({r for r, _ in pairs})
    texts = []
    for r in rows:
        total = np.sum([v[t] for region, t in pairs if region == r], axis=0)
        texts.append(total / np.linalg.norm(total))
    logit = [[scale * float(u[r] @ text) for text in texts] for r in rows]
    by_row = [log_sum_exp(logit[i]) - logit[i][i] for i in range(len(rows))]
    by_column = [log_sum_exp([line[i] for line in logit]) - logit[i][i] for i in range(len(rows))]
    return 0.5 * (sum(by_row) + sum(by_column)) / len(rows)


def dense_infonce(u: Tensor, v: Tensor, scale: Tensor, pairs: Pairs) -> Tensor:
    said = torch.zeros(len(u), len(v), dtype=u.dtype)
    said[pairs.region, pairs.text] = 1
    kept = said.any(1)
    logit = scale * u[kept] @ F.normalize(said[kept] @ v, dim=-1).T
    here = torch.arange(len(logit))
    return 0.5 * (F.cross_entropy(logit, here) + F.cross_entropy(logit.T, here))


def listed(pairs: Pairs) -> list[tuple[int, int]]:
    return list(zip(pairs.region.tolist(), pairs.text.tolist(), strict=True))


def some_ignored(pairs: Pairs) -> Pairs:
    """No positives; all pairs of text 2, which no region has, and all of region 4, which has none."""
    out = torch.rand(13, 7) < 0.2
    out[:, 2] = out[4] = True
    out[pairs.region, pairs.text] = False
    return Pairs(*out.nonzero().unbind(1))


@pytest.mark.parametrize("tile", [1, 5, 1024])
@pytest.mark.parametrize("ignore", [False, True])
def test_sigmoid_equals_loops_and_autograd(tile: int, ignore: bool) -> None:
    u, v, scale, pairs = problem(13, 7, 6, torch.float64)
    bias = torch.tensor([BIAS], dtype=torch.float64, requires_grad=True)
    none = torch.zeros(0, dtype=torch.int64)
    ignored = some_ignored(pairs) if ignore else Pairs(none, none)
    loss = sigmoid(u, v, scale, bias, pairs, tile, ignored)
    expected = dense_sigmoid(u, v, scale, bias, pairs, ignored)
    by_loops = sigmoid_by_loops(u.detach().numpy(), v.detach().numpy(), 9.0, set(listed(pairs)), set(listed(ignored)))
    assert loss.item() == pytest.approx(by_loops, abs=1e-12)
    inputs = (u, v, scale, bias)
    for mine, theirs in zip(torch.autograd.grad(loss, inputs), torch.autograd.grad(expected, inputs), strict=True):
        assert torch.allclose(mine, theirs, atol=1e-12)


def test_sigmoid_of_one_text_a_region_is_siglips() -> None:
    """Pseudocode of arXiv 2303.15343: -sum(log_sigmoid((2 eye - 1) * logits)) / n."""
    u, v = (F.normalize(torch.randn(9, 5), dim=-1) for _ in range(2))
    logits = 10 * u @ v.T - 10
    published = -F.logsigmoid((2 * torch.eye(9) - 1) * logits).sum() / 9
    here = torch.arange(9)
    assert sigmoid(u, v, torch.tensor(10.0), torch.tensor([-10.0]), Pairs(here, here)).item() == pytest.approx(
        published.item(), rel=1e-6
    )


@pytest.mark.parametrize("tile", [1, 5, 1024])
def test_infonce_equals_loops_and_autograd(tile: int) -> None:
    u, v, scale, pairs = problem(13, 7, 6, torch.float64)
    loss = infonce(u, v, scale, pairs, tile)
    expected = dense_infonce(u, v, scale, pairs)
    assert loss.item() == pytest.approx(
        infonce_by_loops(u.detach().numpy(), v.detach().numpy(), 9.0, listed(pairs)), abs=1e-12
    )
    inputs = (u, v, scale)
    for mine, theirs in zip(torch.autograd.grad(loss, inputs), torch.autograd.grad(expected, inputs), strict=True):
        assert torch.allclose(mine, theirs, atol=1e-12)


def test_infonce_takes_equal_texts_for_negatives() -> None:
    """Two regions of one text and a perfect fit still cost log 2 each way; that is what multi_positive cures."""
    u = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    v = torch.tensor([[1.0, 0.0]])
    loss = infonce(u, v, torch.tensor(50.0), Pairs(torch.tensor([0, 1]), torch.tensor([0, 0])))
    assert loss.item() == pytest.approx(math.log(2), abs=1e-5)


def test_gradients_equal_finite_differences() -> None:
    u, v, scale, pairs = problem(6, 4, 3, torch.float64)
    bias = torch.tensor([BIAS], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda *x: sigmoid(*x, pairs, 4), (u, v, scale, bias))
    assert torch.autograd.gradcheck(lambda *x: infonce(*x, pairs, 4), (u, v, scale))


Loss = Callable[[Tensor, Tensor, Tensor, Tensor, Pairs], Tensor]
LOSSES: dict[str, Loss] = {
    "sigmoid": lambda u, v, scale, bias, pairs: sigmoid(u, v, scale, bias, pairs, 4),
    "infonce": lambda u, v, scale, bias, pairs: infonce(u, v, scale, pairs, 4) + 0 * bias.sum(),
}


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("regions", [0, 3])
def test_without_pairs_the_loss_and_its_gradients_are_zero(name: str, regions: int) -> None:
    u, v = torch.randn(regions, 4, requires_grad=True), torch.randn(2, 4, requires_grad=True)
    scale, bias = torch.tensor(10.0, requires_grad=True), torch.tensor([-1.0], requires_grad=True)
    none = torch.zeros(0, dtype=torch.int64)
    loss = LOSSES[name](u, v, scale, bias, Pairs(none, none))
    assert loss.item() == 0.0
    grads = torch.autograd.grad(loss, (u, v, scale, bias), allow_unused=True)
    assert all(g is None or not g.any() for g in grads)


@pytest.mark.parametrize("name", LOSSES)
def test_a_large_scale_does_not_overflow(name: str) -> None:
    u, v, _, pairs = problem(13, 7, 6, torch.float32)
    scale, bias = torch.tensor(5000.0, requires_grad=True), torch.tensor([BIAS], requires_grad=True)
    loss = LOSSES[name](u, v, scale, bias, pairs)
    none = torch.zeros(0, dtype=torch.int64)
    wide = (u.double(), v.double(), scale.double())
    expected = (
        dense_sigmoid(*wide, bias.double(), pairs, Pairs(none, none))
        if name == "sigmoid"
        else dense_infonce(*wide, pairs)
    )
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert all(torch.isfinite(g).all() for g in torch.autograd.grad(loss, (u, v, scale, bias)))


@pytest.mark.parametrize("name", ["multi_positive", *LOSSES])
def test_half_precision_embeddings_lose_nothing_in_the_loss(name: str) -> None:
    """The loss of bf16 embeddings is that of the same numbers in fp64; gradients are rounded to bf16 once, at the end."""
    u, v, scale, pairs = problem(50, 20, 16, torch.float32)
    low = [x.detach().bfloat16().requires_grad_() for x in (u, v)]
    wide = [x.detach().double().requires_grad_() for x in low]
    bias, none = torch.tensor([BIAS]), torch.zeros(0, dtype=torch.int64)
    expected = {
        "multi_positive": lambda: dense_loss(*wide, scale.double(), pairs),
        "sigmoid": lambda: dense_sigmoid(*wide, scale.double(), bias.double(), pairs, Pairs(none, none)),
        "infonce": lambda: dense_infonce(*wide, scale.double(), pairs),
    }[name]()
    loss = multi_positive(*low, scale, pairs, 7) if name == "multi_positive" else LOSSES[name](*low, scale, bias, pairs)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    for mine, theirs in zip(torch.autograd.grad(loss, low), torch.autograd.grad(expected, wide), strict=True):
        assert mine.dtype == torch.bfloat16
        assert (mine.double() - theirs).abs().max() < 2**-8 * theirs.abs().max()
