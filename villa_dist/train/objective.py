"""What a training job minimises: modules whose forward takes a rank's PairBatch and returns the global loss.

WholeObjective    one-to-one: whole images with whole texts (pretrain)
RegionObjective   regions with the distinct attributes of the global batch (train)
MappingObjective  regions with the attributes their image's text mentions (fit-mapping)

Letters: N images, R regions, P pairs, T texts, V vocabulary, D embedding.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from villa_dist.attributes.extract import sentences
from villa_dist.config_train import TrainConfig
from villa_dist.data.loader import PairBatch
from villa_dist.distributed import rank, world_size
from villa_dist.encoders.text import TokenBatch
from villa_dist.losses import Pairs, gather_texts, infonce, multi_positive, near_pairs, near_texts, sigmoid
from villa_dist.losses.sigmoid import FIRST_BIAS
from villa_dist.mapping.evidence import Evidence
from villa_dist.mapping.losses import mapping_loss
from villa_dist.mapping.model import MappingModel
from villa_dist.train.attribute_cache import AttributeCache, is_frozen
from villa_dist.train.chunks import chunk_count, chunks, recomputed, refuse_batch_statistics
from villa_dist.train.precision import full_precision
from villa_dist.vlm.model import RegionVLM, group_mean


class WholeObjective(nn.Module):
    """InfoNCE between whole images and whole texts."""

    def __init__(self, vlm: RegionVLM) -> None:
        super().__init__()
        self.vlm = vlm

    def forward(self, batch: PairBatch) -> Float[Tensor, ""]:
        assert batch.pixels is not None
        u_ND = self.vlm.embed_whole(batch.pixels, batch.sizes)
        return whole_contrast(self.vlm, u_ND, embed_whole_texts(self.vlm, batch.texts))


def embed_whole_texts(vlm: RegionVLM, texts: Sequence[str]) -> Float[Tensor, "N D"]:
    """A text is the unit mean of its distinct sentences' embeddings; each distinct sentence is encoded once."""
    distinct: dict[str, int] = {}
    said = [sorted({distinct.setdefault(s, len(distinct)) for s in sentences(t) or [t]}) for t in texts]
    sentence_SD = vlm.embed_texts(vlm.tokenize(list(distinct)))
    device = sentence_SD.device
    index = torch.tensor([s for ids in said for s in ids], device=device)
    lengths = torch.tensor([len(ids) for ids in said])
    text_of = torch.repeat_interleave(torch.arange(len(said)), lengths).to(device)
    return group_mean(sentence_SD[index], text_of, len(said))


def whole_contrast(vlm: RegionVLM, u_ND: Float[Tensor, "N D"], text_ND: Float[Tensor, "N D"]) -> Float[Tensor, ""]:
    """Image n of this rank goes with its text n, against all of the global batch."""
    here = torch.arange(len(u_ND), device=u_ND.device)
    return multi_positive(u_ND, gather_texts(text_ND), vlm.scale, Pairs(here, here + rank() * len(u_ND)))


class RegionObjective(nn.Module):
    """Contrast of regions with attributes; each distinct attribute of the global batch is encoded once, the work split
    evenly over the ranks. docs/training.md has the losses.

    reference: V x D, what tells near duplicates among the attributes (`near.reference`); None: none are looked for.
    Raises: VillaError when `micro_images` is given and the tower normalises by its batch.
    """

    reference: Tensor | None
    bias: nn.Parameter | None

    def __init__(
        self,
        vlm: RegionVLM,
        prompts: Sequence[Sequence[str]],
        config: TrainConfig = TrainConfig(),
        reference: Float[Tensor, "V D"] | None = None,
    ) -> None:
        super().__init__()
        self.vlm = vlm
        self.config = config
        self.prompts = [vlm.tokenize(list(p)) for p in prompts]
        # one element, not a 0-dim tensor, as vlm.log_scale; other losses have no such parameter
        self.bias = nn.Parameter(torch.full((1,), FIRST_BIAS)) if config.loss == "sigmoid" else None
        self.register_buffer("reference", reference, persistent=False)
        frozen = bool(self.prompts) and is_frozen(vlm.text)
        self.cache = AttributeCache(self.embed_attributes, vlm.text, len(self.prompts)) if frozen else None
        if config.micro_images:
            refuse_batch_statistics(vlm, config.micro_images)

    def forward(self, batch: PairBatch) -> Float[Tensor, ""]:
        u_RD, *whole = self.embed_images(batch)
        distinct = distinct_over_ranks(batch.attribute)
        v_TD = self.embed_distinct(distinct, chunk_count(batch.images, self.config.micro_images))
        pairs = Pairs(batch.region, torch.searchsorted(distinct, batch.attribute.contiguous()))
        with full_precision(u_RD.device):
            loss = self.contrast(u_RD, v_TD, pairs, distinct)
        if whole:
            loss = loss + self.config.whole_weight * whole_contrast(self.vlm, *whole)
        return loss

    def contrast(
        self, u_RD: Float[Tensor, "R D"], v_TD: Float[Tensor, "T D"], pairs: Pairs, distinct: Int[Tensor, " t"]
    ) -> Float[Tensor, ""]:
        """The loss the config names. `infonce`, the paper's, takes near duplicates for negatives, and equal ones too."""
        if self.config.loss == "infonce":
            return infonce(u_RD, v_TD, self.vlm.scale, pairs)
        ignored = None
        if self.reference is not None and self.config.near_duplicates is not None:
            near = near_texts(self.reference[distinct].float(), self.config.near_duplicates)
            ignored = near_pairs(pairs, near, len(v_TD))
        if self.bias is not None:
            return sigmoid(u_RD, v_TD, self.vlm.scale, self.bias, pairs, ignored=ignored)
        return multi_positive(u_RD, v_TD, self.vlm.scale, pairs, ignored=ignored)

    def embed_images(self, batch: PairBatch) -> tuple[Tensor, ...]:
        """Regions; and, where whole images count, images and their texts."""
        if self.config.micro_images is None:
            return self._embed_part(batch)
        return recomputed(self._embed_part, chunks(batch, self.config.micro_images), batch.boxes)

    def _embed_part(self, batch: PairBatch) -> tuple[Tensor, ...]:
        assert batch.pixels is not None
        regions = (batch.pixels, batch.boxes, batch.image_of, batch.sizes)
        if not self.config.whole_weight:
            return (self.vlm.embed_regions(*regions),)
        u_ND, u_RD = self.vlm.embed_both(*regions)
        return u_RD, u_ND, embed_whole_texts(self.vlm, batch.texts)

    def embed_distinct(self, distinct: Int[Tensor, " t"], parts: int) -> Float[Tensor, "T D"]:
        """Embeddings of the global batch's attributes, on every rank; at least one row."""
        if self.cache:
            return self.cache(distinct if len(distinct) else distinct.new_zeros(1))
        world = world_size()
        per_rank = max(-(-len(distinct) // world), 1)
        padded = distinct.new_zeros(per_rank * world)
        padded[: len(distinct)] = distinct
        mine = padded[rank() * per_rank : (rank() + 1) * per_rank]
        if parts == 1:
            part_TD = self.embed_attributes(mine)
        else:
            slices = mine.tensor_split(min(parts, per_rank))
            (part_TD,) = recomputed(lambda ids: (self.embed_attributes(ids),), slices, mine)
        return gather_texts(part_TD)[: max(len(distinct), 1)]

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
        evidence = Evidence(batch.image_of, mentioned, self.share[ids], batch.weight)
        with full_precision(feature_RE.device):
            cosine_RA = self.model.of(k).cosine(feature_RE.float(), self.model.attribute, ids)
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
