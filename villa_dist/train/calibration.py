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
from villa_dist.config_train import OptimConfig
from villa_dist.data.loader import PairBatch, collate
from villa_dist.data.samples import Samples
from villa_dist.mapping.model import MappingModel

BINS = 1024
IMAGES, BATCH = 512, 32
FEW = 30  # scores of an attribute, below which it has no threshold of its own
OTHERWISE = 0.5


@dataclass
class Histogram:
    """Scores of each attribute, counted in BINS: of cosines over [-1, 1], of probabilities over their logits, so that rare
    attributes are told apart near 0."""

    probabilities: bool
    counts: Int[np.ndarray, "V B"]

    def add(self, ids: Int[np.ndarray, " a"], score_RA: Float[np.ndarray, "r a"]) -> None:
        low, high = self._range
        x = score_RA.astype(np.float64)
        if self.probabilities:
            x = np.clip(x, 1e-9, 1 - 1e-7)
            x = np.log(x) - np.log1p(-x)
        place = np.clip((x - low) * BINS / (high - low), 0, BINS - 1).astype(np.int64)
        np.add.at(self.counts, (np.broadcast_to(ids, place.shape), place), 1)

    @property
    def _range(self) -> tuple[float, float]:
        return (-21.0, 21.0) if self.probabilities else (-1.0, 1.0)

    def thresholds(self, share: Float[np.ndarray, " V"], otherwise: float) -> Float[np.ndarray, " V"]:
        """Where `share` of each attribute's scores lies above, to a bin's edge; that of all attributes together for those of
        which there are few scores, and `otherwise` where there are few in all."""
        total = self.counts.sum(1)
        all_together = self._cut(self.counts.sum(0, keepdims=True), np.array([(share * total).sum()]))[0]
        own = self._cut(self.counts, share * total)
        rest = all_together if total.sum() >= FEW else otherwise
        return np.where(total >= FEW, own, rest).astype(np.float32)

    def _cut(self, counts: Int[np.ndarray, "V B"], above: Float[np.ndarray, " V"]) -> Float[np.ndarray, " V"]:
        """The lower edge of the highest bin that has `above` scores in it or over it."""
        low, high = self._range
        over = counts[:, ::-1].cumsum(1)[:, ::-1]
        bins = (over >= np.maximum(above, 1)[:, None]).sum(1) - 1
        edge = low + bins * (high - low) / BINS
        return 1.0 / (1.0 + np.exp(-edge)) if self.probabilities else edge


def calibrated(
    model: MappingModel, samples: Samples, share: Float[Tensor, " V"], optim: OptimConfig, seed: int
) -> Tensor:
    """V: thresholds for the scores of a fitted model, from at most IMAGES training images in the global order."""
    histogram = Histogram(model.config.loss != "contrastive", np.zeros((len(share), BINS), np.int64))
    order = GlobalOrder(samples.manifest.samples, seed, optim.window)
    images = min(IMAGES, samples.manifest.total)
    for first in range(0, images, BATCH):
        places = order.locate(first, min(first + BATCH, images)).tolist()
        rows = [samples.row(shard, row) for _, shard, row in places]
        batch = collate(rows, mentions=True)
        counts = [len(r.boxes) for r in rows]
        mentions = [r.attribute.astype(np.int64) for r in rows]
        with torch.inference_mode():
            scores = model.score_images(_features(model, batch.to(model.attribute.device)), counts, mentions)
        for ids, score_RA in zip(mentions, scores, strict=True):
            histogram.add(ids, score_RA)
    return torch.from_numpy(histogram.thresholds(share.numpy(), OTHERWISE))


def _features(model: MappingModel, batch: PairBatch) -> Float[Tensor, "R E"]:
    if batch.feature is not None:
        return batch.feature
    assert batch.pixels is not None
    return model.features(batch.pixels, batch.boxes, batch.image_of, batch.sizes)
