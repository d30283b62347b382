"""Losses that fit a mapping from image-level mentions, beside the paper's contrast (`villa_dist.losses`).

Letters: I images, R regions, A attributes. Rows of `logit_RA` belong to images `image_of`. On several ranks each holds
equally many images and the same attributes as columns; every loss is that of the global batch.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from villa_dist.config import MappingConfig
from villa_dist.distributed import gather_rows, sum_over_ranks
from villa_dist.losses import NEGATIVE_INFINITY, image_attribute_logits, mapping_contrast

NOISY_OR_WEIGHT = 0.3  # beside the negative-unlabelled risk in `both`


def noisy_or(
    logit_RA: Float[Tensor, "R A"], image_of: Int[Tensor, " R"], mentioned_IA: Bool[Tensor, "I A"]
) -> Float[Tensor, ""]:
    """Binary cross-entropy of "some region has a" = 1 - prod_r (1 - sigmoid(logit_ra)) against the mention."""
    none_IA = logit_RA.new_zeros(mentioned_IA.shape).index_add(0, image_of, F.logsigmoid(-logit_RA)).clamp(max=-1e-6)
    said = mentioned_IA.to(logit_RA.dtype)
    loss_IA = -(said * torch.log(-torch.expm1(none_IA)) + (1 - said) * none_IA)
    filled_I = torch.bincount(image_of, minlength=len(said)) > 0  # an image without regions has nothing to learn from
    return (loss_IA * filled_I[:, None]).mean()


def negative_unlabelled(
    logit_RA: Float[Tensor, "R A"],
    image_of: Int[Tensor, " R"],
    mentioned_IA: Bool[Tensor, "I A"],
    share_A: Float[Tensor, " A"],
) -> Float[Tensor, ""]:
    """Non-negative risk: regions of images that lack a are certain negatives, the others are unlabelled, a share
    `share_A` of them positive (after non-negative PU learning, Kiryo et al. 2017, with the classes exchanged)."""
    unlabelled_RA = mentioned_IA[image_of]
    negative_RA = ~unlabelled_RA
    as_positive, as_negative = F.softplus(-logit_RA), F.softplus(logit_RA)
    sums_5A = sum_over_ranks(
        torch.stack(
            [
                (as_positive * unlabelled_RA).sum(0),
                (as_positive * negative_RA).sum(0),
                (as_negative * negative_RA).sum(0),
                unlabelled_RA.sum(0).to(logit_RA.dtype),
                negative_RA.sum(0).to(logit_RA.dtype),
            ]
        )
    )
    unlabelled_as_positive, negative_as_positive, negative_as_negative, count_u, count_n = sums_5A
    usable_A = ((count_u > 0) & (count_n > 0)).to(logit_RA.dtype)
    count_u, count_n = count_u.clamp(min=1), count_n.clamp(min=1)
    positive_A = unlabelled_as_positive / count_u - (1 - share_A) * negative_as_positive / count_n
    negative_A = (1 - share_A) * negative_as_negative / count_n
    return (usable_A * (positive_A.clamp(min=0) + negative_A)).sum() / usable_A.sum().clamp(min=1)


def contrast_over_attributes(logit_IA: Float[Tensor, "I A"], mentioned_IA: Bool[Tensor, "I A"]) -> Float[Tensor, ""]:
    """The paper's loss with the roles exchanged: a mentioned attribute against those the text does not mention."""
    negative_I = torch.logsumexp(logit_IA.masked_fill(mentioned_IA, NEGATIVE_INFINITY), 1)
    loss_IA = torch.logaddexp(logit_IA, negative_I[:, None].expand_as(logit_IA)) - logit_IA
    return loss_IA[mentioned_IA].mean() if bool(mentioned_IA.any()) else logit_IA.sum() * 0.0


def mapping_loss(
    config: MappingConfig,
    cosine_RA: Float[Tensor, "R A"],
    logit_RA: Float[Tensor, "R A"],
    image_of: Int[Tensor, " R"],
    mentioned_IA: Bool[Tensor, "I A"],
    share_A: Float[Tensor, " A"],
) -> Float[Tensor, ""]:
    """The loss a config names; zero for a global batch whose texts mention no attribute."""
    if mentioned_IA.shape[1] == 0:
        return (cosine_RA.sum() + logit_RA.sum()) * 0.0
    if config.loss == "contrastive":
        score_RA = cosine_RA / config.temperature
        images = mentioned_IA.shape[0]
        filled_I = (
            gather_rows(torch.bincount(image_of, minlength=images)) > 0
        )  # an image without regions scores nothing
        pooled_IA = gather_rows(image_attribute_logits(score_RA, image_of, images, config.pooling))[filled_I]
        mentioned_IA = gather_rows(mentioned_IA.to(torch.uint8)).bool()[filled_I]
        loss = mapping_contrast(pooled_IA, mentioned_IA, reference_denominator=config.reference_denominator)
        return loss + contrast_over_attributes(pooled_IA, mentioned_IA) if config.contrast == "both" else loss
    if config.loss == "noisy_or":
        return noisy_or(logit_RA, image_of, mentioned_IA)
    risk = negative_unlabelled(logit_RA, image_of, mentioned_IA, share_A)
    return (
        risk
        if config.loss == "negative_unlabelled"
        else risk + NOISY_OR_WEIGHT * noisy_or(logit_RA, image_of, mentioned_IA)
    )
