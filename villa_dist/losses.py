"""Contrastive losses as pure functions.

Letters: R regions of this rank, T distinct texts of the global batch, D embedding, P (region, text) pairs.

The loss over unique texts: every distinct text is encoded once for the whole global batch; a region may have several
positive texts and a text several positive regions, so equal attributes are never each other's negatives. Regions
stay on their rank: a row's logsumexp is local, a column's is combined over ranks. Logits exist one tile of rows at a
time, forward and backward, so memory is linear in the tile.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.autograd import Function

from villa_dist.distributed import all_gather_into, reduce_scatter_into, world_size

TILE = 1024
NEGATIVE_INFINITY = float("-inf")


class Pairs(NamedTuple):
    """Pairs of this rank, positive or ignored: `region[p]` and `text[p]`; each pair at most once."""

    region: Int[Tensor, " P"]
    text: Int[Tensor, " P"]


def nobody(like: Pairs) -> Pairs:
    return Pairs(like.region[:0], like.text[:0])


def near_pairs(pairs: Pairs, near_TT: Bool[Tensor, "T T"]) -> Pairs:
    """Pairs that are no fair negatives: each region with the texts that nearly say what one of its own says, without those
    of its own. near_TT: which texts nearly say the same."""
    texts = len(near_TT)
    near_TT = near_TT & ~torch.eye(texts, dtype=torch.bool, device=near_TT.device)
    pair, text = torch.nonzero(near_TT[pairs.text], as_tuple=True)
    found = torch.unique(pairs.region[pair] * texts + text)
    found = found[~torch.isin(found, pairs.region * texts + pairs.text)]
    return Pairs(found // texts, found % texts)


class _GatherTexts(Function):
    """Equal slices (k, D) of each rank -> (world * k, D) on every rank. The gradient is summed over ranks."""

    @staticmethod
    def forward(ctx: Any, part: Tensor) -> Tensor:
        ctx.rows = part.shape[0]
        whole = part.new_empty(world_size() * part.shape[0], part.shape[1])
        all_gather_into(whole, part.contiguous())
        return whole

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        grad = grads[0].contiguous()
        part = grad.new_empty(ctx.rows, grad.shape[1])
        reduce_scatter_into(part, grad)
        return part


def gather_texts(part: Float[Tensor, "k D"]) -> Float[Tensor, "T D"]:
    """Texts encoded in equal slices by the ranks, whole on every rank, with gradient to each slice."""
    if world_size() == 1:
        return part
    whole: Tensor = _GatherTexts.apply(part)
    return whole


class _MultiPositive(Function):
    """Forward saves row and column logsumexp (R + T numbers); backward recomputes the tiles."""

    @staticmethod
    def forward(ctx: Any, u: Tensor, v: Tensor, scale: Tensor, pairs: Pairs, ignored: Pairs, tile: int) -> Tensor:
        regions, texts = u.shape[0], v.shape[0]
        row_lse = u.new_empty(regions)
        peak, mass = u.new_full((texts,), NEGATIVE_INFINITY), u.new_zeros(texts)
        for at in range(0, regions, tile):
            logits = _without(scale * (u[at : at + tile] @ v.T), ignored, at)
            row_lse[at : at + tile] = torch.logsumexp(logits, 1)
            higher = torch.maximum(peak, logits.max(0).values)
            fixed = higher.clamp(min=torch.finfo(higher.dtype).min)  # a text that all regions ignore stays at -inf
            mass = mass * torch.exp(peak - fixed) + torch.exp(logits - fixed).sum(0)
            peak = higher
        positive_logit = scale * (u[pairs.region] * v[pairs.text]).sum(-1)
        row_sum = u.new_zeros(regions).index_add_(0, pairs.region, positive_logit)
        col_sum = u.new_zeros(texts).index_add_(0, pairs.text, positive_logit)
        row_count = torch.bincount(pairs.region, minlength=regions).to(u.dtype)
        col_count = torch.bincount(pairs.text, minlength=texts).to(u.dtype)
        rows_used = (row_count > 0).to(u.dtype)
        totals = rows_used.sum()[None]
        world = world_size()
        if world > 1:
            highest = peak.clone()
            dist.all_reduce(highest, op=dist.ReduceOp.MAX)
            mass = mass * torch.exp(peak - highest.clamp(min=torch.finfo(highest.dtype).min))
            peak = highest
            packed = torch.cat([mass, col_sum, col_count, totals])
            dist.all_reduce(packed)
            mass, col_sum, col_count, totals = packed.split([texts, texts, texts, 1])
        col_lse = peak + torch.log(mass)
        cols_used = (col_count > 0).to(u.dtype)
        row_weight = 0.5 * rows_used / totals.clamp(min=1)
        col_weight = 0.5 * cols_used / cols_used.sum().clamp(min=1)
        by_row = (row_weight * (row_lse - row_sum / row_count.clamp(min=1))).sum()[None]
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
        ignored, (row_count, col_count, row_weight, col_weight) = Pairs(*rest[:2]), rest[2:]
        du, dv, dscale = torch.zeros_like(u), torch.zeros_like(v), torch.zeros_like(scale)
        pull = row_weight[region] / row_count[region] + col_weight[text] / col_count[text]
        for at in range(0, u.shape[0], ctx.tile):
            u_tile = u[at : at + ctx.tile]
            cosine = u_tile @ v.T
            logits = _without(scale * cosine, ignored, at)
            grad = torch.exp(logits - row_lse[at : at + ctx.tile, None]) * row_weight[at : at + ctx.tile, None]
            grad += torch.exp(logits - col_lse[None]) * col_weight[None]
            here = (region >= at) & (region < at + ctx.tile)
            grad.index_put_((region[here] - at, text[here]), -pull[here], accumulate=True)
            du[at : at + ctx.tile] = scale * (grad @ v)
            dv += scale * (grad.T @ u_tile)
            dscale += (grad * cosine).sum()
        factor = grads[0] * ctx.world  # data-parallel engines average gradients over ranks; this loss is a global sum
        return factor * du, factor * dv, factor * dscale, None, None, None


def _without(logits: Tensor, ignored: Pairs, at: int) -> Tensor:
    """The logits of rows `at` and on, those that are ignored at -inf."""
    if len(ignored.region):
        here = (ignored.region >= at) & (ignored.region < at + len(logits))
        logits[ignored.region[here] - at, ignored.text[here]] = NEGATIVE_INFINITY
    return logits


def multi_positive(
    u: Float[Tensor, "R D"],
    v: Float[Tensor, "T D"],
    scale: Float[Tensor, ""],
    pairs: Pairs,
    tile: int = TILE,
    ignored: Pairs | None = None,
) -> Float[Tensor, ""]:
    """Mean over regions and over texts of -(mean log-probability of the positives), both directions, halved.

    u: unit region embeddings of this rank. v: unit embeddings of all texts of the global batch, the same on every
    rank (`gather_texts`). The value is the global loss on every rank; gradients are scaled by the world size, so that
    an engine that averages over ranks ends with the gradient of one process that holds the whole batch.
    Rows without a positive and texts without one are negatives only. ignored: pairs that are neither positive nor negative.
    """
    left_out = nobody(pairs) if ignored is None else ignored
    loss: Tensor = _MultiPositive.apply(u, v, scale.reshape(()), pairs, left_out, tile)
    return loss


def image_attribute_logits(
    score_RA: Float[Tensor, "R A"], image_of: Int[Tensor, " R"], images: int, pooling: str, *, null: bool = False
) -> Float[Tensor, "I A"]:
    """S_ia: pool the scores of an image's regions (ViLLA eq. 2: max; or logsumexp; or attention, their mean weighted by
    their softmax). null: one more region, which holds nothing and scores 0: where an attribute may look instead."""
    index = image_of[:, None].expand_as(score_RA)
    lowest = score_RA.new_full((images, score_RA.shape[1]), 0.0 if null else NEGATIVE_INFINITY)
    peak = lowest.scatter_reduce(0, index, score_RA, "amax", include_self=True)
    if pooling == "max":
        return peak
    fixed = peak.detach().clamp(min=torch.finfo(peak.dtype).min)  # an image without regions stays at -inf
    weight_RA = torch.exp(score_RA - fixed[image_of])
    mass = (torch.exp(-fixed) if null else torch.zeros_like(peak)).index_add(0, image_of, weight_RA)
    if pooling == "logsumexp":
        return fixed + torch.log(mass)
    total = torch.zeros_like(peak).index_add(0, image_of, weight_RA * score_RA)
    return torch.where(mass > 0, total / mass.clamp(min=1e-30), peak)


def mapping_contrast(
    logit_IA: Float[Tensor, "I A"], mentioned_IA: Tensor, *, reference_denominator: bool = False
) -> Float[Tensor, ""]:
    """ViLLA's mapping loss: mean over (i, a mentioned) of -log(exp S_ia / (exp S_ia + sum_{j: a not in A_j} exp S_ja)).

    `reference_denominator` gives the published code's form, which adds exp(0) = 1 for every image that mentions a
    (also for i itself).
    """
    said = mentioned_IA.bool()
    negative_A = torch.logsumexp(logit_IA.masked_fill(said, NEGATIVE_INFINITY), 0)
    if reference_denominator:
        ones_A = torch.log(said.sum(0).clamp(min=1).to(logit_IA.dtype)).masked_fill(~said.any(0), NEGATIVE_INFINITY)
        negative_A = torch.logaddexp(negative_A, ones_A)
    loss_IA = torch.logaddexp(logit_IA, negative_A[None].expand_as(logit_IA)) - logit_IA
    return loss_IA[said].mean() if bool(said.any()) else logit_IA.sum() * 0.0
