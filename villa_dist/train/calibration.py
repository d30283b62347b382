"""A threshold of each attribute's own, without region labels.

Of the regions in images that mention an attribute, a known share has it (`mapping.rates.positive_share`); the threshold is
where that share of their scores lies above. It needs a histogram an attribute, so it streams.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from shards.order import GlobalOrder
from villa_dist.config import OptimConfig
from villa_dist.data.loader import PairBatch, collate
from villa_dist.data.samples import Samples
from villa_dist.mapping.model import MappingModel

BINS = 512
IMAGES, BATCH = 2048, 32
FEW = 30  # scores of an attribute, below which its threshold stays as it is


@dataclass
class Histogram:
    """Scores of each attribute between low and high, counted in BINS."""

    low: float
    high: float
    counts: Int[np.ndarray, "V B"]

    def add(self, ids: Int[np.ndarray, " a"], score_RA: Float[np.ndarray, "r a"]) -> None:
        width = (self.high - self.low) / BINS
        place = np.clip((score_RA - self.low) / width, 0, BINS - 1).astype(np.int64)
        np.add.at(self.counts, (np.broadcast_to(ids, place.shape), place), 1)

    def thresholds(self, share: Float[np.ndarray, " V"], otherwise: Float[np.ndarray, " V"]) -> Float[np.ndarray, " V"]:
        """Where `share` of each attribute's scores lies above, to a bin's edge."""
        total = self.counts.sum(1)
        above = self.counts[:, ::-1].cumsum(1)[:, ::-1]  # V x B: in this bin or higher
        bins = (above >= np.maximum(share * total, 1)[:, None]).sum(1) - 1
        found = self.low + bins * (self.high - self.low) / BINS
        return np.where(total >= FEW, found, otherwise).astype(np.float32)


def calibrated(
    model: MappingModel, samples: Samples, share: Float[Tensor, " V"], optim: OptimConfig, seed: int
) -> Tensor:
    """V: thresholds for the scores of a fitted model, from at most IMAGES training images in the global order."""
    contrastive = model.config.loss == "contrastive"
    histogram = Histogram(-1.0 if contrastive else 0.0, 1.0, np.zeros((len(share), BINS), np.int64))
    order = GlobalOrder(samples.manifest.samples, seed, optim.window)
    images = min(IMAGES, samples.manifest.total)
    for first in range(0, images, BATCH):
        places = order.locate(first, min(first + BATCH, images)).tolist()
        rows = [samples.row(shard, row) for _, shard, row in places]
        batch = collate(rows, mentions=True)
        counts = [len(r.boxes) for r in rows]
        mentions = [r.attribute.astype(np.int64) for r in rows]
        with torch.inference_mode():
            scores = model.score_images(_features(model, batch), counts, mentions)
        for ids, score_RA in zip(mentions, scores, strict=True):
            histogram.add(ids, score_RA)
    return torch.from_numpy(histogram.thresholds(share.numpy(), model.threshold.cpu().numpy()))


def _features(model: MappingModel, batch: PairBatch) -> Float[Tensor, "R E"]:
    if batch.feature is not None:
        return batch.feature
    assert batch.pixels is not None
    return model.features(batch.pixels, batch.boxes, batch.image_of, batch.sizes)
