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

    drawn: images that were drawn for what they lack, and so do not stand for the data set; None: no image was.
    """

    image_of: Int[Tensor, " R"]
    mentioned: Bool[Tensor, "I A"]
    share: Float[Tensor, " A"]
    drawn: Bool[Tensor, " I"] | None = None

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
        own = logit_RA[:, column]
        share = torch.log_softmax(F.pad(own, (0, 1)), 1)[:, :-1]
        has = has.index_copy(1, column, share)
        lacks = lacks.index_copy(1, column, log_of_rest(share))
    return Chances(has, lacks)


def log_of_rest(log_p: Float[Tensor, "R A"]) -> Float[Tensor, "R A"]:
    """log(1 - p), kept finite where p is 1 in the floats at hand."""
    return torch.log(-torch.expm1(log_p.clamp(max=-1e-6)))
