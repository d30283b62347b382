"""Pairs of the mapping against boxes that have a category: which are true, and how many are right. Pure functions.

Letters: V vocabulary, I images, P pairs and T true pairs of one image, K its boxes.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from villa_dist.attributes.lists import plain_name
from villa_dist.attributes.phrases import key
from villa_dist.attributes.vocabulary import Vocabulary
from villa_dist.evaluate.figures import Figures, Harmonic, Mean, harmonic, rounded
from villa_dist.evaluate.mapping_quality import matched, meets
from villa_dist.types import RegionAttributePairs

UNNAMED = -1  # of a box whose category is no attribute
MOST_ATTRIBUTES = 50
RIGHT, PAIRS, FOUND, TRUE, ONCE = range(5)


def attributes_of(names: Sequence[str], words: Vocabulary) -> dict[str, int]:
    """The attribute of each category that is one: by phrase or synonym, as a text that is nothing but the name mentions it.
    Names such as LVIS' "bow_(weapon)" are read as lists of phrases are."""
    matcher = words.matcher("none")
    found = {}
    for name in names:
        said = plain_name(name)
        for mention in matcher.mentions(said):
            if key(said[mention.start : mention.stop]) == key(said):
                found[name] = mention.attribute
    return found


def named_boxes(
    box: Float[np.ndarray, "K 4"], names: Sequence[str], crowd: Bool[np.ndarray, " K"], attribute: dict[str, int]
) -> tuple[Float[np.ndarray, "k 4"], Int[np.ndarray, " k"]]:
    """(corners, attributes) of the boxes that have one, without crowds and boxes of no area. box: x, y, width, height."""
    ids = np.array([attribute.get(n, UNNAMED) for n in names], np.int64)
    kept = (ids != UNNAMED) & ~crowd & (box[:, 2:] > 0).all(1)
    corners = np.concatenate([box[:, :2], box[:, :2] + box[:, 2:]], 1)
    return corners[kept], ids[kept]


def only(pairs: RegionAttributePairs, known: Bool[np.ndarray, " V"]) -> RegionAttributePairs:
    """The pairs of some attributes."""
    kept = known[pairs.attribute]
    return RegionAttributePairs(pairs.boxes, pairs.region[kept], pairs.attribute[kept], pairs.score[kept])


@dataclass
class Tally:
    """One way of assigning. sums: of each image RIGHT and all PAIRS, FOUND and all TRUE boxes, and the pairs that are right
    when each box is found ONCE; of_attribute: the first four by attribute."""

    of_attribute: Int[np.ndarray, "V 4"]
    kept: array[int] = field(default_factory=partial(array, "q"))  # the sums, one after another

    @classmethod
    def of(cls, attributes: int) -> Tally:
        return cls(np.zeros((attributes, 4), np.int64))

    def add(self, pairs: RegionAttributePairs, truth: RegionAttributePairs) -> None:
        """Of one image."""
        met = meets(pairs, truth)
        right, found = np.any(met, axis=1), np.any(met, axis=0)
        once = int((matched(pairs, truth) >= 0).sum())
        self.kept.extend((int(right.sum()), len(right), int(found.sum()), len(found), once))
        for column, ids in (
            (RIGHT, pairs.attribute[right]),
            (PAIRS, pairs.attribute),
            (FOUND, truth.attribute[found]),
            (TRUE, truth.attribute),
        ):
            np.add.at(self.of_attribute[:, column], ids, 1)

    @property
    def sums(self) -> Int[np.ndarray, "I 5"]:
        return np.array(self.kept, np.int64).reshape(-1, ONCE + 1)

    def figures(self) -> Figures:
        """The main one first."""
        sums = self.sums
        once = np.stack([2 * sums[:, ONCE], sums[:, PAIRS] + sums[:, TRUE]], 1)
        return {
            "f1": Harmonic("precision", "recall"),
            "precision": Mean(sums[:, [RIGHT, PAIRS]]),
            "recall": Mean(sums[:, [FOUND, TRUE]]),
            "f1_once": Mean(once),
        }

    def by_attribute(self, phrases: Sequence[str], most: int = MOST_ATTRIBUTES) -> list[dict[str, Any]]:
        """Of the attributes with most true boxes, then most pairs: figures in percent, None where undefined."""
        counts = self.of_attribute
        often = np.lexsort((-counts[:, PAIRS], -counts[:, TRUE]))[:most]
        told = []
        for a in often[counts[often][:, [PAIRS, TRUE]].any(1)].tolist():
            right, pairs, found, true = counts[a].tolist()
            precision, recall = (n / d if d else float("nan") for n, d in ((right, pairs), (found, true)))
            f1 = float(harmonic(np.array([precision]), np.array([recall]))[0])
            figures = {"precision": precision, "recall": recall, "f1": f1}
            told.append(
                {"attribute": phrases[a], "pairs": pairs, "true_boxes": true}
                | {name: rounded(value) for name, value in figures.items()}
            )
        return told
