"""The paper's loss of a mapping: images contrasted for each attribute. Letters: I images, R regions, A attributes."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

NEGATIVE_INFINITY = float("-inf")


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
