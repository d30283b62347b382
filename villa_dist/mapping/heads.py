"""Mapping heads: region features and attribute embeddings to cosine scores.

Letters: R regions, A attributes, V vocabulary, E width of the region features, D of the attribute embeddings, H hidden.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from villa_dist.config import MappingConfig


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
