"""How well mappings fitted on captions alone find the regions of real photos.

    python -m benchmarks.mapping_photos DATA [--limit N] [--seeds N] [--cache FOLDER]

DATA holds natural/ (COCO photos, captions, boxes), lvis/ (synonyms), weights/fastestdet/ (a small network) and
text/detic_metadata/ (CLIP's vectors of COCO's names). Attributes are COCO's names; true are the boxes whose name a caption
of their photo mentions. Mappings are fitted on the mentions of four fifths of the photos and held against the boxes of the
rest. Prints tables; figures are in percent, intervals of 95 % are over photos drawn again.

Letters: V vocabulary, R regions, A attributes of one photo, I photos, D text embedding.
"""

from __future__ import annotations

import argparse
import pickle
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from benchmarks import photo_features, photo_truth
from benchmarks.photo_truth import CaptionedPhoto, Regions
from villa_dist.config import ImageTowerConfig, MappingConfig, PairsConfig
from villa_dist.data.loader import PairBatch
from villa_dist.evaluate.bootstrap import f1, image_weights, mapping_sums
from villa_dist.evaluate.mapping_quality import MATCH_IOU, Counts, by_rule, compare, highest, matched, pairs_of
from villa_dist.mapping.assign import assign, weighed
from villa_dist.mapping.model import MappingModel
from villa_dist.mapping.quality import best_scores, presence
from villa_dist.mapping.rates import positive_share, rates
from villa_dist.regions.boxes import area, iou
from villa_dist.train.calibration import BINS, Histogram
from villa_dist.train.objective import MappingObjective

T = TypeVar("T")
FOLDS, REPETITIONS = 5, 2000
STEPS, BATCH, RATE, DECAY = 150, 48, 2e-3, 0.05
OBJECTNESS = {
    True: 4.0,
    False: 0.8,
}  # weights, of probabilities and of other scores; chosen on one seed of these photos
WIDTH = 96  # of the features that are fitted on: principal components
Scores = list[Float[np.ndarray, "R A"]]
Kept = list[Bool[np.ndarray, "R A"]]


@dataclass(frozen=True)
class World:
    """Photos with one kind of regions and one kind of features."""

    photos: Sequence[CaptionedPhoto]
    regions: Sequence[Regions]
    features: Sequence[Float[np.ndarray, "R F"]]
    text: Float[Tensor, "V D"]

    @cached_property
    def mentions(self) -> list[Int[np.ndarray, " a"]]:
        return [p.mentions for p in self.photos]

    @cached_property
    def fold_of(self) -> Int[np.ndarray, " I"]:
        return np.random.default_rng(0).permutation(len(self.photos)) % FOLDS

    @cached_property
    def folds(self) -> list[tuple[list[Tensor], np.ndarray, np.ndarray]]:
        """(features whitened on the photos outside, those, the photos inside) of each fold."""
        parted = [(np.flatnonzero(self.fold_of != k), np.flatnonzero(self.fold_of == k)) for k in range(FOLDS)]
        return [(whitened(self.features, outside), outside, inside) for outside, inside in parted]


@dataclass(frozen=True)
class Fitted:
    """A mapping of one fold. thresholds: V, those of `pairs.assign: calibrated`; presence: pairs of photos in the right
    order, and all."""

    scores: Scores
    thresholds: Float[np.ndarray, " V"]
    presence: tuple[float, float]


@dataclass(frozen=True)
class Row:
    """sums: right, wrong and missed of each photo, means over seeds; spread: of F1 over seeds."""

    name: str
    sums: Float[np.ndarray, "I 3"]
    not_person: Float[np.ndarray, "I 3"]
    spread: float = 0.0
    presence: float | None = None


def whitened(features: Sequence[np.ndarray], chosen: np.ndarray) -> list[Tensor]:
    """Principal components of unit variance, of the features standardised; found on the chosen photos alone."""
    rows = np.concatenate([features[i] for i in chosen]).astype(np.float64)
    mean, deviation = rows.mean(0), rows.std(0) + 1e-6
    rows = (rows - mean) / deviation
    size, axes = np.linalg.eigh(rows.T @ rows / len(rows))
    size, axes = size[::-1][:WIDTH], axes[:, ::-1][:, :WIDTH]
    kept = axes / np.sqrt(np.maximum(size, 1e-4 * size[0]))
    return [torch.from_numpy(((f - mean) / deviation @ kept).astype(np.float32)) for f in features]


def batch_of(world: World, features: Sequence[Tensor], chosen: np.ndarray) -> PairBatch:
    counts = torch.tensor([len(features[i]) for i in chosen])
    said = [world.mentions[i] for i in chosen]
    return PairBatch(
        pixels=None,
        texts=[],
        boxes=torch.zeros(int(counts.sum()), 4),
        image_of=torch.repeat_interleave(torch.arange(len(chosen)), counts),
        region=torch.from_numpy(np.repeat(np.arange(len(chosen)), [len(s) for s in said])),
        attribute=torch.from_numpy(np.concatenate(said)),
        feature=torch.cat([features[i] for i in chosen]),
        images=len(chosen),
    )


def fit(world: World, config: MappingConfig, fold: int, seed: int, steps: int) -> Fitted:
    """On the mentions of the photos outside `fold`; scores are of those inside, in their order."""
    torch.manual_seed(seed)
    features, outside, inside = world.folds[fold]
    images_with = np.bincount([len(features[i]) for i in outside])
    said = np.concatenate([world.mentions[i] for i in outside])
    vocabulary = len(world.text)
    rate = rates(images_with, np.bincount(said, minlength=vocabulary))
    share = positive_share(images_with, rate)
    group = torch.zeros(vocabulary, dtype=torch.int64) if config.exclusive else None
    model = MappingModel(
        config, ImageTowerConfig(), world.text, torch.from_numpy(rate).float(), features[0].shape[1], group=group
    )
    objective = MappingObjective(model, torch.from_numpy(share).float())
    optimizer = torch.optim.AdamW(objective.parameters(), lr=RATE, weight_decay=DECAY)
    random = np.random.default_rng(seed)
    order = np.concatenate([random.permutation(outside) for _ in range(-(-steps * BATCH // len(outside)))])
    for step in range(steps):
        for group_ in optimizer.param_groups:
            group_["lr"] = RATE * min(1.0, (step + 1) / 10, (steps - step) / (steps / 2))
        optimizer.zero_grad()
        objective(batch_of(world, features, order[step * BATCH : (step + 1) * BATCH])).backward()
        torch.nn.utils.clip_grad_norm_(objective.parameters(), 5.0)
        optimizer.step()
    model.requires_grad_(False)
    scored = {name: scores_of(model, world, features, own) for name, own in (("out", outside), ("in", inside))}
    histogram = Histogram(config.loss != "contrastive", np.zeros((vocabulary, BINS), np.int64))
    for i, score in zip(outside, scored["out"], strict=True):
        histogram.add(world.mentions[i], score)
    thresholds = histogram.thresholds(share, 0.5)
    return Fitted(scored["in"], thresholds, present(model, world, features, inside))


def scores_of(model: MappingModel, world: World, features: Sequence[Tensor], chosen: np.ndarray) -> Scores:
    own = [features[i] for i in chosen]
    with torch.inference_mode():
        return model.score_images(torch.cat(own), [len(f) for f in own], [world.mentions[i] for i in chosen])


def present(model: MappingModel, world: World, features: Sequence[Tensor], chosen: np.ndarray) -> tuple[float, float]:
    """(won, of) of `mapping.quality.presence` over the attributes that the chosen photos mention."""
    filled = [i for i in chosen if len(features[i])]
    ids = np.unique(np.concatenate([world.mentions[i] for i in filled]))
    best = best_scores(model, [features[i] for i in filled], ids)
    won, of = presence(best, np.stack([np.isin(ids, world.mentions[i]) for i in filled]))
    return float(won.sum()), float(of.sum())


def counted(world: World, scores: Scores, kept: Kept) -> list[Counts]:
    return [
        compare(pairs_of(r.boxes, p.mentions, s, k), p.truth, len(world.text))
        for p, r, s, k in zip(world.photos, world.regions, scores, kept, strict=True)
    ]


def row(name: str, counts: Sequence[Sequence[Counts]], found: float | None = None) -> Row:
    """counts: of every seed, of every photo."""
    chosen = np.arange(len(counts[0][0].right)) > 0
    sums = np.stack([mapping_sums(c) for c in counts])
    others = np.stack([mapping_sums(c, chosen) for c in counts])
    spread = np.std(f1(sums.sum(1)), ddof=1) if len(counts) > 1 else 0.0
    return Row(name, sums.mean(0), others.mean(0), float(spread), found)


def mapped(world: World, name: str, config: MappingConfig, seeds: int, steps: int = STEPS) -> dict[str, Row]:
    """Rows by rule of assignment: `relative` after a contrastive fit, the other three after the others."""
    fold_of = world.fold_of
    chances = config.loss != "contrastive"
    rules = ["absolute", "calibrated", "transport"] if chances else ["relative", "calibrated"]
    ranked = world.regions[0].objectness is not None
    if ranked:
        rules.append(f"{rules[0]}, objectness")
    counts: dict[str, list[list[Counts]]] = {rule: [] for rule in rules}
    won = of = 0.0
    for seed in range(seeds):
        scores: list[np.ndarray] = [np.zeros((0, 0))] * len(world.photos)
        thresholds = np.zeros((FOLDS, len(world.text)), np.float32)
        for fold in range(FOLDS):
            fitted = fit(world, config, fold, seed, steps)
            for i, score in zip(np.flatnonzero(fold_of == fold), fitted.scores, strict=True):
                scores[i] = score
            thresholds[fold] = fitted.thresholds
            won, of = won + fitted.presence[0], of + fitted.presence[1]
        for rule in rules:
            pairs = PairsConfig.model_validate({"assign": rule.partition(",")[0]})
            own = scores
            if "objectness" in rule:
                own = [
                    weighed(s, r.objectness, OBJECTNESS[chances], chances=chances)
                    for s, r in zip(scores, world.regions, strict=True)
                    if r.objectness is not None
                ]
            group = np.zeros(len(world.text), np.int64) if config.exclusive else np.full(len(world.text), -1)
            kept = [
                assign(s, pairs, thresholds[fold_of[i]][m], group[m])
                for i, (s, m) in enumerate(zip(own, world.mentions, strict=True))
            ]
            counts[rule].append(counted(world, own, kept))
    return {rule: row(f"{name}, {rule}", made, won / of) for rule, made in counts.items()}


def flat(world: World) -> Scores:
    return [
        np.ones((len(r.boxes), len(p.mentions)), np.float32) for p, r in zip(world.photos, world.regions, strict=True)
    ]


def without_fitting(world: World) -> list[Row]:
    """What a mapping must beat: rules that look at no pixel but by proposing."""
    random = np.random.default_rng(0)

    def largest(photo: CaptionedPhoto, regions: Regions) -> np.ndarray:
        return area(regions.boxes)

    def central(photo: CaptionedPhoto, regions: Regions) -> np.ndarray:
        centre = (regions.boxes[:, :2] + regions.boxes[:, 2:]) / 2
        return -np.abs(centre / (photo.width, photo.height) - 0.5).max(1)

    def drawn(photo: CaptionedPhoto, regions: Regions) -> np.ndarray:
        return random.random(len(regions.boxes))

    def objectlike(photo: CaptionedPhoto, regions: Regions) -> np.ndarray:
        assert regions.objectness is not None
        return regions.objectness

    rules: dict[str, Callable[[CaptionedPhoto, Regions], np.ndarray]] = {
        "the largest region": largest,
        "the most central region": central,
        "a region drawn at random": drawn,
    }
    if world.regions[0].objectness is not None:
        rules["the most object-like region"] = objectlike

    def found(name: str, chosen: Callable[[CaptionedPhoto, Regions], np.ndarray]) -> Row:
        pairs = [by_rule(r.boxes, p.mentions, chosen(p, r)) for p, r in zip(world.photos, world.regions, strict=True)]
        return row(name, [[compare(m, p.truth, len(world.text)) for m, p in zip(pairs, world.photos, strict=True)]])

    rows = [found("every region", lambda photo, regions: np.ones(len(regions.boxes), bool))]
    for name, rule in rules.items():
        rows.append(found(name, lambda photo, regions, rule=rule: highest(rule(photo, regions))))  # type: ignore[misc]
    return rows


def by_overlap(world: World) -> Row:
    """Every true pair that a region can meet, once: the most that these regions allow."""
    kept, scores = [], []
    for photo, regions, score in zip(world.photos, world.regions, flat(world), strict=True):
        overlap = iou(regions.boxes.astype(np.float64), photo.boxes.astype(np.float64))
        same = (overlap >= MATCH_IOU)[:, :, None] & (photo.category[:, None] == photo.mentions)[None]
        best = (same * overlap[:, :, None]).max(1, initial=0)
        pairs = pairs_of(regions.boxes, photo.mentions, best.astype(np.float32), best > 0)
        truth = photo.truth
        right = np.zeros(score.shape, bool)
        found = matched(pairs, truth) >= 0
        right[pairs.region[found], np.searchsorted(photo.mentions, pairs.attribute[found])] = True
        kept.append(right)
        scores.append(best.astype(np.float32))
    return row("what the regions allow", [counted(world, scores, kept)])


def by_boxes(world: World) -> Row:
    """The same features with the boxes of the training photos as labels: ridge regression on their names, or none of them;
    a region is given its likeliest name, if mentioned, and each attribute its best region at least."""
    labels = []
    for photo, regions in zip(world.photos, world.regions, strict=True):
        overlap = iou(regions.boxes.astype(np.float64), photo.boxes.astype(np.float64))
        nearest = overlap.argmax(1) if len(photo.boxes) else np.zeros(len(overlap), np.int64)
        met = overlap.max(1, initial=0) >= MATCH_IOU
        none = len(world.text)
        labels.append(np.where(met, photo.category[nearest], none) if len(photo.boxes) else np.full(len(met), none))
    scores: list[np.ndarray] = [np.zeros((0, 0))] * len(world.photos)
    kept: list[np.ndarray] = list(scores)
    for features, outside, inside in world.folds:
        x = np.concatenate([features[i].numpy() for i in outside]).astype(np.float64)
        y = np.eye(len(world.text) + 1)[np.concatenate([labels[i] for i in outside])]
        weight = np.linalg.solve(x.T @ x + 30.0 * np.eye(x.shape[1]), x.T @ (y - y.mean(0)))
        for i in inside:
            every = features[i].numpy() @ weight + y.mean(0)
            own = every[:, world.mentions[i]]
            scores[i] = own.astype(np.float32)
            kept[i] = (own == every.max(1, initial=-1, keepdims=True)) | (own == own.max(0, initial=-1, keepdims=True))
    return row("boxes as labels", [counted(world, scores, kept)])


def percent(sums: Float[np.ndarray, "B 3"]) -> Float[np.ndarray, "B 3"]:
    """Precision, recall and F1."""
    right, wrong, missed = sums.T
    return 100 * np.stack([right / np.maximum(right + wrong, 1), right / np.maximum(right + missed, 1), f1(sums)], 1)


def table(rows: Sequence[Row]) -> str:
    lines = [
        "| mapping | precision | recall | F1 (95 %) | sd of seeds | F1 without person | presence |",
        "|---|---|---|---|---|---|---|",
    ]
    for one in rows:
        precision, recall, both = percent(one.sums.sum(0)[None])[0]
        drawn = percent(image_weights(len(one.sums), REPETITIONS, 0) @ one.sums)[:, 2]
        low, high = np.quantile(drawn, [0.025, 0.975])
        others = percent(one.not_person.sum(0)[None])[0, 2]
        seen = "" if one.presence is None else f"{100 * one.presence:.1f}"
        spread = f"{100 * one.spread:.1f}" if one.spread else ""
        lines.append(
            f"| {one.name} | {precision:.1f} | {recall:.1f} | {both:.1f} ({low:.1f}–{high:.1f}) | {spread} | {others:.1f} "
            f"| {seen} |"
        )
    return "\n".join(lines)


def variants() -> dict[str, dict[str, object]]:
    """By name; every one on frozen features with the shared head unless it says otherwise."""
    losses = ("both", "negative_unlabelled", "noisy_or", "contrastive")
    paper = {"head": "per_attribute", "hidden": 64, "loss": "contrastive"}
    return {
        **{loss: {"loss": loss} for loss in losses},
        "both, exclusive": {"loss": "both", "exclusive": ["thing"]},
        "both, residual": {"loss": "both", "residual": True},
        "both, adapter": {"loss": "both", "encoder": "adapter"},
        "contrastive, adapter": {"loss": "contrastive", "encoder": "adapter"},
        "paper's heads": paper,
    }


PLAN = (  # regions, features, text, variant
    *(("annotated", "network", "clip", name) for name in ("both", "contrastive", "negative_unlabelled", "noisy_or")),
    *(("annotated", kind, "clip", "both") for kind in ("detector", "looks", "box")),
    ("annotated", "network", "clip", "both, exclusive"),
    ("segments", "network", "clip", "both"),
    ("segments", "network", "clip", "contrastive"),
    *(("annotated", "network", "clip", name) for name in ("both, residual", "both, adapter", "contrastive, adapter")),
    ("annotated", "network", "random", "both"),
    ("annotated", "network", "clip", "paper's heads"),
    *(("segments", kind, "clip", "both") for kind in ("detector", "looks")),
    ("segments", "network", "clip", "both, exclusive"),
)


def texts(data: Path, attributes: int) -> dict[str, Float[Tensor, "V V"]]:
    """Unit vectors of the names, in as many dimensions as they span: CLIP's, and random ones."""
    clip = np.load(data / "text/detic_metadata/coco_clip_a+cname.npy").astype(np.float64)
    random = np.random.default_rng(0).normal(size=(attributes, attributes))
    made = {"clip": np.linalg.qr(clip.T)[1].T, "random": random}
    return {name: torch.nn.functional.normalize(torch.from_numpy(v).float(), dim=-1) for name, v in made.items()}


@dataclass(frozen=True)
class Prepared:
    regions: dict[str, list[Regions]]
    features: dict[tuple[str, str], list[np.ndarray]]


def prepared(data: Path, photos: Sequence[CaptionedPhoto]) -> Prepared:
    folder = data / "weights/fastestdet"
    states = {
        "network": photo_features.weights(folder, photo_features.CLASSIFIER),
        "detector": photo_features.weights(folder, photo_features.DETECTOR),
    }
    made = Prepared({"annotated": [], "segments": []}, {})
    for photo in photos:
        pixels = photo_truth.pixels_of(photo)
        own = {"annotated": photo_truth.annotated(photo), "segments": photo_truth.proposed(photo, pixels)}
        for kind, regions in own.items():
            made.regions[kind].append(regions)
        found = photo_features.features(pixels, {kind: r.boxes for kind, r in own.items()}, states)
        for name, values in found.items():
            made.features.setdefault(name, []).append(values)
    return made


def kept_in(cache: Path | None, make: Callable[[], T]) -> T:
    """What `make` gives, from the pickle at `cache` where there is one."""
    if cache is None:
        return make()
    if not cache.exists():
        made = make()
        cache.parent.mkdir(parents=True, exist_ok=True)
        cache.write_bytes(pickle.dumps(made))
    found: T = pickle.loads(cache.read_bytes())
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--limit", type=int, help="the first photos only")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--cells", type=int, default=len(PLAN), help="the first rows of the plan only")
    parser.add_argument("--cache", type=Path, help="a folder for features and fits: what is there is not made again")
    given = parser.parse_args()
    torch.set_num_threads(1)
    started = time.process_time()
    phrases = photo_truth.vocabulary(given.data)
    photos = photo_truth.photos(given.data, phrases, given.limit)
    print(photo_truth.said_and_boxed(photos), flush=True)
    own = given.cache / str(given.limit or "all") if given.cache else None
    ready = kept_in(own and own / "features.pickle", lambda: prepared(given.data, photos))
    vectors = texts(given.data, len(phrases))
    worlds: dict[tuple[str, str, str], World] = {}
    rows: dict[str, list[Row]] = {"annotated": [], "segments": []}

    def world_of(kind: str, features: str, text: str = "clip") -> World:
        key = (kind, features, text)
        if key not in worlds:
            worlds[key] = World(photos, ready.regions[kind], ready.features[kind, features], vectors[text])
        return worlds[key]

    def mapped_by(cell: tuple[str, str, str, str]) -> list[Row]:
        kind, features, text, variant = cell
        config = MappingConfig.model_validate({"encoder": "frozen", "hidden": 128, **variants()[variant]})
        name = f"{features}: {variant}" + (", random text" if text == "random" else "")
        return list(mapped(world_of(kind, features, text), name, config, given.seeds).values())

    for kind in rows:
        rows[kind] += [*without_fitting(world_of(kind, "box")), by_overlap(world_of(kind, "box"))]
    for cell in PLAN[: given.cells]:
        at = own and own / f"{' '.join(cell)} {given.seeds}.pickle"
        rows[cell[0]] += kept_in(at, partial(mapped_by, cell))
        print(f"{cell} at {time.process_time() - started:.0f} CPU s", file=sys.stderr, flush=True)
    for kind in rows:
        for features in ("network", "detector", "looks", "box"):
            made = by_boxes(world_of(kind, features))
            rows[kind].append(replace(made, name=f"{features}: {made.name}"))
        print(f"\n## {kind}\n\n{table(rows[kind])}")
    print(f"\n{time.process_time() - started:.0f} CPU seconds")


if __name__ == "__main__":
    main()
