"""Softmax over several positives, both ways. Letters: R regions of this rank, T texts of the global batch, D embedding,
P pairs.

A region may have several positive texts and a text several positive regions, so equal attributes are never each other's
negatives. A row's logsumexp is local, a column's is combined over ranks.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor
from torch.autograd import Function

from villa_dist.distributed import world_size
from villa_dist.losses.pairs import Pairs, nobody, rows_of_tile, tiles
from villa_dist.losses.texts import widened

NEGATIVE_INFINITY = float("-inf")


class _MultiPositive(Function):
    """Forward saves row and column logsumexp (R + T numbers); backward recomputes the tiles."""

    @staticmethod
    def forward(ctx: Any, u: Tensor, v: Tensor, scale: Tensor, pairs: Pairs, ignored: Pairs, tile: int) -> Tensor:
        regions, texts, lowest = u.shape[0], v.shape[0], torch.finfo(u.dtype).min
        row_lse = u.new_empty(regions)
        row_sum, col_sum = u.new_zeros(regions), u.new_zeros(texts)
        peak, mass = u.new_full((texts,), NEGATIVE_INFINITY), u.new_zeros(texts)
        for rows, (own, out) in tiles(regions, tile, pairs, ignored):
            logits = (scale * u[rows]) @ v.T
            positive = logits[own.region, own.text]
            row_sum[rows].index_add_(0, own.region, positive)
            col_sum.index_add_(0, own.text, positive)
            logits.index_put_((out.region, out.text), logits.new_tensor(NEGATIVE_INFINITY))
            row_lse[rows] = torch.logsumexp(logits, 1)
            higher = torch.maximum(peak, logits.amax(0))
            fixed = higher.clamp(min=lowest)  # a text that all regions ignore stays at -inf
            mass = mass * torch.exp(peak - fixed) + logits.sub_(fixed).exp_().sum(0)
            peak = higher
        row_count = torch.bincount(pairs.region, minlength=regions).to(u.dtype)
        col_count = torch.bincount(pairs.text, minlength=texts).to(u.dtype)
        rows_used = (row_count > 0).to(u.dtype)
        totals = rows_used.sum()[None]
        world = world_size()
        if world > 1:
            highest = peak.clone()
            dist.all_reduce(highest, op=dist.ReduceOp.MAX)
            mass = mass * torch.exp(peak - highest.clamp(min=lowest))
            peak = highest
            packed = torch.cat([mass, col_sum, col_count, totals])
            dist.all_reduce(packed)
            mass, col_sum, col_count, totals = packed.split([texts, texts, texts, 1])
        col_lse = peak + torch.log(mass)
        cols_used = (col_count > 0).to(u.dtype)
        row_weight = 0.5 * rows_used / totals.clamp(min=1)
        col_weight = 0.5 * cols_used / cols_used.sum().clamp(min=1)
        # a row or column that ignores everything has no logsumexp, and no weight
        by_row = (
            (row_weight * (row_lse - row_sum / row_count.clamp(min=1))).nan_to_num(posinf=0.0, neginf=0.0).sum()[None]
        )
        if world > 1:
            dist.all_reduce(by_row)
        by_col = (col_weight * (col_lse - col_sum / col_count.clamp(min=1))).nan_to_num(posinf=0.0, neginf=0.0).sum()
        saved = (u, v, scale, row_lse, col_lse, *pairs, *ignored, row_count, col_count, row_weight, col_weight)
        ctx.save_for_backward(*saved)
        ctx.tile, ctx.world = tile, world
        return by_row[0] + by_col

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        u, v, scale, row_lse, col_lse, region, text, *rest = ctx.saved_tensors
        pairs, ignored, (row_count, col_count, row_weight, col_weight) = Pairs(region, text), Pairs(*rest[:2]), rest[2:]
        du, dv = torch.empty_like(u), torch.zeros_like(v)
        row_pull, col_pull = row_weight / row_count.clamp(min=1), col_weight / col_count.clamp(min=1)
        # exp(logit - shift) is the probability times its weight in one pass; no weight is a shift by infinity
        infinity = row_weight.new_tensor(float("inf"))
        row_shift = torch.where(row_weight > 0, row_lse - torch.log(row_weight), infinity)
        col_shift = torch.where(col_weight > 0, col_lse - torch.log(col_weight), infinity)
        for rows, (own, out) in tiles(u.shape[0], ctx.tile, pairs, ignored):
            logits = (scale * u[rows]) @ v.T
            logits.index_put_((out.region, out.text), logits.new_tensor(NEGATIVE_INFINITY))
            grad = torch.exp(logits - row_shift[rows, None])
            grad += logits.sub_(col_shift).exp_()
            pull = row_pull[rows][own.region] + col_pull[own.text]
            grad.index_put_((own.region, own.text), -pull, accumulate=True)
            torch.mm(grad, v, out=du[rows])
            dv.addmm_(grad.T, u[rows])
        dscale = (du * u).sum()
        factor = grads[0] * ctx.world  # data-parallel engines average gradients over ranks; this loss is a global sum
        return du.mul_(factor * scale), dv.mul_(factor * scale), factor * dscale, None, None, None


def multi_positive(
    u: Float[Tensor, "R D"],
    v: Float[Tensor, "T D"],
    scale: Float[Tensor, ""],
    pairs: Pairs,
    tile: int | None = None,
    ignored: Pairs | None = None,
) -> Float[Tensor, ""]:
    """Mean over regions and over texts of -(mean log-probability of the positives), both directions, halved.

    u: unit region embeddings of this rank. v: unit embeddings of all texts of the global batch, the same on every
    rank (`gather_texts`). The value is the global loss on every rank; gradients are scaled by the world size, so that
    an engine that averages over ranks ends with the gradient of one process that holds the whole batch.
    Rows without a positive and texts without one are negatives only. ignored: pairs that are neither positive nor negative.
    tile: rows whose logits are held at once; None: by the texts and the device.
    """
    left_out = nobody(pairs) if ignored is None else ignored
    with torch.autocast(u.device.type, enabled=False):
        rows = tile or rows_of_tile(v.shape[0], u.device)
        loss: Tensor = _MultiPositive.apply(widened(u), widened(v), widened(scale).reshape(()), pairs, left_out, rows)
    return loss
