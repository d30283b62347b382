"""What `evaluate` measures beside known pairs, by the name it has in the config and in results.json.

detection      boxes once, detect once a model           detection_run.py
mapping_boxes  what detection knows of boxes, and pairs  mapping_boxes_run.py
recall         whole once a model                        recall_run.py
classes        the same sidecars of whole                class_run.py
fine_grained   phrases once a model                      fine_grained_run.py
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from villa_dist import claims
from villa_dist.config import Config
from villa_dist.evaluate import class_run, detection_run, fine_grained_run, mapping_boxes_run, recall_run
from villa_dist.evaluate.errors import NothingHereError
from villa_dist.evaluate.figures import lines, tables
from villa_dist.evaluate.models_measured import rows
from villa_dist.observe import LOG

RunStage = Callable[..., Any]  # Pipeline._shards


def check(config: Config) -> None:
    """Find before the first stage what would end the run after its last: files, classes, baselines. Raises: VillaError."""
    wanted = config.evaluate
    detection_run.check(config)
    if wanted.fine_grained is not None:
        fine_grained_run.annotated(config)
    if wanted.classes is not None:
        class_run.class_prompts(wanted.classes)
        class_run.labelled(wanted.classes)
    for row in rows(config):
        if row.baseline is not None:
            row.digest(config)


def measure(config: Config, splits: Sequence[str], run: RunStage) -> dict[str, Any]:
    """By part, then split; parts that are not asked for are left out. Raises: VillaError."""
    wanted, found = config.evaluate, {}
    if wanted.detection is not None:
        found["detection"] = {split: detection_run.detection(config, split, run) for split in splits}
        judged = {split: mapping_boxes_run.mapping_boxes(config, split) for split in splits}
        found["mapping_boxes"] = {split: told for split, told in judged.items() if told is not None}
    if wanted.recall or wanted.classes is not None:
        for split in splits:
            _embed(config, split, run)
    if wanted.recall:
        found["recall"] = {split: recall_run.recall(config, split) for split in splits}
    if wanted.classes is not None:
        found["classes"] = _where_there_is(splits, partial(class_run.classes, config))
    if wanted.fine_grained is not None:
        found["fine_grained"] = _where_there_is(splits, partial(fine_grained_run.fine_grained, config, run=run))
    for table in tables(found):
        for warning in table.warnings:
            LOG.warning("%s %s: %s", table.part, table.split, warning)
        for line in lines(table):
            LOG.info("%s", line)
    return {name: results for name, results in found.items() if results}


def _where_there_is(splits: Sequence[str], measure: Callable[[str], dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """By split. Raises: NothingHereError when no split has an image to measure on."""
    found, nothing = {}, []
    for split in splits:
        try:
            found[split] = measure(split)
        except NothingHereError as error:
            nothing.append(error)
    if nothing and not found:
        raise nothing[0]
    for here in nothing:
        LOG.warning("%s", here)
    return found


def _embed(config: Config, split: str, run: RunStage) -> None:
    shards = claims.stage_manifest(config, split).shards
    field = config.evaluate.classes.field if config.evaluate.classes else None
    for row in rows(config):
        claim = claims.whole(config, split, row.name, row.digest(config))
        run("whole", split, claim, shards, {"model": row, "field": field})
