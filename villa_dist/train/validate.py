"""Zero-shot retrieval on images of the validation split while a VLM trains: R-Precision both ways, in percent.

With known pairs: true regions with attributes (those that occur among them). Without: whole images with whole texts, equal
texts being equally right. The ranks share the images; nothing that training depends on is changed.

Letters: N images, R regions, A attributes, T texts, D embedding.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist

from shards import manifest
from shards.commit import StageFolder
from shards.errors import VillaError
from villa_dist.attributes.extract import sentences
from villa_dist.attributes.vocabulary import Vocabulary
from villa_dist.data.loader import PairBatch, collate
from villa_dist.data.samples import Samples
from villa_dist.distributed import rank, world_size
from villa_dist.evaluate.retrieval import Retrieval, r_precision
from villa_dist.train.objective import join_prompts
from villa_dist.vlm.model import RegionVLM

AT_ONCE = 32  # images
TEXTS_AT_ONCE = 512


@dataclass(frozen=True)
class Seen:
    """What one rank embedded: regions with their attributes, or images with their texts."""

    embedding: np.ndarray  # R x D, or N x D
    row: np.ndarray  # P, into `embedding`, of each pair
    attribute: np.ndarray  # P
    texts: list[str]  # N; empty with known pairs


class Validation:
    """Called with a VLM on every rank at once. images: at most so many are taken, evenly over the split.

    Raises: VillaError when the run has no validation split.
    """

    def __init__(self, run: str, words: Vocabulary | None, images: int, max_pixels: int) -> None:
        place = f"{run}/validation"
        if not manifest.exists(StageFolder(place, "base")):
            raise VillaError(
                f"validate_steps needs {place}/base, which is not there; add validation to evaluate.splits and run ingest, "
                "or leave validate_steps out"
            )
        self.known = words is not None and manifest.exists(StageFolder(place, "truth"))
        self.words = words
        self.samples = Samples(place, "truth" if self.known else None, images=True, max_pixels=max_pixels)
        self.images = images

    def __call__(self, vlm: RegionVLM) -> dict[str, float]:
        """The same values on every rank. The VLM's mode and torch's random numbers are left as they were."""
        devices = [vlm.log_scale.device] if vlm.log_scale.device.type == "cuda" else []
        training = [m for m in vlm.modules() if m.training]
        with torch.random.fork_rng(devices=devices), torch.no_grad():
            vlm.eval()
            try:
                found = self._retrieval(vlm)
            finally:
                for module in training:
                    module.training = True
        ways = ("a2r", "r2a") if self.known else ("t2i", "i2t")
        values = zip(ways, (found.a2r, found.r2a), strict=True)
        return {f"validation_{way}": round(100.0 * value, 4) for way, value in values if np.isfinite(value)}

    def _retrieval(self, vlm: RegionVLM) -> Retrieval:
        seen = gathered(self._embedded(vlm))
        region_RD = np.concatenate([s.embedding for s in seen])
        if not self.known:
            texts = [t for s in seen for t in s.texts]
            distinct = sorted(set(texts))
            number = {t: n for n, t in enumerate(distinct)}
            truth = np.zeros((len(texts), len(distinct)), bool)
            truth[np.arange(len(texts)), [number[t] for t in texts]] = True
            return r_precision(region_RD, text_embeddings(vlm, [sentences(t) or [t] for t in distinct]), truth)
        starts = np.cumsum([0, *(len(s.embedding) for s in seen)])
        row = np.concatenate([s.row + start for s, start in zip(seen, starts, strict=False)])
        ids, column = np.unique(np.concatenate([s.attribute for s in seen]), return_inverse=True)
        truth = np.zeros((len(region_RD), len(ids)), bool)
        truth[row, column] = True
        assert self.words is not None
        return r_precision(region_RD, text_embeddings(vlm, [list(self.words.prompts[i]) for i in ids.tolist()]), truth)

    def _embedded(self, vlm: RegionVLM) -> Seen:
        """This rank's share of the images."""
        parts: list[np.ndarray] = [np.zeros((0, vlm.dim), np.float32)]
        rows, attributes, texts, start = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)], [], 0
        for batch in self._batches():
            on = batch.to(vlm.log_scale.device)
            assert on.pixels is not None
            if not self.known:
                parts.append(vlm.embed_whole(on.pixels, on.sizes).float().cpu().numpy())
                texts += batch.texts
                continue
            if not len(batch.boxes):
                continue
            parts.append(vlm.embed_regions(on.pixels, on.boxes, on.image_of, on.sizes).float().cpu().numpy())
            rows.append(batch.region.numpy() + start)
            attributes.append(batch.attribute.numpy())
            start += len(batch.boxes)
        return Seen(np.concatenate(parts), np.concatenate(rows), np.concatenate(attributes), texts)

    def _batches(self) -> Iterator[PairBatch]:
        counts = self.samples.manifest.samples
        total, first = sum(counts), np.cumsum([0, *counts])
        wanted = min(self.images, total)
        places = [(2 * k + 1) * total // (2 * wanted) for k in range(wanted)][rank() :: world_size()]
        for at in range(0, len(places), AT_ONCE):
            chosen = [(int(np.searchsorted(first, p, side="right")) - 1, p) for p in places[at : at + AT_ONCE]]
            yield collate([self.samples.row(s, p - int(first[s])) for s, p in chosen], mentions=False)


def text_embeddings(vlm: RegionVLM, texts: Sequence[Sequence[str]]) -> np.ndarray:
    """T x D: the unit mean of the distinct sentences (or prompts) of each text."""
    parts = [np.zeros((0, vlm.dim), np.float32)]
    for at in range(0, len(texts), TEXTS_AT_ONCE):
        chosen = texts[at : at + TEXTS_AT_ONCE]
        tokens, group_of = join_prompts([vlm.tokenize(sorted(set(t))) for t in chosen])
        parts.append(vlm.embed_groups(tokens, group_of, len(chosen)).float().cpu().numpy())
    return np.concatenate(parts)


def gathered(mine: Seen) -> list[Seen]:
    """What all ranks embedded, in their order, on every rank."""
    if world_size() == 1:
        return [mine]
    found: list[Seen | None] = [None] * world_size()
    dist.all_gather_object(found, mine)
    return [s for s in found if s is not None]
