"""Every (region, text) pair by itself (SigLIP, arXiv 2303.15343, with several positives a region). Letters as in softmax.py.

No logit is weighed against another, so ranks share nothing but the number of positives and the sum.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torch.autograd import Function

from villa_dist.distributed import world_size
from villa_dist.losses.pairs import Pairs, nobody, rows_of_tile, tiles
from villa_dist.losses.texts import widened

FIRST_BIAS = -10.0  # SigLIP's: nearly all pairs are negative, and at first none of them should count for much
LINEAR_FROM = 50.0  # softplus(x) is x beyond it, in any number format
NEGATIVE_INFINITY = float("-inf")


class _Sigmoid(Function):
    """Forward keeps nothing of a tile; backward recomputes it."""

    @staticmethod
    def forward(
        ctx: Any, u: Tensor, v: Tensor, scale: Tensor, bias: Tensor, pairs: Pairs, ignored: Pairs, tile: int
    ) -> Tensor:
        row_total = u.new_zeros(u.shape[0])
        for rows, (own, out) in tiles(u.shape[0], tile, pairs, ignored):
            logits = torch.addmm(bias.expand(1, 1), scale * u[rows], v.T)
            # -log sigmoid(x) = softplus(x) - x
            row_total[rows].index_add_(0, own.region, -logits[own.region, own.text])
            logits.index_put_((out.region, out.text), logits.new_tensor(NEGATIVE_INFINITY))
            row_total[rows] += F.softplus(logits, threshold=LINEAR_FROM).sum(1)
        packed = torch.stack([row_total.sum(), u.new_tensor(float(len(pairs.region)))])
        ctx.world = world_size()
        if ctx.world > 1:
            dist.all_reduce(packed)
        total, positives = packed.unbind()
        weight = (positives > 0) / positives.clamp(min=1)
        ctx.save_for_backward(u, v, scale, bias, weight, *pairs, *ignored)
        ctx.tile = tile
        return total * weight

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        u, v, scale, bias, weight, *rest = ctx.saved_tensors
        pairs, ignored = Pairs(*rest[:2]), Pairs(*rest[2:])
        du, dv, dbias = torch.empty_like(u), torch.zeros_like(v), torch.zeros_like(bias)
        for rows, (own, out) in tiles(u.shape[0], ctx.tile, pairs, ignored):
            grad = torch.addmm(bias.expand(1, 1), scale * u[rows], v.T)
            grad.index_put_((out.region, out.text), grad.new_tensor(NEGATIVE_INFINITY))
            grad.sigmoid_()
            grad.index_put_((own.region, own.text), grad.new_tensor(-1.0), accumulate=True)
            torch.mm(grad, v, out=du[rows])
            dv.addmm_(grad.T, u[rows])
            dbias += grad.sum()
        dscale = (du * u).sum()
        factor = grads[0] * weight * ctx.world  # see softmax.py
        return du.mul_(factor * scale), dv.mul_(factor * scale), factor * dscale, factor * dbias, None, None, None


def sigmoid(
    u: Float[Tensor, "R D"],
    v: Float[Tensor, "T D"],
    scale: Float[Tensor, ""],
    bias: Float[Tensor, ""],
    pairs: Pairs,
    tile: int | None = None,
    ignored: Pairs | None = None,
) -> Float[Tensor, ""]:
    """-(1 / P) times the sum over all regions and texts of log sigmoid(z (scale u.v + bias)); z is 1 for a pair, else -1.

    P: the pairs of the global batch, which is SigLIP's number of rows where every region has one text. Positives weigh
    as much as negatives do, each 1 / P, however many a region has; so a logit is the log odds of being a pair.
    Regions without a pair count as negatives; a global batch without any pair has loss zero. The other arguments, the value
    on ranks and the gradients are as in `multi_positive`.
    """
    left_out = nobody(pairs) if ignored is None else ignored
    with torch.autocast(u.device.type, enabled=False):
        rows = tile or rows_of_tile(v.shape[0], u.device)
        wide = (widened(u), widened(v), widened(scale).reshape(()), widened(bias).reshape(()))
        loss: Tensor = _Sigmoid.apply(*wide, pairs, left_out, rows)
    return loss
