"""The complexity study: how each VLM's R-Precision falls as images hold more region-attribute pairs.

Claim 1: the one-to-one VLM loses with complexity. Claim 2: ViLLA beats it, the more so the higher the complexity.
"""

from __future__ import annotations

import io
import json
import statistics
from collections.abc import Sequence
from typing import Any

from shards.store import Store
from villa_dist.config import Config, StudyConfig
from villa_dist.names import TITLES, VLMS

DIRECTIONS = {"a2r": "attribute → region", "r2a": "region → attribute"}


def cells(study: StudyConfig) -> list[Config]:
    """The runs of a study, in the order setting, target, seed."""
    made = []
    for setting in study.settings:
        for target in study.targets:
            for seed in study.seeds:
                values = study.base.model_dump(mode="json")
                values["run"] = f"{study.out}/{setting}/target{target:02d}-seed{seed}"
                values["seed"] = seed
                values["docmnist"]["target"] = target
                if setting == "equal_images":
                    values["docmnist"]["images"]["train"] = study.images
                made.append(Config.model_validate(values))
    return made


def summarise(study: StudyConfig, results: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Table, plot and JSON in the study's folder. results: of `cells(study)`, in order."""
    rows, at = [], 0
    for setting in study.settings:
        for target in study.targets:
            rows.append(row(setting, target, results[at : at + len(study.seeds)]))
            at += len(study.seeds)
    store = Store(study.out)
    text = markdown(rows, len(study.seeds))
    store.put("study.json", json.dumps(rows, indent=1).encode())
    store.put("study.md", text.encode())
    store.put("study.png", plot(rows))
    return {"study": study.out, "table": store.path("study.md"), "plot": store.path("study.png"), "rows": rows}


def row(setting: str, target: int, results: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Mean and standard deviation over seeds of one cell of the table, in percent."""
    values: dict[str, Any] = {
        "setting": setting,
        "target": target,
        "seeds": len(results),
        "images": spread([r["images"]["train"] for r in results]),
        "mapping_f1": spread([r["metrics"]["mapping"]["f1"] for r in results]),
    }
    for direction in DIRECTIONS:
        for model in VLMS:
            if model in results[0]["metrics"]:
                values[f"{model}_{direction}"] = spread([r["metrics"][model][direction] for r in results])
        gains = [r["metrics"]["villa"][direction] - r["metrics"]["one_to_one"][direction] for r in results]
        values[f"gain_{direction}"] = spread(gains)
        if "ground_truth" in results[0]["metrics"]:
            room = [r["metrics"]["ground_truth"][direction] - r["metrics"]["one_to_one"][direction] for r in results]
            values[f"closed_{direction}"] = spread(
                [100 * g / w if w else 0.0 for g, w in zip(gains, room, strict=True)]
            )
    return values


def spread(values: Sequence[float]) -> list[float]:
    """[mean, sample standard deviation]."""
    return [round(statistics.fmean(values), 2), round(statistics.stdev(values), 2) if len(values) > 1 else 0.0]


def markdown(rows: Sequence[dict[str, Any]], seeds: int) -> str:
    """The table, mean ± standard deviation over seeds."""
    head = [
        "setting",
        "target",
        "images",
        "direction",
        *(TITLES[job] for job in VLMS),
        "gain",
        "gap closed %",
        "mapping F1",
    ]
    lines = [
        f"R-Precision on the test split in percent, mean ± sd over {seeds} seeds.",
        "",
        "| " + " | ".join(head) + " |",
        "|" + "---|" * len(head),
    ]
    for r in rows:
        for direction, title in DIRECTIONS.items():
            shown = [_shown(r.get(f"{model}_{direction}")) for model in VLMS]
            closed, f1 = _shown(r.get(f"closed_{direction}")), _shown(r["mapping_f1"])
            images = f"{r['images'][0]:,.0f}"
            parts = [r["setting"], str(r["target"]), images, title, *shown, _shown(r[f"gain_{direction}"]), closed, f1]
            lines.append("| " + " | ".join(parts) + " |")
    return "\n".join(lines) + "\n"


def _shown(value: list[float] | None) -> str:
    return "-" if value is None else f"{value[0]:.1f} ± {value[1]:.1f}"


def plot(rows: Sequence[dict[str, Any]]) -> bytes:
    """R-Precision against complexity: a panel for each setting and direction, bars of one standard deviation. PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    settings = list(dict.fromkeys(r["setting"] for r in rows))
    figure = Figure(figsize=(9.0, 3.6 * len(settings)), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(len(settings), 2, squeeze=False, sharey=True)
    styles = {"one_to_one": ("#b3541e", "o"), "villa": ("#1f5fa8", "s"), "ground_truth": ("#5c7a29", "^")}
    for line, setting in zip(panels, settings, strict=True):
        for panel, (direction, title) in zip(line, DIRECTIONS.items(), strict=True):
            mine = [r for r in rows if r["setting"] == setting and f"villa_{direction}" in r]
            for model in VLMS:
                known = [r for r in mine if f"{model}_{direction}" in r]
                mean = [r[f"{model}_{direction}"][0] for r in known]
                sd = [r[f"{model}_{direction}"][1] for r in known]
                colour, marker = styles[model]
                targets = [r["target"] for r in known]
                panel.errorbar(targets, mean, sd, label=TITLES[model], color=colour, marker=marker, capsize=3)
            panel.set_title(f"{title}, {setting.replace('_', ' ')}", fontsize=10)
            panel.set_xlabel("target complexity (attributes an image may hold)")
            panel.set_xticks(sorted({r["target"] for r in mine}))
            panel.set_ylim(0, 100)
            panel.grid(alpha=0.3)
        line[0].set_ylabel("R-Precision (%)")
    panels[0][0].legend(fontsize=9, loc="lower left")
    sink = io.BytesIO()
    figure.savefig(sink, dpi=130, format="png")
    return sink.getvalue()
