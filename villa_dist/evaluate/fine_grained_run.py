"""The right phrase among hard negatives (FG-OVD) as a part of a run: every model on the same boxes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from shards import manifest, sidecar
from shards.commit import StageFolder
from shards.reader import read_sidecar
from shards.store import Store
from villa_dist import claims
from villa_dist.config import Config
from villa_dist.evaluate.bootstrap import per_image
from villa_dist.evaluate.errors import EvaluationError, NothingHereError
from villa_dist.evaluate.figures import Mean, rounded, together
from villa_dist.evaluate.fine_grained import PhraseRanks
from villa_dist.evaluate.models_measured import rows
from villa_dist.evaluate.phrases import PhraseBox, digest, put_phrases, read_files
from villa_dist.stages.phrases import FIGURES, RANKS

NAMES = {"top1": 100.0, "rank": 1.0, "worst_rank": 1.0}  # figures, and what they are told in
TOLD = {"top1": "top1", "rank": "mean_rank", "worst_rank": "mean_rank_ties_lost"}
RunStage = Callable[..., Any]  # Pipeline._shards


def annotated(config: Config) -> list[PhraseBox]:
    """The rows of all files. Raises: EvaluationError."""
    wanted = config.evaluate.fine_grained
    assert wanted is not None
    return read_files(wanted.files, wanted.negatives)


def fine_grained(config: Config, split: str, run: RunStage) -> dict[str, Any]:
    """Run the stage on a split for every model and reduce it: a result a subset. Raises: VillaError."""
    boxes = annotated(config)
    name, told = put_phrases(Store(config.run), boxes), digest(boxes)
    shards = claims.stage_manifest(config, split).shards
    found = {}
    for row in rows(config):
        claim = claims.phrases_of_boxes(config, split, row.name, row.digest(config), told)
        run("phrases", split, claim, shards, {"model": row, "boxes": name})
        found[row.name] = _ranks(config, split, row.name, boxes)
        warnings = _left_out(config, split, boxes, found[row.name][0])
    asked, image, _ = next(iter(found.values()))
    results = {}
    for subset in dict.fromkeys(row.subset for row in boxes):
        here = np.array([boxes[n].subset == subset for n in asked], bool)
        if not here.any():
            warnings.append(f"no image of {split} has a box of {subset!r}; it is left out")
            continue
        units, unit = np.unique(image[here], return_inverse=True)
        figures = {
            model: {TOLD[f]: Mean(per_image(values[here, FIGURES.index(f)], unit, len(units)), NAMES[f]) for f in NAMES}
            for model, (_, _, values) in found.items()
        }
        phrases = np.array([len(boxes[n].phrases) for n in asked[here]])
        by_chance = PhraseRanks.by_chance(phrases)
        results[subset] = {
            "boxes": int(here.sum()),
            "images": len(units),
            "negatives": [int(phrases.min()) - 1, int(phrases.max()) - 1],
            "chance": {TOLD[f]: rounded(float(getattr(by_chance, f).mean()), NAMES[f]) for f in NAMES},
            **together(figures, config.evaluate.bootstrap),
        }
    return {"warnings": warnings, "subsets": results}


def _ranks(
    config: Config, split: str, row: str, boxes: Sequence[PhraseBox]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(row of the annotations, image, figures) of each box that was asked, in the order of the annotations.

    Raises: EvaluationError when two samples are the same image.
    """
    folder = StageFolder(claims.dataset(config, split), f"phrases-{row}")
    parts, keys, start = [], [], 0
    for shard in manifest.read(folder).shards:
        table = read_sidecar(folder, shard, RANKS)
        asked, at = sidecar.list_column(table, "asked")
        image = start + np.repeat(np.arange(len(table)), np.diff(at))
        parts.append(np.stack([asked, image, *(sidecar.list_column(table, f)[0] for f in FIGURES)], 1))
        keys += table["key"].to_pylist()
        start += len(table)
    every = np.concatenate([np.zeros((0, 2 + len(FIGURES))), *parts])
    every = every[np.argsort(every[:, 0], kind="stable")]
    asked, image = every[:, 0].astype(np.int64), every[:, 1].astype(np.int64)
    twice = np.flatnonzero(np.diff(asked) == 0)
    if len(twice):
        one, other = (keys[image[n]] for n in (twice[0], twice[0] + 1))
        place = boxes[asked[twice[0]]]
        raise EvaluationError(
            f"{place.place}: samples {one!r} and {other!r} of {split} are both its image {place.image}; leave one out "
            "(villa shards reshard --exclude)"
        )
    return asked, image, every[:, 2:]


def _left_out(config: Config, split: str, boxes: Sequence[PhraseBox], asked: np.ndarray) -> list[str]:
    """What is said of boxes without a sample. Raises: EvaluationError when none has one."""
    missing = np.setdiff1d(np.arange(len(boxes)), asked)
    if not len(missing):
        return []
    first = boxes[missing[0]]
    if len(missing) == len(boxes):
        raise NothingHereError(
            f"evaluate.fine_grained: none of {len(boxes)} boxes is of an image of {claims.dataset(config, split)}: "
            f"{first.place} is of {first.image}, and a sample must have its image_id in its .json, or a key that ends as "
            "that path does"
        )
    return [
        f"{len(missing)} of {len(boxes)} boxes are of images without a sample here (such as {first.image}) and do not count"
    ]
