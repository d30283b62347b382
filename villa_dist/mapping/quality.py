"""How well a mapping does on a shard, judged without labels; kept in every pair marker, so that drift is seen.

presence   over a sample of the shard's images: how often an image that mentions an attribute has a region that scores
           higher for it than any of an image that does not (the area under the ROC curve; .5 is chance)
doubt      mean entropy of the scored pairs, in bits: 0 where every score is 0 or 1
empty      share of regions that get no attribute

Each is kept as two sums, so that the sums of shards give the quality of all; presence also by the vocabulary's groups, where
they are few: what is found of one may hide that another is guessed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy.stats import rankdata  # type: ignore[import-untyped]
from torch import Tensor

from villa_dist.mapping.model import MappingModel

SAMPLED_IMAGES, SAMPLED_ATTRIBUTES = 64, 512  # of a shard
PARTS = {"presence": ("presence_won", "presence_of"), "doubt": ("doubt_bits", "scored"), "empty": ("empty", "regions")}
MOST_GROUPS = 16
GROUP_WON, GROUP_OF = "presence_won:", "presence_of:"
OUTLYING = 6.0  # times the median distance from the median
LITTLE = 0.75  # presence below which a mapping is said to find little


@dataclass
class Monitor:
    """Gathers what a shard of `images` images shows. probabilities: whether scores are; cosines have no entropy."""

    images: int
    probabilities: bool
    counts: dict[str, float] = field(default_factory=lambda: {"doubt_bits": 0.0, "scored": 0})
    _row: int = 0
    _feature: list[Tensor] = field(default_factory=list)
    _mentions: list[np.ndarray] = field(default_factory=list)

    def see(
        self,
        features: Sequence[Float[Tensor, "r E"]],
        mentions: Sequence[Int[np.ndarray, " a"]],
        scores: Sequence[Float[np.ndarray, "r a"]],
    ) -> None:
        """A run of images, in the order of the shard."""
        step = max(1, -(-self.images // SAMPLED_IMAGES))
        sampled = [i for i in range(-self._row % step, len(features), step) if len(features[i])]
        self._feature += [features[i] for i in sampled]
        self._mentions += [mentions[i] for i in sampled]
        self._row += len(features)
        if self.probabilities and scores:
            flat = np.concatenate([x.ravel() for x in scores])
            self.counts["doubt_bits"] += entropy_bits(flat)
            self.counts["scored"] += flat.size

    def result(self, model: MappingModel, group: Sequence[str] = ()) -> dict[str, float]:
        """The sums for the marker. Attributes are those that the sampled images mention, the most frequent of them.

        group: of each attribute of the vocabulary.
        """
        found = {name: round(value, 3) for name, value in self.counts.items()}
        ids, times = np.unique(np.concatenate([np.zeros(0, np.int64), *self._mentions]), return_counts=True)
        if not len(ids):
            return {**found, "presence_won": 0.0, "presence_of": 0.0}
        ids = np.sort(ids[np.argsort(-times, kind="stable")[:SAMPLED_ATTRIBUTES]])
        mentioned_IA = np.stack([np.isin(ids, m) for m in self._mentions])
        won_A, of_A = presence(best_scores(model, self._feature, ids), mentioned_IA)
        found |= {"presence_won": float(won_A.sum()), "presence_of": float(of_A.sum())}
        names = list(dict.fromkeys(group))
        for name in names if 1 < len(names) <= MOST_GROUPS else ():
            mine = np.array([group[a] == name for a in ids])
            found |= {f"{GROUP_WON}{name}": float(won_A[mine].sum()), f"{GROUP_OF}{name}": float(of_A[mine].sum())}
        return found


def best_scores(model: MappingModel, feature: Sequence[Float[Tensor, "r E"]], ids: np.ndarray) -> np.ndarray:
    """I x A: how remarkable each image's best region is for each attribute, whatever the number of its regions.

    With F_a the share of all regions that score lower for a, and n regions: F_a(best) ** n, the chance that n regions at
    random stay below it.
    """
    device = model.attribute.device
    with torch.inference_mode():
        score_RA = model.scores(torch.cat(list(feature)).to(device), torch.from_numpy(ids).to(device)).cpu().numpy()
    below_RA = rankdata(score_RA, axis=0) / (len(score_RA) + 1)
    counts = np.array([len(f) for f in feature])
    first = np.cumsum(counts) - counts
    best_IA: np.ndarray = np.maximum.reduceat(below_RA, first, axis=0) ** counts[:, None]
    return best_IA


def presence(
    best_IA: Float[np.ndarray, "I A"], mentioned_IA: Bool[np.ndarray, "I A"]
) -> tuple[Float[np.ndarray, " A"], Int[np.ndarray, " A"]]:
    """(pairs of images in the right order, ties counting half; all pairs): of one that mentions an attribute and one that
    does not."""
    with_A, images = mentioned_IA.sum(0), len(mentioned_IA)
    rank_IA = rankdata(best_IA, axis=0)
    return (rank_IA * mentioned_IA).sum(0) - with_A * (with_A + 1) / 2, with_A * (images - with_A)


def entropy_bits(p: Float[np.ndarray, "*shape"]) -> float:
    inside = np.clip(p.astype(np.float64), 1e-12, 1 - 1e-12)
    return float(-(inside * np.log2(inside) + (1 - inside) * np.log2(1 - inside)).sum())


def of_counts(counts: Mapping[str, float]) -> dict[str, float]:
    """presence (also as `presence:GROUP`), doubt and empty from a marker's sums, or from those of several; what was not
    counted is left out."""
    groups = [k.removeprefix(GROUP_WON) for k in counts if k.startswith(GROUP_WON)]
    parts = {**PARTS, **{f"presence:{g}": (f"{GROUP_WON}{g}", f"{GROUP_OF}{g}") for g in groups}}
    return {
        name: round(counts[part] / counts[whole], 4)
        for name, (part, whole) in parts.items()
        if part in counts and counts.get(whole)
    }


def shortcomings(quality: Mapping[str, float]) -> list[str]:
    """What a user should hear of a split's mapping, in words."""
    low = {name: v for name, v in quality.items() if name.startswith("presence") and v < LITTLE}
    return [
        f"the mapping tells images that mention an attribute{_of(name)} from those that do not in only {v:.0%} of cases "
        "(50% is chance): its pairs are little better than guesses; fit it longer (mapping.fit.steps); "
        "see docs/mapping.md"
        for name, v in low.items()
    ]


def _of(name: str) -> str:
    return f" of {name.split(':')[1]!r}" if ":" in name else ""


def outlying(of_shard: Mapping[str, Mapping[str, float]]) -> dict[str, str]:
    """Shards whose presence is far below that of most, with what it is: their images or texts are of another kind."""
    values = {s: q["presence"] for s, q in of_shard.items() if "presence" in q}
    middle = median(values.values()) if values else 0.0
    low = sorted(s for s in far(values) if values[s] < middle)
    return {s: f"presence {values[s]:.3f}, of most {middle:.3f}" for s in low}


def far(values: Mapping[str, float]) -> list[str]:
    """Shards whose value is far from that of most, in their order; none of fewer than eight shards."""
    if len(values) < 8:
        return []
    middle = median(values.values())
    spread = max(median(abs(v - middle) for v in values.values()), 0.005)
    return [s for s, v in values.items() if abs(v - middle) > OUTLYING * spread]
