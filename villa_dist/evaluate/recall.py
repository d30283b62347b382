"""Recall@K between images and texts, with several captions an image, in memory that does not grow with the targets.

Letters: Q queries, M targets, K the greatest k. A query scores the chance that one of its targets is among its k best:
1 or 0 where scores are distinct; equal scores at the cut stand in random order, and the chance is taken exactly.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from villa_dist.evaluate.errors import EvaluationError
from villa_dist.evaluate.retrieval import similarity

CHUNK = 2048


@dataclass(frozen=True)
class Recall:
    """`at[k]`: mean over queries that have a target, in [0, 1]. `by_query`: a column a k, NaN for queries without."""

    at: dict[int, float]
    by_query: Float[np.ndarray, "Q ks"]


@dataclass(frozen=True)
class ImageTextRecall:
    """image_to_text: any of the image's captions counts. text_to_image: a caption has one image."""

    image_to_text: Recall
    text_to_image: Recall


def image_text_recall(
    image: Float[np.ndarray, "I D"],
    text: Float[np.ndarray, "T D"],
    image_of_text: Int[np.ndarray, " T"],
    *,
    ks: Sequence[int] = (1, 5, 10),
    chunk: int = CHUNK,
) -> ImageTextRecall:
    """Both directions of unit embeddings by cosine. image_of_text: the row of each text's image.

    Raises: EvaluationError, see `recall_at`.
    """
    if image_of_text.shape != (len(text),):
        raise EvaluationError(f"{len(text)} texts need as many image rows; image_of_text has {image_of_text.shape}")
    texts = np.arange(len(text))
    return ImageTextRecall(
        recall_at(image, text, image_of_text, texts, ks=ks, chunk=chunk),
        recall_at(text, image, texts, image_of_text, ks=ks, chunk=chunk),
    )


def recall_at(
    query: Float[np.ndarray, "Q D"],
    target: Float[np.ndarray, "M D"],
    of_query: Int[np.ndarray, " P"],
    of_target: Int[np.ndarray, " P"],
    *,
    ks: Sequence[int],
    chunk: int = CHUNK,
) -> Recall:
    """Recall@k of unit embeddings by cosine; target of_target[p] is right for query of_query[p].

    Memory: chunk x chunk scores and the K best of `chunk` queries; query and target may be memory-mapped.

    Raises: EvaluationError for embeddings that are not finite, pairs out of range and a k below 1.
    """
    ks = tuple(ks)
    if not ks or min(ks) < 1:
        raise EvaluationError(f"ks are {list(ks)}; each must be at least 1")
    for name, ids, size in (("query", of_query, len(query)), ("target", of_target, len(target))):
        if len(ids) and (ids.min() < 0 or ids.max() >= size):
            raise EvaluationError(f"a pair names {name} {ids.min() if ids.min() < 0 else ids.max()}, of {size} rows")
    order = np.lexsort((of_target, of_query))
    of_query, of_target = of_query[order], of_target[order]
    by_query = np.full((len(query), len(ks)), np.nan)
    for start in range(0, len(query), chunk):
        rows = query[start : start + chunk]
        pairs = slice(*np.searchsorted(of_query, (start, start + len(rows))))
        head = _head(rows, target, of_query[pairs] - start, of_target[pairs], min(max(ks), len(target)), chunk)
        some = np.unique(of_query[pairs]) - start
        for column, k in enumerate(ks):
            by_query[start + some, column] = head.chance(k)[some]
    known = by_query[~np.isnan(by_query[:, 0])]
    means = known.mean(0) if len(known) else np.full(len(ks), np.nan)
    return Recall(dict(zip(ks, means.tolist(), strict=True)), by_query)


def recall_by_chance(right: Int[np.ndarray, " Q"], targets: int, k: int) -> Float[np.ndarray, " Q"]:
    """The chance that one of a query's `right` targets is among the first k of so many in random order: what `recall_at`
    gives where all scores are equal."""
    counts, at = np.unique(right, return_inverse=True)
    drawn = np.arange(min(k, targets))
    miss = np.maximum(targets - counts[:, None] - drawn, 0) / (targets - drawn)
    return (1.0 - miss.prod(1))[at]


@dataclass(frozen=True)
class _Head:
    """The K best scores of each query, falling, and all that equal the last of them, in the list or not."""

    score: Float[np.ndarray, "Q K"]
    right: Bool[np.ndarray, "Q K"]
    tied: Int[np.ndarray, " Q"]
    tied_right: Int[np.ndarray, " Q"]

    def chance(self, k: int) -> Float[np.ndarray, " Q"]:
        """That one of the k best is right."""
        if k >= self.score.shape[1]:
            k = self.score.shape[1]
        cut = self.score[:, k - 1 : k]
        above = self.score > cut
        tied, tied_right = (self.score == cut).sum(1), ((self.score == cut) & self.right).sum(1)
        last = self.score[:, -1] == cut[:, 0]
        tied, wrong = np.where(last, self.tied, tied), np.where(last, self.tied - self.tied_right, tied - tied_right)
        places = k - above.sum(1)
        miss = np.ones(len(cut))
        for drawn in range(int(places.max(initial=0))):  # without replacement, from the tied
            draws = drawn < places
            miss[draws] *= np.maximum(wrong[draws] - drawn, 0) / (tied[draws] - drawn)
        return np.where((above & self.right).any(1), 1.0, 1.0 - miss)


def _head(
    query: np.ndarray, target: np.ndarray, of_query: np.ndarray, of_target: np.ndarray, k: int, chunk: int
) -> _Head:
    """Merge the K best over chunks of targets."""
    rows = np.arange(len(query))[:, None]
    head = _Head(
        np.full((len(query), k), -np.inf),
        np.zeros((len(query), k), bool),
        np.full(len(query), k),
        np.zeros(len(query), np.int64),
    )
    for start in range(0, len(target), chunk):
        score = similarity(query, target[start : start + chunk])
        right = np.zeros(score.shape, bool)
        here = (of_target >= start) & (of_target < start + score.shape[1])
        right[of_query[here], of_target[here] - start] = True
        every, every_right = np.concatenate([head.score, score], 1), np.concatenate([head.right, right], 1)
        best = np.argpartition(-every, k - 1, axis=1)[:, :k]
        best = best[rows, np.argsort(-every[rows, best], axis=1)]
        cut = every[rows, best][:, -1]
        kept = head.score == cut[:, None]
        same = head.score[:, -1] == cut  # then some of the tied may have left the list already
        new = score == cut[:, None]
        head = _Head(
            every[rows, best],
            every_right[rows, best],
            new.sum(1) + np.where(same, head.tied, kept.sum(1)),
            (new & right).sum(1) + np.where(same, head.tied_right, (kept & head.right).sum(1)),
        )
    return head
