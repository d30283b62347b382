"""The tiled multi-positive loss against scalar loops and a dense autograd form, on one rank and on several."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from villa_dist import losses
from villa_dist.losses import Pairs, multi_positive, near_pairs, near_texts
from villa_dist.losses.pairs import Near


def log_sum_exp(values: list[float]) -> float:
    top = max(values)
    return top + math.log(sum(math.exp(v - top) for v in values))


def loop_loss(
    u: np.ndarray,
    v: np.ndarray,
    scale: float,
    pairs: list[tuple[int, int]],
    ignored: frozenset[tuple[int, int]] = frozenset(),
) -> float:
    """Mean over regions, and over texts, of -(mean log-probability of the positives), by scalar arithmetic."""
    logit = [[scale * sum(a * b for a, b in zip(x, y, strict=True)) for y in v.tolist()] for x in u.tolist()]
    rows, columns = [], []
    for r in range(len(u)):
        positive = [t for region, t in pairs if region == r]
        if positive:
            row = [logit[r][t] for t in range(len(v)) if (r, t) not in ignored]
            rows.append(-sum(logit[r][t] - log_sum_exp(row) for t in positive) / len(positive))
    for t in range(len(v)):
        positive = [r for r, text in pairs if text == t]
        if positive:
            column = [logit[r][t] for r in range(len(u)) if (r, t) not in ignored]
            columns.append(-sum(logit[r][t] - log_sum_exp(column) for r in positive) / len(positive))
    return 0.5 * (sum(rows) / max(len(rows), 1) + sum(columns) / max(len(columns), 1))


def dense_loss(u: Tensor, v: Tensor, scale: Tensor, pairs: Pairs, ignored: Pairs | None = None) -> Tensor:
    """The same in one matrix, differentiated by autograd."""
    said = torch.zeros(len(u), len(v), dtype=u.dtype)
    said[pairs.region, pairs.text] = 1
    logit = scale * u @ v.T
    if ignored is not None:
        out = torch.zeros(len(u), len(v), dtype=torch.bool)
        out[ignored.region, ignored.text] = True
        logit = logit.masked_fill(out, -1e9)
    by_row = -(said * logit.log_softmax(1)).sum(1)[said.any(1)] / said.sum(1)[said.any(1)]
    by_column = -(said * logit.log_softmax(0)).sum(0)[said.any(0)] / said.sum(0)[said.any(0)]
    return 0.5 * (by_row.mean() + by_column.mean())


def problem(regions: int, texts: int, dim: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Pairs]:
    """Regions 1 and 4 have no positive, text 2 has none; some regions have several."""
    said = torch.rand(regions, texts) < 0.3
    said[[1, 4]] = False
    said[:, 2] = False
    said[0, :2] = True
    region, text = said.nonzero(as_tuple=True)
    u = F.normalize(torch.randn(regions, dim, dtype=dtype), dim=-1).requires_grad_()
    v = F.normalize(torch.randn(texts, dim, dtype=dtype), dim=-1).requires_grad_()
    return u, v, torch.tensor(9.0, dtype=dtype, requires_grad=True), Pairs(region, text)


@pytest.mark.parametrize("tile", [1, 3, 5, 13, 1024])
def test_value_and_gradients_equal_loops_and_autograd(tile: int) -> None:
    u, v, scale, pairs = problem(13, 7, 6, torch.float64)
    loss = multi_positive(u, v, scale, pairs, tile)
    found = torch.autograd.grad(loss, (u, v, scale))
    expected = torch.autograd.grad(dense_loss(u, v, scale, pairs), (u, v, scale))
    by_loops = loop_loss(
        u.detach().numpy(), v.detach().numpy(), 9.0, list(zip(*(p.tolist() for p in pairs), strict=True))
    )
    assert loss.item() == pytest.approx(by_loops, abs=1e-12)
    for mine, theirs in zip(found, expected, strict=True):
        assert torch.allclose(mine, theirs, atol=1e-12)


@pytest.mark.parametrize("tile", [1, 5, 1024])
def test_ignored_pairs_are_neither_positive_nor_negative(tile: int) -> None:
    u, v, scale, pairs = problem(13, 7, 6, torch.float64)
    near = (torch.rand(7, 7) < 0.3).fill_diagonal_(False)
    ignored = near_pairs(pairs, Near(*(near | near.T).nonzero().unbind(1)), 7)
    assert len(ignored.region) > 5
    loss = multi_positive(u, v, scale, pairs, tile, ignored)
    found = torch.autograd.grad(loss, (u, v, scale))
    expected = torch.autograd.grad(dense_loss(u, v, scale, pairs, ignored), (u, v, scale))
    both = [list(zip(*(p.tolist() for p in some), strict=True)) for some in (pairs, ignored)]
    by_loops = loop_loss(u.detach().numpy(), v.detach().numpy(), 9.0, both[0], frozenset(both[1]))
    assert loss.item() == pytest.approx(by_loops, abs=1e-12)
    for mine, theirs in zip(found, expected, strict=True):
        assert torch.allclose(mine, theirs, atol=1e-12)


def test_near_pairs_are_those_of_texts_like_a_regions_own() -> None:
    near = Near(torch.tensor([0, 1, 2, 3]), torch.tensor([1, 0, 3, 2]))
    found = near_pairs(Pairs(torch.tensor([0, 1, 1, 2]), torch.tensor([0, 0, 1, 3])), near, 5)
    assert set(zip(*(p.tolist() for p in found), strict=True)) == {(0, 1), (2, 2)}, (
        "region 1 has both of 0 and 1 itself"
    )


@pytest.mark.parametrize("chunk", [1, 4, 1024])
def test_near_texts_equal_the_whole_matrix(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(losses.pairs, "CHUNK_ROWS", chunk)
    like = F.normalize(torch.randn(30, 3), dim=-1)
    expected = (like @ like.T > 0.8).fill_diagonal_(False).nonzero()
    assert len(expected) > 20
    assert torch.equal(torch.stack(near_texts(like, 0.8), 1), expected)


def test_a_text_that_all_regions_ignore_is_no_error() -> None:
    u, v, scale, _ = problem(5, 3, 6, torch.float64)
    pairs = Pairs(torch.arange(5), torch.tensor([0, 0, 1, 1, 0]))
    ignored = Pairs(torch.arange(5), torch.full((5,), 2))
    loss = multi_positive(u, v, scale, pairs, 2, ignored)
    grads = torch.autograd.grad(loss, (u, v, scale))
    assert all(torch.isfinite(g).all() for g in grads)
    expected = dense_loss(u, v[:2], scale, pairs)
    assert loss.item() == pytest.approx(expected.item(), abs=1e-12)


def test_gradients_equal_finite_differences() -> None:
    u, v, scale, pairs = problem(6, 4, 3, torch.float64)
    assert torch.autograd.gradcheck(lambda a, b, s: multi_positive(a, b, s, pairs, 4), (u, v, scale))


def test_single_precision_is_close_and_tiles_do_not_matter() -> None:
    u, v, scale, pairs = problem(50, 20, 16, torch.float32)
    wide = dense_loss(u.double(), v.double(), scale.double(), pairs)
    for tile in (7, 64):
        assert multi_positive(u, v, scale, pairs, tile).item() == pytest.approx(wide.item(), abs=2e-6)


def test_a_large_scale_does_not_overflow() -> None:
    u, v, _, pairs = problem(13, 7, 6, torch.float32)
    scale = torch.tensor(5000.0, requires_grad=True)
    loss = multi_positive(u, v, scale, pairs, 4)
    assert loss.item() == pytest.approx(dense_loss(u.double(), v.double(), scale.double(), pairs).item(), rel=1e-5)
    assert all(torch.isfinite(g).all() for g in torch.autograd.grad(loss, (u, v, scale)))


@pytest.mark.parametrize("regions", [0, 3])
def test_without_pairs_the_loss_and_its_gradients_are_zero(regions: int) -> None:
    u = torch.randn(regions, 4, requires_grad=True)
    v, scale, none = (
        torch.randn(2, 4, requires_grad=True),
        torch.tensor(10.0, requires_grad=True),
        torch.zeros(0, dtype=torch.int64),
    )
    loss = multi_positive(u, v, scale, Pairs(none, none))
    assert loss.item() == 0.0
    assert all(not g.any() for g in torch.autograd.grad(loss, (u, v, scale)))


def test_equal_attributes_are_no_negatives_of_each_other() -> None:
    """Two regions of one text and a perfect fit: nothing is left to push apart."""
    u = F.normalize(torch.tensor([[1.0, 0.0], [1.0, 0.0], [-1.0, 0.0]]), dim=-1)
    v = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    loss = multi_positive(u, v, torch.tensor(100.0), Pairs(torch.tensor([0, 1, 2]), torch.tensor([0, 0, 1])))
    assert loss.item() == pytest.approx(
        0.25 * math.log(2), abs=1e-5
    )  # only the column's choice between its two regions
