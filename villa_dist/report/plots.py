"""Training curves as SVG data URIs, one drawing for light pages and one for dark ones.

Figures are built by matplotlib's object-oriented API, so that no global state of pyplot is touched, and carry neither
dates nor random ids: the same metrics give the same bytes.
"""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from villa_dist.names import TITLES
from villa_dist.report.text import number

Metrics = Mapping[str, Sequence[Mapping[str, float]]]  # job -> logged lines, in step order
Point = tuple[float, float]

MOST_POINTS = 500
FEW_POINTS = 40  # a line of more is drawn faint, with its running mean over it
SIZE_INCHES = (4.4, 3.3)


@dataclass(frozen=True)
class Ink:
    """Colours of one theme. Lines differ in dash and marker too, so that they can be told apart without colour."""

    text: str
    grid: str
    lines: Mapping[str, str]


LIGHT = Ink(
    "#4a4f57",
    "#dfe2e6",
    {"one_to_one": "#6b7280", "mapping": "#8a4fbf", "villa": "#0b62c4", "ground_truth": "#b35309"},
)
DARK = Ink(
    "#b4bac4",
    "#31363f",
    {"one_to_one": "#a3a9b4", "mapping": "#c79bef", "villa": "#68b0ff", "ground_truth": "#f2a65a"},
)
DASHES = {"one_to_one": (0, (5, 2)), "mapping": (0, (3, 1.5, 1, 1.5)), "villa": "-", "ground_truth": (0, (1.2, 1.2))}
MARKERS = {"one_to_one": "s", "mapping": "^", "villa": "o", "ground_truth": "D"}


@dataclass(frozen=True)
class Plot:
    """A figure in both themes with its caption and the sentence that stands in for it."""

    title: str
    note: str
    alt: str
    light: str
    dark: str


def curves(metrics: Metrics) -> list[Plot]:
    """Loss of the VLMs, loss of the mapping model (another scale), and throughput of all. Empty plots are left out."""
    vlms = [job for job in metrics if job != "mapping"]
    batch = "of single global batches"
    plots = [
        plot("Loss of the VLMs", batch, "contrastive loss (nats)", lines_of(metrics, vlms, "loss"), smooth=True),
        plot(
            "Loss of the mapping model",
            batch,
            "mapping loss (nats)",
            lines_of(metrics, ["mapping"], "loss"),
            smooth=True,
        ),
        plot(
            "Throughput",
            "mean since the job started or was resumed",
            "throughput (images/s)",
            lines_of(metrics, list(metrics), "images_per_second"),
            smooth=False,
        ),
    ]
    return [p for p in plots if p is not None]


def lines_of(metrics: Metrics, jobs: Sequence[str], value: str) -> dict[str, list[Point]]:
    """The points of every job that has any."""
    found = {job: points(metrics.get(job, ()), value) for job in jobs}
    return {job: line for job, line in found.items() if line}


def plot(title: str, note: str, label: str, lines: Mapping[str, Sequence[Point]], *, smooth: bool) -> Plot | None:
    """One figure; None when there is no line. smooth: noisy lines get a running mean; else the axis starts at 0."""
    if not lines:
        return None
    if smooth and max(len(line) for line in lines.values()) > FEW_POINTS:
        note = f"thin: {note.removeprefix('of ')}; thick: running mean"
    said = "; ".join(f"{TITLES[job]} from {_spoken(line[0])} to {_spoken(line[-1])}" for job, line in lines.items())
    light, dark = (_uri(_draw(lines, label, ink, smooth)) for ink in (LIGHT, DARK))
    return Plot(title, note, f"{title}, {label} by training step. {said}.", light, dark)


def _spoken(point: Point) -> str:
    return f"{point[1]:,.4g} at step {point[0]:,.0f}"


def points(lines: Sequence[Mapping[str, float]], value: str) -> list[Point]:
    """(step, value) of the lines that hold both as finite numbers, thinned evenly; the last is always kept."""
    found = [
        (step, y)
        for line in lines
        if (step := number(line.get("step"))) is not None and (y := number(line.get(value))) is not None
    ]
    stride = max(1, -(-len(found) // MOST_POINTS))
    kept = found[::stride]
    return kept if not found or kept[-1] == found[-1] else [*kept, found[-1]]


def running_mean(values: Sequence[float], reach: int) -> list[float]:
    """The mean of each value and up to `reach` neighbours on either side."""
    total = np.concatenate([[0.0], np.cumsum(values)])
    at = np.arange(len(values))
    first, last = np.maximum(at - reach, 0), np.minimum(at + reach + 1, len(values))
    return list((total[last] - total[first]) / (last - first))


def _draw(lines: Mapping[str, Sequence[Point]], label: str, ink: Ink, smooth: bool) -> str:
    # text stays text, in the page's own font
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "villa", "font.family": "DejaVu Sans"}):
        figure = Figure(figsize=SIZE_INCHES)
        figure.subplots_adjust(left=0.17, right=0.97, top=0.96, bottom=0.34)  # the same axes in every figure
        FigureCanvasSVG(figure)
        figure.patch.set_alpha(0.0)
        axes: Any = figure.add_subplot()
        axes.set_facecolor("none")
        for job, found in lines.items():
            steps, values = [step for step, _ in found], [value for _, value in found]
            if smooth and len(found) > FEW_POINTS:
                axes.plot(steps, values, color=ink.lines[job], linewidth=0.6, alpha=0.35)
                values = running_mean(values, len(values) // FEW_POINTS)
            axes.plot(
                steps,
                values,
                color=ink.lines[job],
                linestyle=DASHES[job],
                marker=MARKERS[job],
                markevery=max(1, len(found) // 8),
                markersize=4,
                linewidth=1.6,
                label=TITLES[job],
            )
        _dress(axes, label, ink, from_zero=not smooth)
        handle = io.StringIO()
        figure.savefig(handle, format="svg", metadata={"Date": None, "Creator": None})
    return handle.getvalue()


def _dress(axes: Any, label: str, ink: Ink, *, from_zero: bool) -> None:
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(ink.grid)
    axes.grid(axis="y", color=ink.grid, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=ink.text, labelsize=10.5, length=3, color=ink.grid)
    axes.set_xlabel("training step", color=ink.text, fontsize=10.5)
    axes.set_ylabel(label, color=ink.text, fontsize=10.5)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    if from_zero:
        axes.set_ylim(bottom=0.0)
    # below the axes, where it hides no line
    axes.legend(
        loc="upper center",
        bbox_to_anchor=(0.42, -0.22),
        ncols=2,
        fontsize=10.5,
        labelcolor=ink.text,
        frameon=False,
        handlelength=2.6,
    )


def _uri(svg: str) -> str:
    svg = svg.replace("'DejaVu Sans'", "system-ui, -apple-system, 'Segoe UI', 'Liberation Sans', sans-serif")
    return "data:image/svg+xml;base64," + base64.b64encode(_without_prologue(svg).encode()).decode()


def _without_prologue(svg: str) -> str:
    """From `<svg` on, without the metadata block: no reader needs the DOCTYPE's address."""
    return re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.S)
