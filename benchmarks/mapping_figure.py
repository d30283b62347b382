"""F1 of mappings against the CPU seconds of their fit, from the cells that benchmarks.mapping has kept.

python -m benchmarks.mapping_figure runs/mapping-benchmark/cells docs/img/mapping_cost.png [--split test]

A panel a target; a point is the mean over seeds of one variant with one number of steps, a line a variant.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path

import yaml
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from benchmarks.mapping import VARIANTS
from benchmarks.study_cells import Cell, grouped

COLOURS = (
    "#7f1d1d",
    "#d9730d",
    "#b8a100",
    "#5b8c2a",
    "#2f855a",
    "#1d8a99",
    "#1f5fa8",
    "#5b3fa8",
    "#a83f8f",
    "#111827",
    "#6b7280",
)
Line = list[tuple[float, float]]  # (CPU seconds, F1), rising


def lines(found: list[Cell]) -> dict[str, Line]:
    """By variant, most F1 first."""
    made: dict[str, Line] = {}
    for (name,), mine in grouped(found, "variant").items():
        point = (statistics.fmean(m["cpu_seconds"] for m in mine), statistics.fmean(m["f1"] for m in mine))
        made.setdefault(name.partition(",")[0], []).append(point)
    return {n: sorted(made[n]) for n in sorted(made, key=lambda n: -max(f1 for _, f1 in made[n]))}


def figure(found: list[Cell]) -> Figure:
    targets = grouped(found, "target")
    known = list(yaml.safe_load(VARIANTS.read_text()))
    made = Figure(figsize=(1 + 5.5 * len(targets), 4.8), layout="constrained")
    panels = made.subplots(1, len(targets), squeeze=False, sharey=True)[0]
    for panel, ((target,), mine) in zip(panels, sorted(targets.items()), strict=True):
        for name, line in lines(mine).items():
            n = known.index(name)
            look = {"marker": "osD^v<>PX*h"[n % 11], "color": COLOURS[n % len(COLOURS)]}
            panel.plot(*zip(*line, strict=True), label=name, linewidth=1.5, **look)
        panel.set(xscale="log", xlabel="CPU seconds of the fit", title=f"target complexity {target}")
        panel.grid(alpha=0.3)
        panel.legend(fontsize=8, loc="lower right")
    panels[0].set_ylabel("F1 of pairs (%)")
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cells", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--split", default="test")
    given = parser.parse_args()
    found = [json.loads(path.read_text()) for path in sorted(given.cells.glob("*.json"))]
    found = [cell for cell in found if cell["split"] == given.split]
    if not found:
        parser.error(
            f"{given.cells} holds no cell of the {given.split} split; make some by python -m benchmarks.mapping"
        )
    FigureCanvasAgg(figure(found)).print_png(given.out)


if __name__ == "__main__":
    main()
