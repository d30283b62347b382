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
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from villa_dist.report.tables import TRAINED
from villa_dist.report.text import number, plain

Metrics = Mapping[str, Sequence[Mapping[str, float]]]  # job -> logged lines, in step order
Point = tuple[float, float]

MOST_POINTS = 500
MARKED_POINTS = 40  # with more points than this a line has no markers
SIZE_INCHES = (4.4, 3.1)


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
    plots = [
        plot("Loss of the VLMs", "contrastive loss of one global batch", metrics, vlms, "loss", "contrastive loss (nats)"),
        plot("Loss of the mapping model", "its own scale", metrics, ["mapping"], "loss", "mapping loss"),
        plot(
            "Throughput",
            "mean since the job started or resumed",
            metrics,
            list(metrics),
            "images_per_second",
            "throughput (images/s)",
            from_zero=True,
        ),
    ]
    return [p for p in plots if p is not None]


def plot(
    title: str, note: str, metrics: Metrics, jobs: Sequence[str], value: str, label: str, *, from_zero: bool = False
) -> Plot | None:
    """One figure; None when no job has a finite value."""
    lines = {job: points(metrics.get(job, ()), value) for job in jobs}
    lines = {job: found for job, found in lines.items() if found}
    if not lines:
        return None
    said = "; ".join(
        f"{TRAINED.get(job, job)} from {found[0][1]:,.4g} at step {found[0][0]:,.0f} to {found[-1][1]:,.4g} at step "
        f"{found[-1][0]:,.0f}"
        for job, found in lines.items()
    )
    drawn = {ink: _uri(_draw(lines, label, ink, from_zero)) for ink in ("light", "dark")}
    return Plot(title, note, f"{title}, {label} by training step. {said}.", drawn["light"], drawn["dark"])


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


def _draw(lines: Mapping[str, Sequence[Point]], label: str, theme: str, from_zero: bool) -> str:
    ink = LIGHT if theme == "light" else DARK
    # text stays text, in the page's own font
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "villa", "font.family": "DejaVu Sans"}):
        figure = Figure(figsize=SIZE_INCHES, layout="constrained")
        FigureCanvasSVG(figure)
        figure.patch.set_alpha(0.0)
        axes: Any = figure.add_subplot()
        axes.set_facecolor("none")
        for job, found in lines.items():
            axes.plot(
                [step for step, _ in found],
                [value for _, value in found],
                color=ink.lines.get(job, ink.text),
                linestyle=DASHES.get(job, "-"),
                marker=MARKERS.get(job, "o") if len(found) <= MARKED_POINTS else "",
                markersize=4,
                linewidth=1.6,
                label=TRAINED.get(job, str(plain(job))),
            )
        _dress(axes, label, ink, from_zero)
        handle = io.StringIO()
        figure.savefig(handle, format="svg", metadata={"Date": None, "Creator": None})
    return handle.getvalue()


def _dress(axes: Any, label: str, ink: Ink, from_zero: bool) -> None:
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(ink.grid)
    axes.grid(axis="y", color=ink.grid, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=ink.text, labelsize=9, length=3, color=ink.grid)
    axes.set_xlabel("training step", color=ink.text, fontsize=9.5)
    axes.set_ylabel(label, color=ink.text, fontsize=9.5)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    if from_zero:
        axes.set_ylim(bottom=0.0)
    # below the axes, where it hides no line
    axes.legend(
        loc="upper center",
        bbox_to_anchor=(0.5, -0.2),
        ncols=2,
        fontsize=9,
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
