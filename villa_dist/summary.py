"""The result table of a run as text."""

from __future__ import annotations

from typing import Any

from villa_dist.names import TITLES, VLMS


def table(metrics: dict[str, Any], report: str) -> str:
    """The result table in plain text; R-Precision in percent."""
    lines = [f"{'R-Precision (%)':<20}{'A -> R':>8}{'R -> A':>8}"]
    for name in VLMS:
        if name in metrics:
            lines.append(f"{TITLES[name]:<20}{metrics[name]['a2r']:>8.1f}{metrics[name]['r2a']:>8.1f}")
    if "mapping" in metrics:
        m = metrics["mapping"]
        lines.append(f"mapping: precision {m['precision']:.1f}, recall {m['recall']:.1f}, F1 {m['f1']:.1f}")
    return "\n".join([*lines, f"report: {report}"])
