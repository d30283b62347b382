"""Which attributes nearly say the same ("sofa", "couch"), so that neither is a fair negative for a region of the other.

It is measured once, when training starts, by the text tower as it was published, and never by the tower in training: what
that has not told apart yet would count as near, would no longer be pushed apart, and so would stay near.

Cosines are of embeddings less the vocabulary's mean. Text towers put all prompts into a narrow cone, where unrelated
attributes have raw cosines of .7 to .9.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from villa_dist.losses.pairs import near_texts
from villa_dist.observe import LOG

MOST_NEAR = 0.1  # share of an attribute's others, beyond which the measure tells nothing apart
LOOKED_AT = 2048  # attributes that the share is taken from


def reference(attribute_VD: Float[Tensor, "V D"], threshold: float) -> Float[Tensor, "V D"] | None:
    """Unit vectors (fp16) whose cosines say how near attributes are; None, with a warning, where more than a tenth of all
    would be near: negatives are never switched off as a whole."""
    like_VD = F.normalize(attribute_VD - attribute_VD.mean(0), dim=-1)
    share = near_share(like_VD, threshold)
    if share > MOST_NEAR:
        LOG.warning(
            "train.near_duplicates=%s: to the text tower %.0f %% of all attributes are nearer than that to an attribute: it "
            "does not tell them apart, and none is taken for a near duplicate; raise it, or set it to null",
            threshold,
            100 * share,
        )
        return None
    return like_VD.to(torch.float16)


def near_share(like_VD: Float[Tensor, "V D"], threshold: float) -> float:
    """The mean share of the other attributes that are near, over an evenly drawn part of the vocabulary."""
    drawn = like_VD[:: max(1, len(like_VD) // LOOKED_AT)]
    near = near_texts(drawn, threshold)
    return len(near.text) / max(len(drawn) * (len(drawn) - 1), 1)
