"""The tiled multi-positive loss against scalar loops and a dense autograd form, on one rank and on several."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from rank_pool import RankPool, averaged
from torch import Tensor

from villa_dist.losses import Pairs, gather_texts, multi_positive, near_pairs
from villa_dist.train.objective import distinct_over_ranks


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
    near = torch.rand(7, 7) < 0.3
    ignored = near_pairs(pairs, near | near.T)
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
    near = torch.zeros(4, 4, dtype=torch.bool)
    near[0, 1] = near[1, 0] = near[2, 3] = near[3, 2] = True
    near.fill_diagonal_(True)
    found = near_pairs(Pairs(torch.tensor([0, 1, 1, 2]), torch.tensor([0, 0, 1, 3])), near)
    assert set(zip(*(p.tolist() for p in found), strict=True)) == {(0, 1), (2, 2)}, (
        "region 1 has both of 0 and 1 itself"
    )


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


DIM, FEATURES, VOCABULARY, SCALE = 8, 5, 11, 7.0


def batch() -> tuple[Tensor, list[tuple[int, int]]]:
    """21 regions and their attributes; regions 3 and 20 have none, attributes 4 and 9 do not occur."""
    random = np.random.default_rng(5)
    said = random.random((21, VOCABULARY)) < 0.2
    said[[3, 20]] = False
    said[:, [4, 9]] = False
    features = torch.from_numpy(random.standard_normal((21, FEATURES)).astype(np.float32))
    return features, [(int(r), int(a)) for r, a in zip(*said.nonzero(), strict=True)]


def parameters() -> tuple[Tensor, Tensor, Tensor]:
    random = np.random.default_rng(6)
    region = torch.from_numpy(random.standard_normal((DIM, FEATURES)).astype(np.float32))
    text = torch.from_numpy(random.standard_normal((VOCABULARY, DIM)).astype(np.float32))
    return region.requires_grad_(), text.requires_grad_(), torch.tensor([SCALE], requires_grad=True)


def one_rank(rank: int, world: int, bounds: list[int], tile: int) -> tuple[float, list[np.ndarray]]:
    """Loss and averaged gradients on this rank, which holds regions bounds[rank] to bounds[rank + 1]."""
    features, said = batch()
    low, high = bounds[rank], bounds[rank + 1]
    region = torch.tensor([r - low for r, _ in said if low <= r < high], dtype=torch.int64)
    attribute = torch.tensor([a for r, a in said if low <= r < high], dtype=torch.int64)
    weight, embedding, scale = parameters()
    u = F.normalize(features[low:high] @ weight.T, dim=-1)
    distinct = distinct_over_ranks(attribute)
    each = -(-len(distinct) // world)
    padded = torch.zeros(each * world, dtype=torch.int64)
    padded[: len(distinct)] = distinct
    v = gather_texts(F.normalize(embedding[padded[rank * each : (rank + 1) * each]], dim=-1))[: len(distinct)]
    loss = multi_positive(u, v, scale[0], Pairs(region, torch.searchsorted(distinct, attribute)), tile)
    loss.backward()
    grads = [
        averaged(p.grad if p.grad is not None else torch.zeros_like(p)).numpy() for p in (weight, embedding, scale)
    ]
    return loss.item(), grads


@pytest.mark.parametrize("tile", [4, 1024])
@pytest.mark.parametrize(
    "bounds",
    [[0, 21], [0, 8, 21], [0, 21, 21], [0, 0, 21], [0, 3, 4, 15, 21], [0, 0, 10, 10, 21]],
    ids=["1 rank", "2 uneven", "2, second empty", "2, first empty", "4 uneven", "4, two empty"],
)
def test_ranks_together_equal_one_process(ranks: RankPool, bounds: list[int], tile: int) -> None:
    features, said = batch()
    weight, embedding, scale = (p.detach().double().requires_grad_() for p in parameters())
    attributes = sorted({a for _, a in said})
    pairs = Pairs(torch.tensor([r for r, _ in said]), torch.tensor([attributes.index(a) for _, a in said]))
    whole = dense_loss(
        F.normalize(features.double() @ weight.T, dim=-1), F.normalize(embedding[attributes], dim=-1), scale[0], pairs
    )
    expected = torch.autograd.grad(whole, (weight, embedding, scale))
    for loss, grads in ranks.run(one_rank, len(bounds) - 1, bounds, tile):
        assert loss == pytest.approx(whole.item(), abs=1e-5)
        for mine, theirs in zip(grads, expected, strict=True):
            assert np.abs(mine - theirs.numpy()).max() < 1e-5


def distinct_of(rank: int, world: int, parts: list[list[int]]) -> list[int]:
    return distinct_over_ranks(torch.tensor(parts[rank], dtype=torch.int64)).tolist()


@pytest.mark.parametrize("parts", [[[3, 1, 1]], [[5, 5], [0, 2]], [[], [7]], [[], []], [[4], [], [9, 1, 4], [0]]])
def test_ranks_agree_on_the_distinct_attributes(ranks: RankPool, parts: list[list[int]]) -> None:
    expected = sorted({i for part in parts for i in part})
    assert ranks.run(distinct_of, len(parts), parts) == [expected] * len(parts)
