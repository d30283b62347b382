"""Mapping heads and the model around them.

Letters: R regions, A attributes, E width of the region features, D width of the attribute embeddings, H hidden.
Region features come from a frozen VLM (`encoder: frozen`) or from a tower trained with the head (`end_to_end`);
attribute embeddings h_a are frozen: the unit mean of the prompts' embeddings by the one-to-one VLM.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn

from villa_dist.config import ImageTowerConfig, MappingConfig
from villa_dist.encoders.image import IMAGE_TOWERS
from villa_dist.encoders.published import Published


class PerAttributeHeads(nn.Module):
    """The paper's model: one projection Linear-ReLU-Linear an attribute, all in three batched products.

    score_ra = cos(P_a(e_r), h_a). Parameters grow with the vocabulary: for tens of attributes.
    """

    def __init__(self, features: int, dim: int, hidden: int, attributes: int) -> None:
        super().__init__()
        self.first = nn.Parameter(torch.empty(attributes, features, hidden))
        self.first_bias = nn.Parameter(torch.zeros(attributes, 1, hidden))
        self.second = nn.Parameter(torch.empty(attributes, hidden, dim))
        self.second_bias = nn.Parameter(torch.zeros(attributes, 1, dim))
        for weight in (self.first, self.second):
            bound = 1.0 / math.sqrt(weight.shape[1])
            nn.init.uniform_(weight, -bound, bound)

    def forward(
        self, feature: Float[Tensor, "R E"], attribute: Float[Tensor, "V D"], ids: Int[Tensor, " A"]
    ) -> Float[Tensor, "R A"]:
        hidden_ARH = F.relu(torch.matmul(feature, self.first[ids]) + self.first_bias[ids])
        out_ARD = torch.baddbmm(self.second_bias[ids], hidden_ARH, self.second[ids])
        unit_ARD = F.normalize(out_ARD, dim=-1)
        return torch.einsum("ard,ad->ra", unit_ARD, attribute[ids])


class SharedHead(nn.Module):
    """One head for any vocabulary: score_ra = cos(u(e_r), v(h_a)), a single matrix product over all attributes.

    With P(e; h) = W2 (relu(W1 e) * gate(h)), <P(e; h), h> = <relu(W1 e), gate(h) * W2' h>: a product of a function of the
    region and a function of the attribute's text, so attributes never seen in training are scored too.
    """

    def __init__(self, features: int, dim: int, hidden: int) -> None:
        super().__init__()
        self.region = nn.Linear(features, hidden)
        self.gate = nn.Linear(dim, hidden)
        self.attribute = nn.Linear(dim, hidden, bias=False)

    def forward(
        self, feature: Float[Tensor, "R E"], attribute: Float[Tensor, "V D"], ids: Int[Tensor, " A"]
    ) -> Float[Tensor, "R A"]:
        return self.of_regions(feature) @ self.of_attributes(attribute[ids]).T

    def of_regions(self, feature: Float[Tensor, "R E"]) -> Float[Tensor, "R H"]:
        return F.normalize(F.relu(self.region(feature)), dim=-1)

    def of_attributes(self, chosen_AD: Float[Tensor, "A D"]) -> Float[Tensor, "A H"]:
        return F.normalize(torch.sigmoid(self.gate(chosen_AD)) * self.attribute(chosen_AD), dim=-1)


HEADS = {
    "per_attribute": lambda e, d, h, a: PerAttributeHeads(e, d, h, a),
    "shared": lambda e, d, h, a: SharedHead(e, d, h),
}


class MappingModel(nn.Module):
    """Cosine scores of regions against attributes, and logits calibrated by each attribute's rate.

    attribute: V x D frozen embeddings. rate: V, the expected share of regions that have each attribute (see
    `mapping.rates`). With `encoder: end_to_end` the model owns an image tower, built from `published` where it is of a
    checkpoint.
    """

    attribute: Tensor
    prior: Tensor

    def __init__(
        self,
        config: MappingConfig,
        tower: ImageTowerConfig,
        attribute: Float[Tensor, "V D"],
        rate: Float[Tensor, " V"],
        features: int,
        published: Published | None = None,
        attention: str = "sdpa",
    ) -> None:
        super().__init__()
        self.config = config
        own = config.encoder == "end_to_end"
        self.tower: Any = IMAGE_TOWERS[tower.kind](tower, published, attention) if own else None
        if self.tower is not None:
            features = self.tower.feature_dim
        self.head = HEADS[config.head](features, attribute.shape[1], config.hidden, attribute.shape[0])
        self.log_scale = nn.Parameter(torch.full((1,), math.log(1.0 / config.temperature)))
        self.register_buffer("attribute", attribute)
        self.register_buffer("prior", torch.logit(rate.clamp(0.01, 0.9)))

    def features(
        self,
        pixels: UInt8[Tensor, "N 3 H W"],
        boxes: Float[Tensor, "R 4"],
        image_of: Int[Tensor, " R"],
        sizes: Int[Tensor, "N 2"] | None = None,
    ) -> Float[Tensor, "R E"]:
        """Region features by the model's own tower (`encoder: end_to_end`)."""
        assert self.tower is not None, "a frozen mapping takes features from an embeddings sidecar"
        feature_RE: Tensor = self.tower.encode_regions(pixels, boxes, image_of, sizes)
        return feature_RE

    def cosine(self, feature: Float[Tensor, "R E"], ids: Int[Tensor, " A"]) -> Float[Tensor, "R A"]:
        score: Tensor = self.head(feature, self.attribute, ids)
        return score

    def logits(self, cosine: Float[Tensor, "R A"], ids: Int[Tensor, " A"]) -> Float[Tensor, "R A"]:
        return cosine * self.log_scale.exp() + self.prior[ids]

    def scores(self, feature: Float[Tensor, "R E"], ids: Int[Tensor, " A"]) -> Float[Tensor, "R A"]:
        """What assignment cuts: the cosine after a contrastive fit, a probability after the others."""
        cosine = self.cosine(feature, ids)
        return cosine if self.config.loss == "contrastive" else torch.sigmoid(self.logits(cosine, ids))

    def score_images(
        self, feature: Float[Tensor, "R E"], regions: Sequence[int], mentions: Sequence[Int[np.ndarray, " a"]]
    ) -> list[Float[np.ndarray, "r a"]]:
        """`scores` of each image's own regions and attributes, which are a small part of all R x A: image i has the next
        `regions[i]` rows of `feature` and the ids `mentions[i]`. One pass over the regions, one over the distinct ids."""
        images = self._cosines(feature, regions, mentions)
        if self.config.loss == "contrastive" or not images:
            return images
        scale, prior = float(self.log_scale.exp()), self.prior.cpu().numpy()
        logits = [c * np.float32(scale) + prior[ids] for c, ids in zip(images, mentions, strict=True)]
        flat = torch.sigmoid(torch.from_numpy(np.concatenate([x.ravel() for x in logits]))).numpy()
        ends = np.cumsum([x.size for x in logits]).tolist()
        return [flat[end - x.size : end].reshape(x.shape) for end, x in zip(ends, logits, strict=True)]

    def _cosines(
        self, feature: Float[Tensor, "R E"], regions: Sequence[int], mentions: Sequence[Int[np.ndarray, " a"]]
    ) -> list[Float[np.ndarray, "r a"]]:
        device = self.attribute.device
        starts = np.concatenate([[0], np.cumsum(regions)]).tolist()
        spans = [slice(a, b) for a, b in zip(starts, starts[1:], strict=False)]
        if not isinstance(self.head, SharedHead):
            every = [torch.from_numpy(ids).to(device) for ids in mentions]
            return [self.cosine(feature[s].to(device), ids).cpu().numpy() for s, ids in zip(spans, every, strict=True)]
        distinct, at = np.unique(np.concatenate([np.zeros(0, np.int64), *mentions]), return_inverse=True)
        u_RH = self.head.of_regions(feature.to(device)).cpu().numpy()
        v_AH = self.head.of_attributes(self.attribute[torch.from_numpy(distinct).to(device)]).cpu().numpy()
        places = np.split(at, np.cumsum([len(ids) for ids in mentions])[:-1]) if mentions else []
        return [u_RH[span] @ v_AH[place].T for span, place in zip(spans, places, strict=True)]
