"""Metrics of a run from its committed sidecars: retrieval of each model, and quality of the mapping."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from shards import manifest, sidecar
from shards.commit import StageFolder
from shards.digest import fingerprint
from shards.reader import read_sidecar
from shards.store import Store
from villa_dist import models
from villa_dist.attributes import vocabulary
from villa_dist.config import Config
from villa_dist.evaluate import items
from villa_dist.evaluate.bootstrap import mapping_sums
from villa_dist.evaluate.figures import interval_of
from villa_dist.evaluate.mapping_quality import Counts, compare
from villa_dist.evaluate.streaming import streamed_r_precision
from villa_dist.evaluate.whole import vectors
from villa_dist.train.jobs import attribute_embeddings, model_folder
from villa_dist.types import RegionAttributePairs

EMBEDDED = pa.schema([("row", pa.int32())])


def retrieval(config: Config, split: str, job: str) -> dict[str, Any]:
    """R-Precision of a model on the true regions of a split, in percent: a2r, r2a, and a2r by attribute group. One shard
    at a time is in memory, and the scores where they are few enough for an interval (`items.WORK`)."""
    words = vocabulary.read(Store(config.run))
    folder = StageFolder(f"{config.run}/{split}", f"evaluate-{job}")
    base = manifest.read(StageFolder(f"{config.run}/{split}", "base"))

    def chunks() -> Iterator[items.Regions]:
        first = 0  # image of the shard
        for shard, samples in zip(base.shards, base.samples, strict=True):
            table = read_sidecar(folder, shard, EMBEDDED)
            truth = truth_matrix(config, split, shard, len(words))
            yield vectors(table, "embedding"), truth, first + table["row"].to_numpy().astype(np.int64)
            first += samples

    attribute = attribute_embeddings(models.load_vlm(model_folder(config, job)), words).numpy()
    found = streamed_r_precision(lambda: ((region, truth) for region, truth, _ in chunks()), attribute)
    kept = items.of_model(task(config, split), found, chunks(), attribute, base.total)
    items.write(Store(config.run), split, job, kept)
    groups = np.array(words.groups)
    return {
        **intervals(kept),
        "a2r": percent(found.a2r),
        "r2a": percent(found.r2a),
        "a2r_by_group": {g: _mean(found.by_attribute[groups == g]) for g in dict.fromkeys(groups)},
        "regions": int(sum(folder.marker(s).counts["regions"] for s in base.shards)),
    }


def task(config: Config, split: str) -> str:
    """Names what figures are measured on, images, true pairs and attributes, and how resamples of them are drawn (`items`):
    equal tasks are drawn alike."""
    told = [manifest.read(StageFolder(f"{config.run}/{split}", stage)).digest for stage in ("base", "truth")]
    return fingerprint([*told, vocabulary.read(Store(config.run)).fingerprint, items.SCHEME, items.RESAMPLES])


def intervals(kept: items.Items) -> dict[str, list[float]]:
    """`<metric>_interval` of each metric that has one, in percent."""
    found = {f"{name}_interval": interval_of(draws, 1.0) for name, draws in kept.draws.items()}
    return {name: [round(v, 2) for v in value] for name, value in found.items() if value is not None}


def truth_matrix(config: Config, split: str, shard: str, attributes: int) -> np.ndarray:
    """R x A: which true region of a shard has which attribute. Attribute ids of `truth` are those of the vocabulary."""
    table = read_sidecar(StageFolder(f"{config.run}/{split}", "truth"), shard, sidecar.PAIRS)
    _, box_at = sidecar.list_column(table, "boxes")
    region, pair_at = sidecar.list_column(table, "region")
    attribute, _ = sidecar.list_column(table, "attribute")
    row = region.astype(np.int64) + np.repeat(box_at[:-1], np.diff(pair_at))
    matrix = np.zeros((int(box_at[-1]), attributes), bool)
    matrix[row, attribute] = True
    return matrix


def pair_rows(
    config: Config, split: str, stage: str, shard: str, keys: Sequence[str] | None = None
) -> list[RegionAttributePairs]:
    """The pairs of every image of a shard, from a pairs-like sidecar. keys: what its rows must be of.

    Raises: ShardError when they are of others.
    """
    folder = StageFolder(f"{config.run}/{split}", stage)
    table = read_sidecar(folder, shard, sidecar.PAIRS)
    if keys is not None:
        sidecar.check_aligned(table, keys, f"{folder.store.path(shard)}.parquet")
    boxes, box_at = sidecar.list_column(table, "boxes")
    region, at = sidecar.list_column(table, "region")
    attribute, _ = sidecar.list_column(table, "attribute")
    score, _ = sidecar.list_column(table, "score")
    return [
        RegionAttributePairs(
            boxes[box_at[i] : box_at[i + 1]],
            region[at[i] : at[i + 1]].astype(np.int64),
            attribute[at[i] : at[i + 1]].astype(np.int64),
            score[at[i] : at[i + 1]],
        )
        for i in range(len(table))
    ]


def mapping(config: Config, split: str) -> dict[str, Any]:
    """Micro precision, recall and F1 of the pairs of a split, in percent, and F1 by attribute group."""
    words = vocabulary.read(Store(config.run))
    groups = np.array(words.groups)
    total, pairs = Counts.zero(len(words)), 0
    images: list[Counts] = []  # of one attribute: all together
    for shard in manifest.read(StageFolder(f"{config.run}/{split}", "pairs")).shards:
        found, true = (pair_rows(config, split, stage, shard) for stage in ("pairs", "truth"))
        for mine, theirs in zip(found, true, strict=True):
            counts = compare(mine, theirs, len(words))
            total = total + counts
            images.append(Counts(*(c.sum(keepdims=True) for c in (counts.right, counts.wrong, counts.missed))))
            pairs += len(mine.region)
    every = total.over(np.ones(len(words), bool))
    by_group = {g: percent(total.over(groups == g)["f1"]) for g in dict.fromkeys(words.groups)}
    kept = items.Items(task(config, split), items.mapping_draws(mapping_sums(images)))
    items.write(Store(config.run), split, "mapping", kept)
    return {**intervals(kept), **{k: percent(v) for k, v in every.items()}, "f1_by_group": by_group, "pairs": pairs}


def _mean(values: np.ndarray) -> float | None:
    """In percent; None where no attribute of a group occurs."""
    known = values[~np.isnan(values)]
    return percent(float(known.mean())) if len(known) else None


def percent(value: float) -> float:
    return round(100.0 * value, 2)
