"""The result table of a run as text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from villa_dist.names import TITLES, VLMS

WIDTH = 20


def table(metrics: Mapping[str, Any], report: str) -> str:
    """The result table in plain text; R-Precision in percent, with the interval of 95 % of the resamples of images."""
    lines = [f"{'R-Precision (%)':<{WIDTH}}{'A -> R':>{WIDTH}}{'R -> A':>{WIDTH}}"]
    for name in VLMS:
        if name in metrics:
            values = "".join(f"{figure(metrics[name], m):>{WIDTH}}" for m in ("a2r", "r2a"))
            lines.append(f"{TITLES[name]:<{WIDTH}}{values}")
    if "mapping" in metrics:
        m = metrics["mapping"]
        lines.append(f"mapping: precision {figure(m, 'precision')}, recall {figure(m, 'recall')}, F1 {figure(m, 'f1')}")
    return "\n".join([*lines, f"report: {report}"])


def figure(told: Mapping[str, Any], name: str) -> str:
    """`88.0 (87.5-88.4)`; the figure alone where no interval is known."""
    interval = told.get(f"{name}_interval")
    span = f" ({interval[0]:.1f}-{interval[1]:.1f})" if interval else ""
    return f"{told[name]:.1f}{span}"
