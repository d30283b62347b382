"""Fine-grained recognition: the right phrase among hard negatives (FG-OVD), and retrieval of a class (CheXpert 5x200).

Letters: N boxes, P phrases (the positive first), Q queries, M targets, C classes.
"""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int

from shards.sources.base import nearest
from villa_dist.evaluate.errors import EvaluationError
from villa_dist.evaluate.retrieval import similarity

CELLS = 2**24  # scores in memory at a time
TARGETS = 4096  # turned into float64 at a time


@dataclass(frozen=True)
class PhraseRanks:
    """`rank`, `top1`: a value a box, ties by expectation. worst_rank: the rank if every tie is lost, as FG-OVD counts."""

    rank: Float[np.ndarray, " N"]
    top1: Float[np.ndarray, " N"]
    worst_rank: Float[np.ndarray, " N"]

    @classmethod
    def by_chance(cls, phrases: Int[np.ndarray, " N"]) -> PhraseRanks:
        """What random scores give on average. phrases: how many each box has."""
        mean = (phrases + 1) / 2
        return cls(mean, 1 / phrases, mean)

    @property
    def metrics(self) -> dict[str, float]:
        names = {"mean_rank": self.rank, "top1": self.top1, "mean_rank_ties_lost": self.worst_rank}
        return {name: float(v.mean()) if len(v) else float("nan") for name, v in names.items()}


def phrase_ranks(score: Float[np.ndarray, "N P"]) -> PhraseRanks:
    """Rank of the first phrase of each row, from 1. Raises: EvaluationError for scores that are not finite."""
    if score.ndim != 2 or score.shape[1] < 2:
        raise EvaluationError(f"scores of shape {score.shape}; a row needs the positive and its negatives")
    if not np.isfinite(score).all():
        raise EvaluationError("phrase scores hold NaN or infinity")
    above = (score[:, 1:] > score[:, :1]).sum(1)
    tied = (score[:, 1:] == score[:, :1]).sum(1)
    return PhraseRanks(1.0 + above + tied / 2, np.where(above > 0, 0.0, 1.0 / (1 + tied)), 1.0 + above + tied)


def phrase_scores(region: Float[np.ndarray, "N D"], phrase: Float[np.ndarray, "N P D"]) -> Float[np.ndarray, "N P"]:
    """Cosines of each box' unit embedding with those of its own phrases."""
    rows = [similarity(region[n : n + 1], phrase[n])[0] for n in range(len(region))]
    return np.stack(rows) if rows else np.zeros((0, phrase.shape[1]))


@dataclass(frozen=True)
class Labels:
    """label[n] is the class (a column of `classes`) of `keys[n]`."""

    keys: tuple[str, ...]
    label: Int[np.ndarray, " N"]
    classes: tuple[str, ...]


def read_labels(path: str | Path, *, key: str, classes: Sequence[str]) -> Labels:
    """A CSV with a column of keys and a 0/1 column a class, exactly one of them 1 in a row (CheXpert 5x200).

    Raises: EvaluationError naming file, line and column.
    """
    try:
        with Path(path).open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file)
            there = next(reader, [])
            column = {name: _column(name, there, path) for name in (key, *classes)}
            rows = [(reader.line_num, row) for row in reader if row]
    except OSError as error:
        raise EvaluationError(f"{path}: cannot be read: {error.strerror}") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise EvaluationError(f"{path}: not a CSV in UTF-8: {error}") from None
    keys, label = [], []
    for line, row in rows:
        if len(row) != len(there):
            raise EvaluationError(
                f"{path}:{line}: {len(row)} cells where the first line has {len(there)} columns; complete the row, and "
                "quote cells that hold a comma"
            )
        if not row[column[key]].strip():
            raise EvaluationError(f"{path}:{line}: {key} is empty; give the image's name, or remove the row")
        values = [row[column[c]].strip() for c in classes]
        if any(v not in ("0", "1", "0.0", "1.0", "") for v in values):
            raise EvaluationError(f"{path}:{line}: labels {values} must be 0, 1 or empty")
        positive = [n for n, v in enumerate(values) if v in ("1", "1.0")]
        if len(positive) != 1:
            raise EvaluationError(f"{path}:{line}: {len(positive)} classes are 1; a row must have exactly one")
        keys.append(row[column[key]])
        label.append(positive[0])
    most = Counter(keys).most_common(1)
    if most and most[0][1] > 1:
        raise EvaluationError(f"{path}: {key} {most[0][0]!r} occurs more than once; leave one row of each image")
    return Labels(tuple(keys), np.array(label, np.int64), tuple(classes))


def _column(name: str, there: Sequence[str], path: str | Path) -> int:
    if there.count(name) == 1:
        return there.index(name)
    if there.count(name) > 1:
        raise EvaluationError(f"{path}: {there.count(name)} columns are called {name!r}; rename all but one")
    raise EvaluationError(f"{path}: no column {name!r}{nearest(name, list(there))}; it has {', '.join(there)}")


def precision_at(
    query: Float[np.ndarray, "Q D"],
    target: Float[np.ndarray, "M D"],
    query_label: Int[np.ndarray, " Q"],
    target_label: Int[np.ndarray, " M"],
    *,
    ks: Sequence[int] = (5, 10, 100),
) -> Float[np.ndarray, "Q ks"]:
    """Share of a query's k nearest targets that have its class (GLoRIA's retrieval of reports by image), unit
    embeddings, ties by expectation. `macro` of a column is what GLoRIA reports. Memory: CELLS scores; query and target may
    be memory-mapped.

    Raises: EvaluationError for a k beyond the targets, labels that do not fit, embeddings that are not finite.
    """
    if query_label.shape != (len(query),) or target_label.shape != (len(target),):
        raise EvaluationError(f"{len(query)} queries and {len(target)} targets need as many labels")
    if not ks or min(ks) < 1 or max(ks) > len(target):
        raise EvaluationError(f"ks are {list(ks)}; each must be from 1 to the {len(target)} targets")
    rows = [np.zeros((0, len(ks)))]
    chunk = max(1, CELLS // len(target))
    for start in range(0, len(query), chunk):
        part = slice(start, start + chunk)
        score = np.empty((len(query[part]), len(target)))
        for first in range(0, len(target), TARGETS):
            score[:, first : first + TARGETS] = similarity(query[part], target[first : first + TARGETS])
        right = query_label[part, None] == target_label[None]
        ranked = -np.partition(-score, [k - 1 for k in ks], axis=1)
        found = []
        for k in ks:
            cut = ranked[:, k - 1 : k]
            above, tied = score > cut, score == cut
            places = k - above.sum(1)
            found.append(((above & right).sum(1) + places * (tied & right).sum(1) / tied.sum(1)) / k)
        rows.append(np.stack(found, 1))
    return np.concatenate(rows)


def macro(value: Float[np.ndarray, " N"], label: Int[np.ndarray, " N"]) -> float:
    """Mean over the classes that occur of the mean within the class; NaN for no values."""
    means = [float(value[label == c].mean()) for c in np.unique(label)]
    return float(np.mean(means)) if means else float("nan")
