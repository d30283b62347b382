"""Losses that fit a mapping from image-level mentions, beside the paper's contrast (contrast.py).

Letters: I images, R regions, A attributes. On several ranks each holds equally many images and the same attributes as
columns; every loss is that of the global batch.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from villa_dist.config import MappingConfig
from villa_dist.distributed import gather_rows, sum_over_ranks
from villa_dist.mapping.contrast import NEGATIVE_INFINITY, image_attribute_logits, mapping_contrast
from villa_dist.mapping.evidence import Chances, Evidence, log_any

NOISY_OR_WEIGHT = 0.3  # beside the negative-unlabelled risk in `both`


def noisy_or(found: Chances, evidence: Evidence) -> Float[Tensor, ""]:
    """Binary cross-entropy of "some region has a" = 1 - prod_r (1 - p_ra) against the mention: the mean over images of each
    attribute, then over attributes."""
    said_IA = evidence.mentioned.to(found.lacks.dtype)
    none_IA = torch.zeros_like(said_IA).index_add(0, evidence.image_of, found.lacks)
    loss_IA = -(said_IA * log_any(none_IA) + (1 - said_IA) * none_IA)
    weight_I = evidence.filled.to(loss_IA.dtype)
    if evidence.weight is not None:
        weight_I = weight_I * evidence.weight
    total_A, weight_A = sum_over_ranks(torch.stack([weight_I @ loss_IA, weight_I.sum().expand(loss_IA.shape[1])]))
    return (total_A / weight_A.clamp(min=1e-6)).sum() / (weight_A > 0).sum().clamp(min=1)


def negative_unlabelled(found: Chances, evidence: Evidence) -> Float[Tensor, ""]:
    """Non-negative risk: regions of images that lack a are certain negatives, the others are unlabelled, a share
    `evidence.share` of them positive (after non-negative PU learning, Kiryo et al. 2017, with the classes exchanged)."""
    as_positive, as_negative = -found.has, -found.lacks
    unlabelled_RA = evidence.mentioned[evidence.image_of].to(as_positive.dtype)
    negative_RA = 1 - unlabelled_RA
    if evidence.weight is not None:
        weight_R1 = evidence.weight[evidence.image_of, None]
        unlabelled_RA, negative_RA = unlabelled_RA * weight_R1, negative_RA * weight_R1
    sums_5A = sum_over_ranks(
        torch.stack(
            [
                (as_positive * unlabelled_RA).sum(0),
                (as_positive * negative_RA).sum(0),
                (as_negative * negative_RA).sum(0),
                unlabelled_RA.sum(0),
                negative_RA.sum(0),
            ]
        )
    )
    unlabelled_as_positive, negative_as_positive, negative_as_negative, count_u, count_n = sums_5A
    usable_A = ((count_u > 0) & (count_n > 0)).to(as_positive.dtype)
    count_u, count_n, share_A = count_u.clamp(min=1e-6), count_n.clamp(min=1e-6), evidence.share
    positive_A = unlabelled_as_positive / count_u - (1 - share_A) * negative_as_positive / count_n
    negative_A = (1 - share_A) * negative_as_negative / count_n
    return (usable_A * (positive_A.clamp(min=0) + negative_A)).sum() / usable_A.sum().clamp(min=1)


def contrast_over_attributes(logit_IA: Float[Tensor, "I A"], mentioned_IA: Bool[Tensor, "I A"]) -> Float[Tensor, ""]:
    """The paper's loss with the roles exchanged: a mentioned attribute against those the text does not mention."""
    negative_I = torch.logsumexp(logit_IA.masked_fill(mentioned_IA, NEGATIVE_INFINITY), 1)
    loss_IA = torch.logaddexp(logit_IA, negative_I[:, None].expand_as(logit_IA)) - logit_IA
    return loss_IA[mentioned_IA].mean() if bool(mentioned_IA.any()) else logit_IA.sum() * 0.0


def mapping_loss(
    config: MappingConfig, cosine_RA: Float[Tensor, "R A"], found: Chances, evidence: Evidence
) -> Float[Tensor, ""]:
    """The loss a config names; zero for a global batch whose texts mention no attribute."""
    if evidence.mentioned.shape[1] == 0:
        return (cosine_RA.sum() + found.has.sum()) * 0.0
    if config.loss == "contrastive":
        return _contrast(config, cosine_RA / config.temperature, evidence)
    if config.loss == "noisy_or":
        return noisy_or(found, evidence)
    risk = negative_unlabelled(found, evidence)
    return risk if config.loss == "negative_unlabelled" else risk + NOISY_OR_WEIGHT * noisy_or(found, evidence)


def _contrast(config: MappingConfig, score_RA: Float[Tensor, "R A"], evidence: Evidence) -> Float[Tensor, ""]:
    filled_I = gather_rows(evidence.filled.to(torch.uint8)).bool()
    own_IA = image_attribute_logits(score_RA, evidence.image_of, evidence.images, config.pooling, null=config.null)
    pooled_IA = gather_rows(own_IA)[filled_I]
    said_IA = gather_rows(evidence.mentioned.to(torch.uint8)).bool()[filled_I]
    loss = mapping_contrast(pooled_IA, said_IA, reference_denominator=config.reference_denominator)
    return loss + contrast_over_attributes(pooled_IA, said_IA) if config.contrast == "both" else loss
