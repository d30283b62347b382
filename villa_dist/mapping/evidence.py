"""What a batch's texts say of its regions, and what a model makes of it.

Letters: I images, R regions, A attributes. Rows of R x A belong to images `image_of`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

ALONE = -1  # the group of attributes that exclude no other


@dataclass(frozen=True)
class Evidence:
    """share: of the regions in images that mention an attribute, those that have it (`mapping.rates.positive_share`).

    weight: how much each image counts, where some come more often than others; None: all the same.
    """

    image_of: Int[Tensor, " R"]
    mentioned: Bool[Tensor, "I A"]
    share: Float[Tensor, " A"]
    weight: Float[Tensor, " I"] | None = None

    @property
    def images(self) -> int:
        return len(self.mentioned)

    @property
    def filled(self) -> Bool[Tensor, " I"]:
        """Images with regions: one without has nothing to learn from."""
        return torch.bincount(self.image_of, minlength=self.images) > 0


class Chances(NamedTuple):
    """log p and log(1 - p) that a region has an attribute, both R x A."""

    has: Float[Tensor, "R A"]
    lacks: Float[Tensor, "R A"]


def chances(logit_RA: Float[Tensor, "R A"], group_A: Int[Tensor, " A"] | None = None) -> Chances:
    """A sigmoid for attributes that stand alone; those of one group exclude one another, and share a softmax with "none of
    them", whose logit is 0.

    group_A: numbers from 0, or ALONE. None: all stand alone.
    """
    has, lacks = F.logsigmoid(logit_RA), F.logsigmoid(-logit_RA)
    if group_A is None:
        return Chances(has, lacks)
    for group in torch.unique(group_A[group_A != ALONE]).tolist():
        column = torch.nonzero(group_A == group)[:, 0]
        own = F.pad(logit_RA[:, column], (0, 1))  # "none" last
        share = torch.log_softmax(own, 1)
        has = has.index_copy(1, column, share[:, :-1])
        lacks = lacks.index_copy(1, column, log_of_others(own, share)[:, :-1])
    return Chances(has, lacks)


def log_of_others(logit: Float[Tensor, "R G"], log_p: Float[Tensor, "R G"]) -> Float[Tensor, "R G"]:
    """log(1 - p) of a softmax over G >= 2. Of the likeliest, from the logits of the others, since 1 - p is lost in rounding
    there; of the rest, which have at most one half, from p."""
    top = logit.argmax(1, keepdim=True)
    others = torch.logsumexp(logit.scatter(1, top, float("-inf")), 1, keepdim=True)
    of_top = others - torch.logsumexp(logit, 1, keepdim=True)
    rest = torch.log1p(-log_p.scatter(1, top, float("-inf")).exp())
    return rest.scatter(1, top, of_top)


def log_any(log_none: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """log(1 - exp(x)) for x <= 0, exact at both ends and finite at 0."""
    x = log_none.clamp(max=-1e-30)
    near = x > -0.693
    return torch.where(near, torch.log(-torch.expm1(x.clamp(min=-0.7))), torch.log1p(-torch.exp(x.clamp(max=-0.6))))
