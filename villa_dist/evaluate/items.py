"""What one evaluated model leaves behind besides its figures: values under resamples of the images, values by attribute, and
the regions it ranks first. `<run>/evaluated/<split>-<job>.npz`, written by evaluate, read by the report and by comparisons.

Letters: I images, R regions, A attributes, B resamples, B1 the images as they are and then the resamples, K ranks.

Resample b draws the same images for every model and every run that was measured on the same images (`task`), so that
differences of two of these files are paired.
"""

from __future__ import annotations

import io
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields

import numpy as np
from jaxtyping import Bool, Float, Int

from shards.errors import ShardError
from shards.store import Store
from villa_dist.evaluate.bootstrap import f1, image_weights, per_image, ratio, resampled
from villa_dist.evaluate.retrieval import Retrieval, precision_at_relevant, similarity

FOLDER = "evaluated"
RESAMPLES = 400
SCHEME = 1  # raised when resamples are drawn in another way: those of before are then not paired with them
FEWEST = 100  # resamples; an interval of fewer says little
CELLS = 2**22  # resamples x regions in memory at a time
WORK = 2**32  # resamples x regions x attributes at most, about a minute of a core
TOP = 16  # regions kept of each attribute's ranking
MOST_ATTRIBUTES = 2000  # whose rankings are kept
Regions = tuple[Float[np.ndarray, "R D"], Bool[np.ndarray, "R A"], Int[np.ndarray, " R"]]  # unit vectors, truth, image
DRAWS, RANKING = "draws/", "ranking/"


@dataclass(frozen=True)
class Ranking:
    """The best regions of the attributes `attribute`, best first: image (in the split's order), number of the box in its
    image, score, and whether the attribute is true of it."""

    attribute: Int[np.ndarray, " Q"]
    image: Int[np.ndarray, "Q K"]
    box: Int[np.ndarray, "Q K"]
    score: Float[np.ndarray, "Q K"]
    right: Bool[np.ndarray, "Q K"]

    @classmethod
    def empty(cls, attributes: int) -> Ranking:
        none = np.zeros((attributes, 0))
        whole = none.astype(np.int64)
        return cls(np.arange(attributes), whole, whole, none, none.astype(bool))

    def with_regions(
        self,
        score: Float[np.ndarray, "R Q"],
        right: Bool[np.ndarray, "R Q"],
        image: Int[np.ndarray, " R"],
        box: Int[np.ndarray, " R"],
    ) -> Ranking:
        """The TOP best of these and more regions; of equal scores those that came first."""
        every = np.concatenate([self.score, score.T], 1)
        order = np.argsort(-every, axis=1, kind="stable")[:, :TOP]

        def best(mine: np.ndarray, new: np.ndarray) -> np.ndarray:
            taken: np.ndarray = np.take_along_axis(
                np.concatenate([mine, np.broadcast_to(new, score.T.shape)], 1), order, 1
            )
            return taken

        return Ranking(
            self.attribute,
            best(self.image, image),
            best(self.box, box),
            best(self.score, score.T),
            best(self.right, right.T),
        )

    def of(self, attributes: Int[np.ndarray, " q"]) -> Ranking:
        """Of these attributes alone."""
        return Ranking(**{f.name: getattr(self, f.name)[attributes] for f in fields(self)})


@dataclass(frozen=True)
class Items:
    """Of one model, or of the mapping, on one split.

    task: what it was measured on. draws: by metric, in percent, row 0 the figure itself. Of models also R-Precision of each
    attribute in percent (NaN where it does not occur), how many regions have it, and a ranking.
    """

    task: str
    draws: Mapping[str, Float[np.ndarray, " B1"]]
    by_attribute: Float[np.ndarray, " A"] = field(default_factory=lambda: np.zeros(0))
    relevant: Int[np.ndarray, " A"] = field(default_factory=lambda: np.zeros(0, np.int64))
    ranking: Ranking | None = None


def weight_blocks(images: int, resamples: int, rows: int) -> Iterator[Int[np.ndarray, "b I"]]:
    """`resamples` rows in all, the same for the same arguments, so many at a time that `rows` columns of them fit memory."""
    step = max(1, min(resamples, CELLS // max(rows, images, 1)))
    for start in range(0, resamples, step):
        block = [image_weights(images, 1, seed) for seed in range(start, min(start + step, resamples))]
        yield np.concatenate(block).astype(np.int32)


def weighted_precision(
    score: Float[np.ndarray, " R"],
    relevant: Bool[np.ndarray, " R"],
    image: Int[np.ndarray, " R"],
    weights: Int[np.ndarray, "B I"],
) -> Float[np.ndarray, " B"]:
    """R-Precision of one query if image i stood weights[b, i] times in the split; NaN where no relevant region is left.

    Ties at the cut count by expectation, as in `retrieval`.
    """
    order = np.argsort(-score, kind="stable")
    n_B = weights @ np.bincount(image[relevant], minlength=weights.shape[1])
    deep = int(1.25 * relevant.sum()) + 64  # the cut is rarely deeper, and then all is looked at
    for depth in (deep, len(order)):
        found = _at_cut(score[order], relevant[order], image[order], weights, n_B, depth)
        if found is not None:
            return found
    raise AssertionError("no region is deeper than the last")


def _at_cut(
    falling: Float[np.ndarray, " R"],
    relevant: Bool[np.ndarray, " R"],
    image: Int[np.ndarray, " R"],
    weights: Int[np.ndarray, "B I"],
    n_B: Int[np.ndarray, " B"],
    depth: int,
) -> Float[np.ndarray, " B"] | None:
    """From the first `depth` regions of a ranking, and those that tie with the last; None where a cut lies deeper."""
    depth = int(np.searchsorted(-falling, -falling[min(depth, len(falling)) - 1], side="right"))
    falling, relevant = falling[:depth], relevant[:depth]
    first = np.flatnonzero(np.concatenate([[True], falling[1:] != falling[:-1]]))  # of each run of equal scores
    w_BR = weights[:, image[:depth]]
    all_BG, true_BG = (np.add.reduceat(w, first, axis=1) for w in (w_BR, w_BR * relevant))
    above_BG = all_BG.cumsum(1)
    if (above_BG[:, -1] < n_B).any():
        return None
    cut = np.argmax(above_BG >= np.maximum(n_B, 1)[:, None], axis=1)
    b = np.arange(len(weights))
    places = n_B - (above_BG[b, cut] - all_BG[b, cut])
    share = true_BG[b, cut] / np.maximum(all_BG[b, cut], 1)
    hits = true_BG.cumsum(1)[b, cut] - true_BG[b, cut] + places * share
    return np.divide(hits, n_B, out=np.full(len(weights), np.nan), where=n_B > 0)


def a2r_draws(
    score: Float[np.ndarray, "R A"],
    truth: Bool[np.ndarray, "R A"],
    image: Int[np.ndarray, " R"],
    images: int,
    resamples: int = RESAMPLES,
) -> Float[np.ndarray, " B"] | None:
    """Macro mean of `weighted_precision` over the attributes that occur, in percent, under each resample of the images; None
    where it would take too long. image: of each region."""
    possible = min(resamples, WORK // max(1, truth.size))
    if possible < FEWEST:
        return None
    total, known = np.zeros((2, possible))
    for a in np.flatnonzero(truth.any(0)):
        blocks = weight_blocks(images, possible, len(score))
        values = np.concatenate([weighted_precision(score[:, a], truth[:, a], image, block) for block in blocks])
        total += np.nan_to_num(values)
        known += ~np.isnan(values)
    return 100.0 * np.divide(total, known, out=np.full(possible, np.nan), where=known > 0)


def mapping_draws(sums: Float[np.ndarray, "I 3"]) -> dict[str, Float[np.ndarray, " B1"]]:
    """precision, recall and F1 of `bootstrap.mapping_sums`, in percent, as they are and under each resample."""
    right, wrong, missed = resampled(sums, RESAMPLES).T
    parts = {
        "precision": ratio(np.stack([right, right + wrong], 1)),
        "recall": ratio(np.stack([right, right + missed], 1)),
        "f1": f1(np.stack([right, wrong, missed], 1)),
    }
    return {name: 100.0 * values for name, values in parts.items()}


def of_model(
    task: str, found: Retrieval, chunks: Iterable[Regions], attribute: Float[np.ndarray, "A D"], images: int
) -> Items:
    """Everything that is kept of a model, in one pass. Scores are held only where they are few enough to be drawn from.

    chunks: all regions, those of an image together in the order of its boxes, and in one chunk. Raises: EvaluationError.
    """
    precision, image_of, held, true = [np.zeros(0)], [np.zeros(0, np.int64)], [], []
    relevant, cells = np.zeros(len(attribute), np.int64), 0
    best = Ranking.empty(len(attribute))
    for region, truth, image in chunks:
        box = np.arange(len(region)) - np.searchsorted(image, image)
        for i in range(0, len(region), max(1, CELLS // len(attribute))):
            rows = slice(i, i + max(1, CELLS // len(attribute)))
            score = similarity(region[rows], attribute)
            precision.append(precision_at_relevant(score, truth[rows]))
            image_of.append(image[rows])
            best = best.with_regions(score, truth[rows], image[rows], box[rows])
            cells += score.size
            if cells * FEWEST <= WORK:
                held.append(score)
                true.append(truth[rows])
        relevant += truth.sum(0)
    whole_image = np.concatenate(image_of)
    by_image = per_image(np.concatenate(precision), whole_image, images)
    draws = {"r2a": 100.0 * ratio(resampled(by_image, RESAMPLES))}
    if held and cells * FEWEST <= WORK:
        drawn = a2r_draws(np.concatenate(held), np.concatenate(true), whole_image, images)
        if drawn is not None:
            draws["a2r"] = np.concatenate([[100.0 * found.a2r], drawn])
    often = np.argsort(-relevant, kind="stable")[:MOST_ATTRIBUTES]
    return Items(task, draws, 100.0 * found.by_attribute, relevant, best.of(np.sort(often[relevant[often] > 0])))


def name_of(split: str, what: str) -> str:
    return f"{FOLDER}/{split}-{what}.npz"


def write(store: Store, split: str, what: str, items: Items) -> None:
    """what: the model's name, or "mapping"."""
    arrays: dict[str, np.ndarray] = {"task": np.array(items.task)}
    arrays |= {f"{DRAWS}{name}": values for name, values in items.draws.items()}
    arrays |= {"by_attribute": items.by_attribute, "relevant": items.relevant}
    if items.ranking is not None:
        arrays |= {f"{RANKING}{f.name}": getattr(items.ranking, f.name) for f in fields(Ranking)}
    sink = io.BytesIO()
    np.savez_compressed(sink, **arrays)  # type: ignore[arg-type]
    store.put(name_of(split, what), sink.getvalue())


def read(store: Store, split: str, what: str) -> Items | None:
    """None where nothing was kept, as by earlier versions. Raises: ShardError when the file is damaged."""
    name = name_of(split, what)
    data = store.find(name)
    if data is None:
        return None
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as file:
            found = dict(file.items())
        draws = {n.removeprefix(DRAWS): values for n, values in found.items() if n.startswith(DRAWS)}
        ranked = {n.removeprefix(RANKING): values for n, values in found.items() if n.startswith(RANKING)}
        best = Ranking(**ranked) if ranked else None
        return Items(str(found["task"]), draws, found["by_attribute"], found["relevant"], best)
    except (ValueError, OSError, EOFError, KeyError, TypeError, zipfile.BadZipFile, zlib.error) as error:
        raise ShardError(f"{store.path(name)} is damaged ({error}); run the evaluate stage again") from error
