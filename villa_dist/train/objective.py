"""What a training job minimises: modules whose forward takes a rank's PairBatch and returns the global loss.

WholeObjective    one-to-one: whole images with whole texts (pretrain)
RegionObjective   regions with the distinct attributes of the global batch (train)
MappingObjective  regions with the attributes their image's text mentions (fit-mapping)

Letters: N images, R regions, T texts, V vocabulary, D embedding.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from villa_dist.attributes.extract import sentences
from villa_dist.data.loader import PairBatch
from villa_dist.distributed import rank, world_size
from villa_dist.encoders.text import TokenBatch
from villa_dist.losses import Pairs, gather_texts, multi_positive
from villa_dist.mapping.evidence import Evidence
from villa_dist.mapping.losses import mapping_loss
from villa_dist.mapping.model import MappingModel
from villa_dist.vlm.model import RegionVLM


class WholeObjective(nn.Module):
    """InfoNCE between whole images and whole texts; a text is the mean of its distinct sentences' embeddings."""

    def __init__(self, vlm: RegionVLM) -> None:
        super().__init__()
        self.vlm = vlm

    def forward(self, batch: PairBatch) -> Float[Tensor, ""]:
        assert batch.pixels is not None
        u_ND = self.vlm.embed_whole(batch.pixels, batch.sizes)
        distinct: dict[str, int] = {}
        said = [sorted({distinct.setdefault(s, len(distinct)) for s in sentences(t) or [t]}) for t in batch.texts]
        sentence_SD = self.vlm.embed_texts(self.vlm.tokenize(list(distinct)))
        device = u_ND.device
        index = torch.tensor([s for ids in said for s in ids], device=device)
        lengths = torch.tensor([len(ids) for ids in said])
        text_of = torch.repeat_interleave(torch.arange(len(said)), lengths).to(device)
        total_ND = sentence_SD.new_zeros(len(said), sentence_SD.shape[1]).index_add(0, text_of, sentence_SD[index])
        v_TD = gather_texts(nn.functional.normalize(total_ND, dim=-1))
        here = torch.arange(batch.images, device=device)
        return multi_positive(u_ND, v_TD, self.vlm.scale, Pairs(here, here + rank() * batch.images))


class RegionObjective(nn.Module):
    """Multi-positive contrast of regions with attributes; each distinct attribute of the global batch is encoded
    once, the work split evenly over the ranks."""

    def __init__(self, vlm: RegionVLM, prompts: Sequence[Sequence[str]]) -> None:
        super().__init__()
        self.vlm = vlm
        self.prompts = [vlm.tokenize(list(p)) for p in prompts]

    def forward(self, batch: PairBatch) -> Float[Tensor, ""]:
        assert batch.pixels is not None
        u_RD = self.vlm.embed_regions(batch.pixels, batch.boxes, batch.image_of, batch.sizes)
        distinct = distinct_over_ranks(batch.attribute)
        world = world_size()
        per_rank = max(-(-len(distinct) // world), 1)
        padded = distinct.new_zeros(per_rank * world)
        padded[: len(distinct)] = distinct
        mine = padded[rank() * per_rank : (rank() + 1) * per_rank]
        v_TD = gather_texts(self.embed_attributes(mine))[: max(len(distinct), 1)]
        text = torch.searchsorted(distinct, batch.attribute.contiguous())
        return multi_positive(u_RD, v_TD, self.vlm.scale, Pairs(batch.region, text))

    def embed_attributes(self, ids: Int[Tensor, " T"]) -> Float[Tensor, "T D"]:
        tokens, group_of = join_prompts([self.prompts[i] for i in ids.tolist()])
        return self.vlm.embed_groups(tokens, group_of, len(ids))


class MappingObjective(nn.Module):
    """Fits a mapping model, each expert on its own version of the images. share: V, see `mapping.rates.positive_share`."""

    share: Tensor

    def __init__(self, model: MappingModel, share: Float[Tensor, " V"]) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("share", share)

    def forward(self, batch: PairBatch) -> Float[Tensor, ""]:
        ids = distinct_over_ranks(batch.attribute)
        mentioned_NA = torch.zeros(batch.images, len(ids), dtype=torch.bool, device=ids.device)
        mentioned_NA[batch.region, torch.searchsorted(ids, batch.attribute)] = True
        total = self.share.new_zeros(())
        for k, version in enumerate((batch, *batch.others)):
            own = self.model.expert[ids] == k
            total = total + self._expert_loss(k, version, ids[own], mentioned_NA[:, own])
        return total

    def _expert_loss(
        self, k: int, batch: PairBatch, ids: Int[Tensor, " A"], mentioned: Bool[Tensor, "N A"]
    ) -> Float[Tensor, ""]:
        if batch.feature is not None:
            feature_RE = batch.feature
        else:
            assert batch.pixels is not None
            feature_RE = self.model.of(k).tower.encode_regions(batch.pixels, batch.boxes, batch.image_of, batch.sizes)
        cosine_RA = self.model.of(k).cosine(feature_RE, self.model.attribute, ids)
        evidence = Evidence(batch.image_of, mentioned, self.share[ids], batch.weight)
        return mapping_loss(self.model.config, cosine_RA, self.model.chances(cosine_RA, ids), evidence)


def join_prompts(groups: Sequence[TokenBatch]) -> tuple[TokenBatch, Int[Tensor, " S"]]:
    """Several token batches as one, and the group that each of its texts came from."""
    words = torch.cat([g.words for g in groups])
    starts = torch.tensor([0] + [g.texts for g in groups]).cumsum(0)
    text_of = torch.cat([g.text_of + start for g, start in zip(groups, starts.tolist(), strict=False)])
    group_of = torch.repeat_interleave(torch.arange(len(groups)), torch.tensor([g.texts for g in groups]))
    return TokenBatch(words, text_of, int(starts[-1])), group_of


def distinct_over_ranks(ids: Int[Tensor, " P"]) -> Int[Tensor, " T"]:
    """The distinct ids of all ranks' batches, ascending, the same on every rank."""
    mine = torch.unique(ids)
    world = world_size()
    if world == 1:
        return mine
    counts = [ids.new_zeros(1) for _ in range(world)]
    dist.all_gather(counts, ids.new_tensor([len(mine)]))
    longest = max(int(max(counts)), 1)
    padded = ids.new_full((longest,), -1)
    padded[: len(mine)] = mine
    gathered = [torch.empty_like(padded) for _ in range(world)]
    dist.all_gather(gathered, padded)
    merged = torch.unique(torch.cat(gathered))
    return merged[merged >= 0]
