"""Mapping heads and the model around them.

Letters: R regions, A attributes, E width of the region features, D width of the attribute embeddings, H hidden.
Region features come from a frozen VLM (`encoder: frozen`) or from a tower trained with the head (`end_to_end`);
attribute embeddings h_a are frozen: the unit mean of the prompts' embeddings by the one-to-one VLM.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn

from villa_dist.config import ImageTowerConfig, MappingConfig
from villa_dist.encoders.image import IMAGE_TOWERS
from villa_dist.encoders.published import Published
from villa_dist.mapping.evidence import ALONE, Chances, chances


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

    residual: each of `attributes` also has a vector of its own, added to v before it is normalised. It begins at zero, and
    stays there for attributes that no text mentions.
    """

    def __init__(self, features: int, dim: int, hidden: int, attributes: int = 0, *, residual: bool = False) -> None:
        super().__init__()
        self.region = nn.Linear(features, hidden)
        self.gate = nn.Linear(dim, hidden)
        self.attribute = nn.Linear(dim, hidden, bias=False)
        self.residual = nn.Parameter(torch.zeros(attributes, hidden)) if residual else None

    def forward(
        self, feature: Float[Tensor, "R E"], attribute: Float[Tensor, "V D"], ids: Int[Tensor, " A"]
    ) -> Float[Tensor, "R A"]:
        return self.of_regions(feature) @ self.of_attributes(attribute, ids).T

    def of_regions(self, feature: Float[Tensor, "R E"]) -> Float[Tensor, "R H"]:
        return F.normalize(F.relu(self.region(feature)), dim=-1)

    def of_attributes(self, attribute: Float[Tensor, "V D"], ids: Int[Tensor, " A"]) -> Float[Tensor, "A H"]:
        chosen_AD = attribute[ids]
        own_AH = torch.sigmoid(self.gate(chosen_AD)) * self.attribute(chosen_AD)
        if self.residual is not None:
            own_AH = own_AH + self.residual[ids]
        return F.normalize(own_AH, dim=-1)


class Adapter(nn.Module):
    """Frozen features made fit for mapping: e + W2 relu(W1 norm(e)). It begins as the identity."""

    def __init__(self, features: int, hidden: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(features)
        self.first = nn.Linear(features, hidden)
        self.second = nn.Linear(hidden, features)
        nn.init.zeros_(self.second.weight)
        nn.init.zeros_(self.second.bias)

    def forward(self, feature: Float[Tensor, "R E"]) -> Float[Tensor, "R E"]:
        out: Tensor = feature + self.second(F.relu(self.first(self.norm(feature))))
        return out


def head(config: MappingConfig, features: int, dim: int, attributes: int) -> nn.Module:
    if config.head == "per_attribute":
        return PerAttributeHeads(features, dim, config.hidden, attributes)
    return SharedHead(features, dim, config.hidden, attributes, residual=config.residual)


class MappingModel(nn.Module):
    """Cosine scores of regions against attributes, and logits calibrated by each attribute's rate.

    attribute: V x D frozen embeddings. rate: V, the expected share of regions that have each attribute (see
    `mapping.rates`). group: V, the number of the group whose attributes exclude one another in a region, ALONE for none.
    threshold: V, what `pairs.assign: calibrated` cuts at. With `encoder: end_to_end` the model owns an image tower, built
    from `published` where it is of a checkpoint.
    """

    attribute: Tensor
    prior: Tensor
    group: Tensor
    threshold: Tensor

    def __init__(
        self,
        config: MappingConfig,
        tower: ImageTowerConfig,
        attribute: Float[Tensor, "V D"],
        rate: Float[Tensor, " V"],
        features: int,
        published: Published | None = None,
        attention: str = "sdpa",
        group: Int[Tensor, " V"] | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        own = config.encoder == "end_to_end"
        self.tower: Any = IMAGE_TOWERS[tower.kind](tower, published, attention) if own else None
        if self.tower is not None:
            features = self.tower.feature_dim
        self.adapter = Adapter(features, config.hidden) if config.encoder == "adapter" else nn.Identity()
        self.head = head(config, features, attribute.shape[1], attribute.shape[0])
        self.log_scale = nn.Parameter(torch.full((1,), math.log(1.0 / config.temperature)))
        self.register_buffer("attribute", attribute)
        self.register_buffer("prior", torch.logit(rate.clamp(0.01, 0.9)))
        self.register_buffer("group", torch.full((len(rate),), ALONE) if group is None else group)
        self.register_buffer("threshold", torch.full((len(rate),), 0.5))

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
        score: Tensor = self.head(self.adapter(feature), self.attribute, ids)
        return score

    def logits(self, cosine: Float[Tensor, "R A"], ids: Int[Tensor, " A"]) -> Float[Tensor, "R A"]:
        return cosine * self.log_scale.exp() + self.prior[ids]

    def chances(self, cosine: Float[Tensor, "R A"], ids: Int[Tensor, " A"]) -> Chances:
        """Of attributes `ids`, which are all that a region is taken to choose from."""
        return chances(self.logits(cosine, ids), self.group[ids] if self.config.exclusive else None)

    def scores(self, feature: Float[Tensor, "R E"], ids: Int[Tensor, " A"]) -> Float[Tensor, "R A"]:
        """What assignment cuts: the cosine after a contrastive fit, a probability after the others."""
        cosine = self.cosine(feature, ids)
        return cosine if self.config.loss == "contrastive" else self.chances(cosine, ids).has.exp()

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
        if self.config.exclusive:
            return exclusive_chances(logits, [self.groups[ids] for ids in mentions])
        flat = torch.sigmoid(torch.from_numpy(np.concatenate([x.ravel() for x in logits]))).numpy()
        return _split(flat, logits)

    @cached_property
    def groups(self) -> Int[np.ndarray, " V"]:
        """`group` of a finished model."""
        groups: np.ndarray = self.group.cpu().numpy()
        return groups

    @cached_property
    def thresholds(self) -> Float[np.ndarray, " V"]:
        """`threshold` of a finished model."""
        thresholds: np.ndarray = self.threshold.cpu().numpy()
        return thresholds

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
        u_RH = self.head.of_regions(self.adapter(feature.to(device))).cpu().numpy()
        v_AH = self.head.of_attributes(self.attribute, torch.from_numpy(distinct).to(device)).cpu().numpy()
        places = np.split(at, np.cumsum([len(ids) for ids in mentions])[:-1]) if mentions else []
        return [u_RH[span] @ v_AH[place].T for span, place in zip(spans, places, strict=True)]


def exclusive_chances(
    logits: Sequence[Float[np.ndarray, "r a"]], groups: Sequence[Int[np.ndarray, " a"]]
) -> list[Float[np.ndarray, "r a"]]:
    """`chances` of several images at once, as probabilities: sums over the attributes of a group in a region, all in one
    count. Their rounding does not depend on the other images."""
    z = np.concatenate([x.ravel() for x in logits]).astype(np.float64)
    e = np.exp(np.minimum(z, 500.0))
    regions = [len(x) for x in logits]
    first = np.concatenate([[0], np.cumsum(regions)])
    row = np.concatenate([np.repeat(np.arange(first[i], first[i] + r), len(groups[i])) for i, r in enumerate(regions)])
    group = np.concatenate([np.tile(g, r) for g, r in zip(groups, regions, strict=True)])
    total = e.copy()
    shared = group != ALONE
    if shared.any():
        kinds = int(group.max()) + 1
        place = row[shared] * kinds + group[shared]
        total[shared] = np.bincount(place, weights=e[shared])[place]
    return _split((e / (1.0 + total)).astype(np.float32), logits)


def _split(flat: np.ndarray, like: Sequence[np.ndarray]) -> list[np.ndarray]:
    ends = np.cumsum([x.size for x in like]).tolist()
    return [flat[end - x.size : end].reshape(x.shape) for end, x in zip(ends, like, strict=True)]
