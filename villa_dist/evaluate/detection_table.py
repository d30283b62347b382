"""The figures of zero-shot detection from committed sidecars: average precision by group, top-1 and top-5 on true boxes,
intervals and paired differences. Figures are percent, None where the truth has nothing of the kind.

Letters: I images, B1 resamples and, first, the images as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from shards import sidecar
from villa_dist.config_evaluate import DetectionConfig
from villa_dist.evaluate.ap_bootstrap import ap_draws, drawn_weights
from villa_dist.evaluate.average_precision import by_group
from villa_dist.evaluate.bootstrap import ratio
from villa_dist.evaluate.classes import Classes
from villa_dist.evaluate.coco_engine import coco_average_precision
from villa_dist.evaluate.detection import Detections
from villa_dist.evaluate.figures import interval_of, rounded, title
from villa_dist.evaluate.known_boxes import SplitTruth
from villa_dist.evaluate.lvis_engine import lvis_average_precision
from villa_dist.evaluate.models_measured import Measured
from villa_dist.evaluate.zero_shot import COCO, LVIS
from villa_dist.names import CHANCE

LVIS_GROUPS = {"rare": "r", "common": "c", "frequent": "f"}
ACCURACY = (1, 5)  # top-k on true boxes
AREAS = ("AP75", "APs", "APm", "APl", "AR")


@dataclass(frozen=True)
class Row:
    """A model's figures, and what they are under each resample: by (mode, group), fractions."""

    name: str
    title: str
    figures: dict[str, Any]
    draws: dict[tuple[str, str], np.ndarray]


def main_metric(config: DetectionConfig) -> str:
    """What intervals and differences are of."""
    return "AP" if config.protocol == "lvis" else "AP50"


def groups_of(config: DetectionConfig, truth: SplitTruth, classes: Classes) -> dict[str, np.ndarray]:
    """Category ids of novel and base, or of LVIS' frequencies."""
    if config.protocol == "lvis" and truth.truth.frequency is not None:
        frequency = np.array(truth.truth.frequency)
        return {name: truth.truth.categories[frequency == f] for name, f in LVIS_GROUPS.items()}
    return {name: np.array(ids) for name, ids in classes.groups.items()}


def detections_of(tables: Sequence[pa.Table], mode: str, truth: SplitTruth, classes: Classes) -> Detections:
    """A model's detections with the ids of the truth. Images without truth are left out."""
    parts, start = [], 0
    for table in tables:
        box, at = sidecar.list_column(table, f"{mode}_box")
        image = np.repeat(truth.rows[start : start + len(table)], np.diff(at))
        category = np.array(classes.ids, np.int64)[sidecar.list_column(table, f"{mode}_class")[0]]
        score, _ = sidecar.list_column(table, f"{mode}_score")
        found = Detections(image, category, box, score)
        parts.append(found.take(np.isin(image, truth.truth.images)))
        start += len(table)
    return Detections.join(parts)


def figures(
    config: DetectionConfig, row: Measured, tables: Sequence[pa.Table], truth: SplitTruth, classes: Classes
) -> Row:
    """One model's figures. Raises: EvaluationError."""
    groups, lvis = groups_of(config, truth, classes), config.protocol == "lvis"
    weights = drawn_weights(len(truth.truth.images), config.bootstrap)
    measured: dict[str, Any] = {}
    draws: dict[tuple[str, str], np.ndarray] = {}
    per_image = (LVIS if lvis else COCO).per_image
    for mode in config.modes:
        found = detections_of(tables, mode, truth, classes)
        judge = lvis_average_precision if lvis else coco_average_precision
        judged = judge(truth.truth, found, engine=config.engine, per_image=per_image)
        of_groups = by_group(judged.table, groups)
        here: dict[str, Any] = {g: {m: percent(v) for m, v in f.items()} for g, f in of_groups.items()}
        here["all"] |= {m: percent(judged.metrics[m]) for m in AREAS}
        here["detections"] = len(found)
        if config.bootstrap:
            every = {**groups, "all": None}
            drawn = ap_draws(
                truth.truth, found, weights, every, metric=main_metric(config), lvis=lvis, per_image=per_image
            )
            for group, values in drawn.items():
                draws[mode, group] = values
                here[group]["interval"] = interval_of(values)
        measured[mode] = here
    if "truth" in config.modes:
        measured["truth"]["boxes"] = int(_hits(tables, "top1", truth)[:, 1].sum())
        for k in ACCURACY:
            draws["truth", f"top{k}"] = hits = ratio((weights @ _hits(tables, f"top{k}", truth)).astype(np.float64))
            measured["truth"][f"top{k}"] = percent(float(hits[0]))
            if config.bootstrap:
                measured["truth"][f"top{k}_interval"] = interval_of(hits)
    return Row(row.name, row.title, measured, draws if config.bootstrap else {})


def _hits(tables: Sequence[pa.Table], name: str, truth: SplitTruth) -> np.ndarray:
    """I x 2: right ones and all true boxes of each image, in the order of the truth's images."""
    image = truth.rows
    columns = [np.concatenate([table[c].to_numpy() for table in tables]) for c in (name, "known")]
    known = np.isin(image, truth.truth.images)
    place = np.searchsorted(truth.truth.images, image[known])
    out = np.zeros((len(truth.truth.images), 2))
    for i, column in enumerate(columns):
        out[place, i] = column[known]
    return out


def together(config: DetectionConfig, rows: Sequence[Row], truth: SplitTruth, classes: Classes) -> dict[str, Any]:
    """The result of a split: every model, and ViLLA against each of the others."""
    groups = groups_of(config, truth, classes)
    boxes = int((~truth.truth.crowd).sum())
    warnings = list(truth.warnings)
    lost = boxes - rows[0].figures["truth"]["boxes"] if rows and "truth" in config.modes else 0
    if lost:
        warnings.append(
            f"{lost} of {boxes} true boxes have no area inside their image, so they were not classified and count as "
            "missed; is the truth of these images?"
        )
    return {
        "protocol": config.protocol,
        "images": len(truth.truth.images),
        "true_boxes": boxes,
        "classes": {**{name: len(ids) for name, ids in groups.items()}, "all": len(classes.ids)},
        "warnings": warnings,
        "resamples": config.bootstrap,
        CHANCE: {f"top{k}": percent(min(1.0, k / len(classes.ids))) for k in ACCURACY if "truth" in config.modes},
        "models": {r.name: r.figures for r in rows},
        "differences": differences(config, rows),
    }


def differences(config: DetectionConfig, rows: Sequence[Row]) -> list[dict[str, Any]]:
    """ViLLA less each of the others, on the same resamples, for each kind of boxes, group and accuracy."""
    villa = next((r for r in rows if r.name == "villa"), None)
    found: list[dict[str, Any]] = []
    for other in rows if villa else ():
        for (mode, group), mine in villa.draws.items() if villa and other is not villa else ():
            drawn = mine - other.draws[mode, group]
            low_high = interval_of(drawn)
            if low_high is None:
                continue
            accuracy = group.startswith("top")
            found.append(
                {
                    "boxes": mode,
                    "group": "all" if accuracy else group,
                    "metric": group if accuracy else main_metric(config),
                    "first": other.name,
                    "second": "villa",
                    "difference": percent(float(drawn[0]), negative=True),
                    "interval": low_high,
                    "significant": low_high[0] > 0 or low_high[1] < 0,
                }
            )
    return found


def percent(value: float, *, negative: bool = False) -> float | None:
    """negative: of a difference; elsewhere -1 says that there is nothing of the kind."""
    return None if value < 0 and not negative else rounded(value)


def lines(result: dict[str, Any]) -> list[str]:
    """The result as a table in plain text: one a kind of boxes."""
    groups = list(result["classes"])
    told = []
    metric = "AP" if result["protocol"] == "lvis" else "AP50"
    modes = [m for m in ("truth", "proposals") if any(m in f for f in result["models"].values())]
    for mode in modes:
        columns = (
            [f"{metric} {g}" for g in groups] + ["AP all"] * (metric != "AP") + ["top-1", "top-5"] * (mode == "truth")
        )
        told.append(f"zero-shot detection on {'true boxes' if mode == 'truth' else 'proposals'} (%), {_sizes(result)}")
        width = max(20, *(len(title(n)) + 1 for n in result["models"]))
        told.append(" " * width + "".join(f"{c:>15}" for c in columns))
        for name, found in result["models"].items():
            here = found[mode]
            values = [here[g][metric] for g in groups] + [here["all"]["AP"]] * (metric != "AP")
            values += [here["top1"], here["top5"]] if mode == "truth" else []
            told.append(_line(name, values, width))
        if mode == "truth":
            values = [None] * (len(columns) - len(ACCURACY)) + [result[CHANCE][f"top{k}"] for k in ACCURACY]
            told.append(_line(CHANCE, values, width))
    for d in result["differences"]:
        if d["group"] == "all":
            low, high = d["interval"]
            told.append(
                f"ViLLA - {title(d['first'])}, {d['boxes']}, {d['metric']}: {d['difference']:+.1f} "
                f"(95 % {low:+.1f} to {high:+.1f})"
            )
    return told


def _line(row: str, values: Sequence[float | None], width: int) -> str:
    return f"{title(row):<{width}}" + "".join(f"{_shown(v):>15}" for v in values)


def _sizes(result: dict[str, Any]) -> str:
    classes = ", ".join(f"{n} {name}" for name, n in result["classes"].items())
    return f"{result['images']} images, {result['true_boxes']} boxes, classes: {classes}"


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"
