"""The mapping model: experts, each a tower, an adapter and a head, and the attributes that each of them scores.

Letters: R regions, A attributes, V vocabulary, K experts, E width of the region features, D of the attribute embeddings.
Region features come from a frozen VLM (`encoder: frozen` and `adapter`) or from towers trained with the heads
(`end_to_end`); attribute embeddings h_a are frozen: the unit mean of the prompts' embeddings by the one-to-one VLM.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn

from villa_dist.config import ImageTowerConfig, MappingConfig
from villa_dist.encoders.image import IMAGE_TOWERS
from villa_dist.encoders.published import Published
from villa_dist.mapping.evidence import ALONE, Chances, chances
from villa_dist.mapping.heads import Adapter, SharedHead, head
from villa_dist.mapping.scoring import image_chances


class Expert(nn.Module):
    """What scores some of the attributes. `tower` is None where features are a frozen VLM's."""

    def __init__(self, config: MappingConfig, tower: Any, features: int, dim: int, attributes: int) -> None:
        super().__init__()
        self.tower = tower
        self.adapter = Adapter(features, config.hidden) if config.encoder == "adapter" else nn.Identity()
        self.head = head(config, features, dim, attributes)
        self.log_scale = nn.Parameter(torch.full((1,), math.log(1.0 / config.temperature)))

    def cosine(
        self, feature: Float[Tensor, "R E"], attribute: Float[Tensor, "V D"], ids: Int[Tensor, " A"]
    ) -> Float[Tensor, "R A"]:
        score: Tensor = self.head(self.adapter(feature), attribute, ids)
        return score


class MappingModel(nn.Module):
    """Cosine scores of regions against attributes, and logits calibrated by each attribute's rate.

    attribute: V x D frozen embeddings. rate: V, the expected share of regions that have each attribute (see
    `mapping.rates`). group: V, the number of the group whose attributes exclude one another in a region, ALONE for none.
    expert: V, which expert scores each attribute; None: the first scores all. threshold: V, what `pairs.assign: calibrated`
    cuts at. With `encoder: end_to_end` each expert owns an image tower, built from `published` where it is of a checkpoint.
    """

    attribute: Tensor
    prior: Tensor
    group: Tensor
    expert: Tensor
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
        *,
        group: Int[Tensor, " V"] | None = None,
        expert: Int[Tensor, " V"] | None = None,
        experts: int = 1,
    ) -> None:
        super().__init__()
        self.config = config
        vocabulary, dim = attribute.shape

        def make() -> Expert:
            own: Any = None if config.frozen else IMAGE_TOWERS[tower.kind](tower, published, attention)
            return Expert(config, own, features if own is None else own.feature_dim, dim, vocabulary)

        self.experts = nn.ModuleList(make() for _ in range(experts))
        self.width = features if config.frozen else self.of(0).tower.feature_dim  # of one expert's features
        self.register_buffer("attribute", attribute)
        self.register_buffer("prior", torch.logit(rate.clamp(0.01, 0.9)))
        self.register_buffer("group", torch.full((vocabulary,), ALONE) if group is None else group)
        self.register_buffer("expert", torch.zeros(vocabulary, dtype=torch.int64) if expert is None else expert)
        self.register_buffer("threshold", torch.full((vocabulary,), 0.5))

    def of(self, k: int) -> Expert:
        found = self.experts[k]
        assert isinstance(found, Expert)
        return found

    @property
    def feature_dim(self) -> int:
        """Width of `features`, and of what is scored."""
        return self.width * len(self.experts)

    def features(
        self,
        pixels: UInt8[Tensor, "N 3 H W"],
        boxes: Float[Tensor, "R 4"],
        image_of: Int[Tensor, " R"],
        sizes: Int[Tensor, "N 2"] | None = None,
    ) -> Float[Tensor, "R KE"]:
        """Region features by the model's own towers (`encoder: end_to_end`), side by side."""
        assert not self.config.frozen, "a frozen mapping takes features from an embeddings sidecar"
        each = [self.of(k).tower.encode_regions(pixels, boxes, image_of, sizes) for k in range(len(self.experts))]
        return torch.cat(each, 1) if len(each) > 1 else each[0]

    def cosine(self, feature: Float[Tensor, "R KE"], ids: Int[Tensor, " A"]) -> Float[Tensor, "R A"]:
        if len(self.experts) == 1:
            return self.of(0).cosine(feature, self.attribute, ids)
        out_RA = feature.new_zeros(len(feature), len(ids))
        for k, own in enumerate(feature.split(self.width, 1)):
            column = torch.nonzero(self.expert[ids] == k)[:, 0]
            out_RA = out_RA.index_copy(1, column, self.of(k).cosine(own, self.attribute, ids[column]))
        return out_RA

    def logits(self, cosine: Float[Tensor, "R A"], ids: Int[Tensor, " A"]) -> Float[Tensor, "R A"]:
        scale_K = torch.cat([self.of(k).log_scale for k in range(len(self.experts))]).exp()
        return cosine * scale_K[self.expert[ids]] + self.prior[ids]

    def chances(self, cosine: Float[Tensor, "R A"], ids: Int[Tensor, " A"]) -> Chances:
        """Of attributes `ids`, which are all that a region is taken to choose from."""
        return chances(self.logits(cosine, ids), self.group[ids] if self.config.exclusive else None)

    def scores(self, feature: Float[Tensor, "R KE"], ids: Int[Tensor, " A"]) -> Float[Tensor, "R A"]:
        """What assignment cuts: the cosine after a contrastive fit, a probability after the others."""
        cosine = self.cosine(feature, ids)
        return cosine if self.config.loss == "contrastive" else self.chances(cosine, ids).has.exp()

    def score_images(
        self, feature: Float[Tensor, "R KE"], regions: Sequence[int], mentions: Sequence[Int[np.ndarray, " a"]]
    ) -> list[Float[np.ndarray, "r a"]]:
        """`scores` of each image's own regions and attributes, which are a small part of all R x A: image i has the next
        `regions[i]` rows of `feature` and the ids `mentions[i]`. One pass over the regions, one over the distinct ids."""
        images = self._cosines(feature, regions, mentions)
        if self.config.loss == "contrastive" or not images:
            return images
        scale, prior = self._scales, self.prior.cpu().numpy()
        logits = [c * scale[ids] + prior[ids] for c, ids in zip(images, mentions, strict=True)]
        return image_chances(logits, [self.groups[ids] for ids in mentions] if self.config.exclusive else None)

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

    @cached_property
    def _scales(self) -> Float[np.ndarray, " V"]:
        scale_K = np.array([float(self.of(k).log_scale.exp()) for k in range(len(self.experts))], np.float32)
        scales: np.ndarray = scale_K[self.expert.cpu().numpy()]
        return scales

    def _cosines(
        self, feature: Float[Tensor, "R KE"], regions: Sequence[int], mentions: Sequence[Int[np.ndarray, " a"]]
    ) -> list[Float[np.ndarray, "r a"]]:
        device = self.attribute.device
        starts = np.concatenate([[0], np.cumsum(regions)]).tolist()
        spans = [slice(a, b) for a, b in zip(starts, starts[1:], strict=False)]
        if self.config.head != "shared":
            every = [torch.from_numpy(ids).to(device) for ids in mentions]
            return [self.cosine(feature[s].to(device), ids).cpu().numpy() for s, ids in zip(spans, every, strict=True)]
        distinct, at = np.unique(np.concatenate([np.zeros(0, np.int64), *mentions]), return_inverse=True)
        u_RH, v_AH = self._both_sides(feature.to(device), torch.from_numpy(distinct).to(device))
        places = np.split(at, np.cumsum([len(ids) for ids in mentions])[:-1]) if mentions else []
        return [u_RH[span] @ v_AH[place].T for span, place in zip(spans, places, strict=True)]

    def _both_sides(
        self, feature: Float[Tensor, "R KE"], ids: Int[Tensor, " A"]
    ) -> tuple[Float[np.ndarray, "R KH"], Float[np.ndarray, "A KH"]]:
        """Regions and attributes whose product is the cosine: an attribute is zero but in the columns of its expert."""
        u, v = [], []
        for k, own in enumerate(feature.split(self.width, 1)):
            expert = self.of(k)
            assert isinstance(expert.head, SharedHead)
            u.append(expert.head.of_regions(expert.adapter(own)))
            v.append(expert.head.of_attributes(self.attribute, ids) * (self.expert[ids] == k)[:, None])
        return torch.cat(u, 1).cpu().numpy(), torch.cat(v, 1).cpu().numpy()
