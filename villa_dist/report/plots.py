"""Figures as SVG data URIs, one drawing for light pages and one for dark ones: training curves, and values by shard.

Figures are built by matplotlib's object-oriented API, so that no global state of pyplot is touched, and carry neither
dates nor random ids: the same metrics give the same bytes.
"""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
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
class Style:
    """How a line looks. Lines differ in dash and marker too, so that they can be told apart without colour."""

    label: str
    light: str
    dark: str
    dash: Any = "-"
    marker: str = "o"


JOB_STYLES = {
    "one_to_one": Style(TITLES["one_to_one"], "#6b7280", "#a3a9b4", (0, (5, 2)), "s"),
    "mapping": Style(TITLES["mapping"], "#8a4fbf", "#c79bef", (0, (3, 1.5, 1, 1.5)), "^"),
    "villa": Style(TITLES["villa"], "#0b62c4", "#68b0ff"),
    "ground_truth": Style(TITLES["ground_truth"], "#b35309", "#f2a65a", (0, (1.2, 1.2)), "D"),
}
TURNS = tuple(JOB_STYLES[job] for job in ("villa", "ground_truth", "mapping", "one_to_one"))  # of runs over each other


@dataclass(frozen=True)
class Theme:
    """Colours of a page. name: which of a style's colours it takes."""

    name: str
    text: str
    grid: str
    apart: str


LIGHT = Theme("light", "#4a4f57", "#dfe2e6", "#a8201a")
DARK = Theme("dark", "#b4bac4", "#31363f", "#ff9d94")


def run_styles(labels: Sequence[str]) -> dict[str, Style]:
    """A style for each of several runs; the dashes of more than four repeat with another marker."""
    marks = "oD^sv<>P"
    found = {}
    for i, label in enumerate(labels):
        like = TURNS[i % len(TURNS)]
        found[label] = Style(label, like.light, like.dark, like.dash, marks[i % len(marks)])
    return found


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


def lines_of(metrics: Metrics, jobs: Iterable[str], value: str) -> dict[str, list[Point]]:
    """The points of every job that has any."""
    found = {job: points(metrics.get(job, ()), value) for job in jobs}
    return {job: line for job, line in found.items() if line}


def plot(
    title: str,
    note: str,
    label: str,
    lines: Mapping[str, Sequence[Point]],
    *,
    smooth: bool,
    styles: Mapping[str, Style] = JOB_STYLES,
) -> Plot | None:
    """One figure; None when there is no line. smooth: noisy lines get a running mean; else the axis starts at 0."""
    if not lines:
        return None
    if smooth and max(len(line) for line in lines.values()) > FEW_POINTS:
        note = f"thin: {note.removeprefix('of ')}; thick: running mean"
    said = "; ".join(
        f"{styles[name].label} from {_spoken(line[0])} to {_spoken(line[-1])}" for name, line in lines.items()
    )

    def draw(axes: Any, theme: Theme) -> None:
        _draw_lines(axes, lines, theme, smooth, styles)
        _dress(axes, "training step", label, theme)
        if not smooth:
            axes.set_ylim(bottom=0.0)
        _legend(axes, theme)

    light, dark = (_uri(_drawn(draw, theme, bottom=0.34)) for theme in (LIGHT, DARK))
    return Plot(title, note, f"{title}, {label} by training step. {said}.", light, dark)


def scatter(title: str, note: str, label: str, values: Sequence[float | None], apart: Sequence[bool]) -> Plot:
    """A value by shard, in shard order; those `apart` are crosses in another colour. Many shards are drawn as the span of
    some neighbours."""
    known = [(i, v, a) for i, (v, a) in enumerate(zip(values, apart, strict=True)) if v is not None]
    usual, odd = [(i, v) for i, v, a in known if not a], [(i, v) for i, v, a in known if a]
    step = max(1, -(-len(values) // MOST_POINTS))

    def draw(axes: Any, theme: Theme) -> None:
        colour = getattr(JOB_STYLES["villa"], theme.name)
        if step == 1:
            axes.plot(*_columns(usual), linestyle="", marker="o", markersize=3.5, color=colour)
        else:
            bins = [[v for i, v in usual if i // step == k] for k in range(-(-len(values) // step))]
            spans = [(k * step, min(b), max(b)) for k, b in enumerate(bins) if b]
            axes.vlines(*(list(c) for c in zip(*spans, strict=True)), color=colour, linewidth=1.2)
        axes.plot(*_columns(odd), linestyle="", marker="X", markersize=8, color=theme.apart)
        _dress(axes, "shard, in order", label, theme)

    found = [v for _, v, _ in known]
    spoken = f"{label}, from {min(found):.3g} to {max(found):.3g} over {len(found):,} shards" if found else "no values"
    ending = f"; {len(odd)} far from most, marked by crosses" if odd else "; none far from most"
    light, dark = (_uri(_drawn(draw, theme, bottom=0.2)) for theme in (LIGHT, DARK))
    return Plot(title, note, f"{title} by shard: {spoken}{ending}.", light, dark)


def _columns(points: Sequence[tuple[int, float]]) -> tuple[list[int], list[float]]:
    return [i for i, _ in points], [v for _, v in points]


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


def _drawn(draw: Callable[[Any, Theme], None], theme: Theme, bottom: float) -> str:
    """bottom: room below the axes, as a share of the figure."""
    # text stays text, in the page's own font
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "villa", "font.family": "DejaVu Sans"}):
        figure = Figure(figsize=SIZE_INCHES)
        figure.subplots_adjust(left=0.17, right=0.97, top=0.96, bottom=bottom)  # the same axes in every figure
        FigureCanvasSVG(figure)
        figure.patch.set_alpha(0.0)
        axes: Any = figure.add_subplot()
        axes.set_facecolor("none")
        draw(axes, theme)
        handle = io.StringIO()
        figure.savefig(handle, format="svg", metadata={"Date": None, "Creator": None})
    return handle.getvalue()


def _draw_lines(
    axes: Any, lines: Mapping[str, Sequence[Point]], theme: Theme, smooth: bool, styles: Mapping[str, Style]
) -> None:
    for name, found in lines.items():
        style = styles[name]
        colour = getattr(style, theme.name)
        steps, values = [step for step, _ in found], [value for _, value in found]
        if smooth and len(found) > FEW_POINTS:
            axes.plot(steps, values, color=colour, linewidth=0.6, alpha=0.35)
            values = running_mean(values, len(values) // FEW_POINTS)
        axes.plot(
            steps,
            values,
            color=colour,
            linestyle=style.dash,
            marker=style.marker,
            markevery=max(1, len(found) // 8),
            markersize=4,
            linewidth=1.6,
            label=style.label,
        )


def _dress(axes: Any, across: str, up: str, theme: Theme) -> None:
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(theme.grid)
    axes.grid(axis="y", color=theme.grid, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=theme.text, labelsize=10.5, length=3, color=theme.grid)
    axes.set_xlabel(across, color=theme.text, fontsize=10.5)
    axes.set_ylabel(up, color=theme.text, fontsize=10.5)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))


def _legend(axes: Any, theme: Theme) -> None:
    """Below the axes, where it hides no line."""
    axes.legend(
        loc="upper center",
        bbox_to_anchor=(0.42, -0.22),
        ncols=2,
        fontsize=10.5,
        labelcolor=theme.text,
        frameon=False,
        handlelength=2.6,
    )


def _uri(svg: str) -> str:
    svg = svg.replace("'DejaVu Sans'", "system-ui, -apple-system, 'Segoe UI', 'Liberation Sans', sans-serif")
    return "data:image/svg+xml;base64," + base64.b64encode(_without_prologue(svg).encode()).decode()


def _without_prologue(svg: str) -> str:
    """From `<svg` on, without the metadata block: no reader needs the DOCTYPE's address."""
    return re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.S)
