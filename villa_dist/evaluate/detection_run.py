"""Zero-shot detection as a part of a run: which stages run on a split, and what they need before they can."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from typing import Any

import pyarrow as pa

from shards import manifest
from shards.commit import StageFolder
from shards.digest import fingerprint
from shards.errors import ShardError, StaleStageError
from shards.reader import read_sidecar
from shards.store import Store
from villa_dist import claims
from villa_dist.config import Config
from villa_dist.config_evaluate import DetectionConfig
from villa_dist.evaluate import classes as choice
from villa_dist.evaluate import detection_table as reduce
from villa_dist.evaluate import known_boxes
from villa_dist.evaluate.classes import Classes
from villa_dist.evaluate.errors import EvaluationError
from villa_dist.evaluate.known_boxes import KNOWN, TruthFile
from villa_dist.evaluate.models_measured import put_class_vectors, rows
from villa_dist.evaluate.zero_shot import read_templates
from villa_dist.observe import LOG
from villa_dist.stages.detect import schema

ENGINES = {  # what they import, by engine and protocol
    ("official", "coco"): "pycocotools",
    ("official", "lvis"): "lvis",
    ("faster-coco-eval", "coco"): "faster_coco_eval",
    ("faster-coco-eval", "lvis"): "faster_coco_eval",
}
ONE_PROMPT = ("a photo of a {}",)
RunStage = Callable[..., Any]  # Pipeline._shards


def check(config: Config) -> None:
    """Find before the first stage what would end the run after its last: files, classes, baselines.

    Raises: VillaError.
    """
    wanted = config.evaluate.detection
    if wanted is None:
        return
    _templates(wanted)
    needed = ENGINES.get((wanted.engine, wanted.protocol))
    if needed and find_spec(needed) is None:
        raise EvaluationError(
            f"evaluate.detection.engine={wanted.engine} needs {needed}, which is not installed; pip install it, or use "
            "engine=fast"
        )
    if wanted.truth is not None:
        truth = known_boxes.read_file(wanted.truth).truth
        choice.chosen(wanted, truth.names, truth.categories.tolist(), wanted.truth)


def detection(config: Config, split: str, run: RunStage) -> dict[str, Any]:
    """Run the stages of detection on a split and reduce them. Raises: VillaError."""
    wanted = config.evaluate.detection
    assert wanted is not None
    shards = claims.stage_manifest(config, split).shards
    file = known_boxes.read_file(wanted.truth) if wanted.truth is not None else None
    params = {
        "truth": known_boxes.put_truth(Store(config.run), file) if file else None,
        "proposals": regions_from(config, split) if "proposals" in wanted.modes else "none",
    }
    run("boxes", split, claims.boxes(config, split, file.digest if file else "samples"), shards, params)
    known = _tables(config, split, "boxes", KNOWN)
    names, classes = _classes(wanted, known, file)
    truth = known_boxes.split_truth(known, file, names, classes, wanted.drop_empty_images)
    measured, templates = [], _templates(wanted)
    for row in rows(config):
        vectors = put_class_vectors(config, row, classes.names, templates)
        claim = claims.detect(config, split, row.name, row.digest(config), classes.names, templates)
        run("detect", split, claim, shards, {"model": row, "vectors": vectors, "classes": classes.names})
        found = _tables(config, split, f"detect-{row.name}", schema(wanted.modes))
        measured.append(reduce.figures(wanted, row, found, truth, classes))
    result = reduce.together(wanted, measured, truth, classes)
    for line in result["warnings"]:
        LOG.warning("detection %s: %s", split, line)
    for line in reduce.lines(result):
        LOG.info("%s", line)
    return result


def _templates(wanted: DetectionConfig) -> tuple[str, ...]:
    return ONE_PROMPT if wanted.templates is None else read_templates(wanted.templates)


def _classes(wanted: DetectionConfig, known: list[pa.Table], file: TruthFile | None) -> tuple[list[str], Classes]:
    """(names of all categories, those that compete). Without a file a class may be asked for that no sample has."""
    if file is not None:
        truth = file.truth
        return list(truth.names), choice.chosen(wanted, truth.names, truth.categories.tolist(), file.place)
    listed = [c for c in choice.asked(wanted) if isinstance(c, str)]
    names = sorted({*known_boxes.names_of(known), *listed})
    return names, choice.chosen(wanted, names, list(range(1, len(names) + 1)), "the samples' .json")


def regions_from(config: Config, split: str) -> str:
    """Where proposals come from: the regions stage's sidecars where they are of this config, else they are made."""
    folder = StageFolder(claims.dataset(config, split), "regions")
    try:
        claim = claims.regions(config, split)
        current = fingerprint(folder.claimed()) == fingerprint(claim.config) and manifest.exists(folder)
        every = manifest.read(folder).shards == claims.stage_manifest(config, split).shards if current else False
    except (ShardError, StaleStageError):
        return "make"
    return "regions" if every else "make"


def _tables(config: Config, split: str, stage: str, columns: pa.Schema) -> list[pa.Table]:
    folder = StageFolder(claims.dataset(config, split), stage)
    read = partial(read_sidecar, folder, schema=columns)
    return [read(shard) for shard in manifest.read(folder).shards]
