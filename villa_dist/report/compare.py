"""Runs side by side in one HTML file: figures with intervals and differences, what their configs differ in, their curves.

The first run is the one that the others are held against. Differences are paired where both runs were measured on the same
images, true pairs and attributes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from shards.errors import VillaError
from shards.store import Store
from villa_dist import __version__
from villa_dist.config import Config
from villa_dist.evaluate.items import Items
from villa_dist.names import JOBS, TITLES
from villa_dist.report import baseline, card, provenance, text
from villa_dist.report.baseline import Difference, Measured
from villa_dist.report.build import environment, read_items, read_metrics
from villa_dist.report.evaluation import column_of
from villa_dist.report.markers import Markers
from villa_dist.report.plots import Metrics, Plot, lines_of, plot, run_styles

MOST_RUNS = 8
MOST_ATTRIBUTES = 40


@dataclass(frozen=True)
class Run:
    """kept: by split and job what evaluate has kept; lines: what each job logged."""

    label: str
    config: Config
    measured: Measured
    kept: Mapping[str, Mapping[str, Items]]
    phrases: tuple[str, ...]
    lines: Metrics
    origin: Mapping[str, str]


@dataclass(frozen=True)
class Cell:
    """A figure of a run and, of every run but the first, its difference to the first's; verdict: better, worse or empty."""

    value: float | None
    interval: str
    difference: float | None
    span: str
    paired: bool
    verdict: str


@dataclass(frozen=True)
class Row:
    """A figure of all runs. what: metric in words; of: whose it is."""

    split: str
    of: str
    what: str
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class AttributeRow:
    """A→R R-Precision of ViLLA on an attribute by run; change: largest difference to the first run's."""

    phrase: str
    values: tuple[float | None, ...]
    change: float


@dataclass(frozen=True)
class ConfigRow:
    key: str
    values: tuple[str, ...]


WORDS = {"a2r": "A→R", "r2a": "R→A", "f1": "F1"}


def build(configs: Sequence[Config], place: str) -> str:
    """Write the comparison of several runs to `place` and return its path. Raises: VillaError."""
    named = labels([c.run for c in configs])
    folder, name = baseline.writable(place, "--out")
    data = render([read(c, label) for c, label in zip(configs, named, strict=True)])
    folder.put(name, data.encode())
    return folder.path(name)


def read(config: Config, label: str) -> Run:
    """Raises: VillaError when the run was not evaluated, or its files are damaged."""
    store = Store(config.run)
    results = baseline.read_results(store)
    if not results:
        raise VillaError(
            f"{store.path()} has no results.json, so there is nothing to compare; run `villa evaluate` on it first"
        )
    words = card.read_vocabulary(config.run)
    told = card.card(Markers(config.run), words)
    return Run(
        label,
        config,
        baseline.of_results(store, results),
        read_items(config, results),
        words.phrases if words else (),
        read_metrics(store),
        dict(provenance.provenance(config, results, told)),
    )


def labels(places: Sequence[str]) -> list[str]:
    """The shortest ends of the paths that tell them apart. Raises: VillaError for fewer than two runs, too many, or one
    that is given twice."""
    paths = [PurePosixPath(Store(p).path()).parts for p in places]
    if len(set(paths)) < len(paths):
        twice = next(p for i, p in enumerate(places) if paths[i] in paths[:i])
        raise VillaError(f"{twice} is given twice; give runs that differ")
    if not 2 <= len(paths) <= MOST_RUNS:
        raise VillaError(f"{len(paths)} runs cannot be compared in one page; give 2 to {MOST_RUNS}")
    for depth in range(1, max(map(len, paths)) + 1):
        found = ["/".join(p[-depth:]) for p in paths]
        if len(set(found)) == len(found):
            return found
    return list(places)


def render(runs: Sequence[Run]) -> str:
    """The comparison's HTML. The same runs give the same bytes."""
    rows = figures([r.measured for r in runs])
    return (
        environment()
        .get_template("compare.html.j2")
        .render(
            title=" / ".join(r.label for r in runs),
            version=__version__,
            bound="",
            script_hash="",
            runs=runs,
            summary=summary(runs, rows),
            rows=rows,
            attributes=attributes(runs),
            settings=settings([r.config for r in runs]),
            origin=origin([r.origin for r in runs]),
            plots=curves(runs),
        )
    )


def figures(measured: Sequence[Measured]) -> list[Row]:
    """Every figure that any of them has, those of the first in their order."""
    names = dict.fromkeys(name for m in measured for name in m.metrics)
    return [_row(name, measured) for name in names]


def _row(name: str, measured: Sequence[Measured]) -> Row:
    split, _, rest = name.partition("/")
    of, _, what = rest.rpartition("/")
    cells = tuple(_cell(name, m, measured[0] if i else None) for i, m in enumerate(measured))
    return Row(
        split, ", ".join(TITLES.get(part, part) for part in of.split("/")), WORDS.get(what) or column_of(what), cells
    )


def _cell(name: str, measured: Measured, first: Measured | None) -> Cell:
    mine = measured.metrics.get(name)
    if mine is None:
        return Cell(None, "", None, "", False, "")
    interval = text.between(list(mine.interval)) if mine.interval else ""
    if first is None or name not in first.metrics:
        return Cell(mine.value, interval, None, "", False, "")
    found = baseline.difference(name, first.metrics[name], mine)
    return Cell(mine.value, interval, found.value, found.span, found.paired, verdict(found))


def verdict(found: Difference) -> str:
    """Beyond chance only; without an interval nothing is said."""
    return "" if found.low is None else "better" if found.better else "worse" if found.worse else ""


def summary(runs: Sequence[Run], rows: Sequence[Row]) -> list[str]:
    """A sentence a run but the first, on ViLLA's figures where there are some."""
    told = []
    for at, run in list(enumerate(runs))[1:]:
        shared = [r for r in rows if r.cells[at].difference is not None]
        chosen = [r for r in shared if r.of == TITLES["villa"]] or shared
        if not chosen:
            told.append(f"{run.label} and {runs[0].label} have no figure in common.")
            continue
        said = [_said(r, r.cells[at]) for r in chosen[:4]]
        told.append(f"{run.label} against {runs[0].label}, {chosen[0].of}: {text.listed(said)}.")
    return told


def _said(row: Row, cell: Cell) -> str:
    chance = {"better": "better", "worse": "worse", "": "within chance" if cell.span else "no interval known"}
    return f"{row.what} {text.signed(cell.difference)} ({chance[cell.verdict]})"


def attributes(runs: Sequence[Run]) -> list[AttributeRow]:
    """Of the first split and job (ViLLA if it is there) that all runs have, the attributes that changed most."""
    shared = [
        (split, job)
        for split in runs[0].kept
        for job in sorted(runs[0].kept[split], key=lambda j: j != "villa")
        if all(job in r.kept.get(split, {}) for r in runs)
    ]
    if not shared:
        return []
    split, job = shared[0]
    by_phrase = [dict(zip(r.phrases, r.kept[split][job].by_attribute.tolist(), strict=False)) for r in runs]
    rows = []
    for phrase in by_phrase[0]:
        values = tuple(text.number(v.get(phrase)) for v in by_phrase)
        first = values[0]
        if first is None:
            continue
        changes = [v - first for v in values[1:] if v is not None]
        if changes:
            rows.append(AttributeRow(phrase, values, max(changes, key=abs)))
    return sorted(rows, key=lambda r: (-abs(r.change), r.phrase))[:MOST_ATTRIBUTES]


def settings(configs: Sequence[Config]) -> list[ConfigRow]:
    """The keys that are not the same in all; secrets are left out."""
    flat = [_flat(text.redacted(c.model_dump(mode="json", exclude={"run"}))) for c in configs]
    keys = dict.fromkeys(k for f in flat for k in f)
    rows = [ConfigRow(k, tuple(_shown(f[k]) if k in f else text.NONE for f in flat)) for k in keys]
    return [r for r in rows if len(set(r.values)) > 1]


def _flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, inside in value.items():
        found |= _flat(inside, f"{prefix}{key}.") if isinstance(inside, dict) and inside else {f"{prefix}{key}": inside}
    return found


def _shown(value: Any) -> str:
    return text.shortened("null" if value is None else str(value), 80)


def origin(told: Sequence[Mapping[str, str]]) -> list[ConfigRow]:
    """Code and digests of all; whether two runs share images, vocabulary or weights is seen here."""
    keys = dict.fromkeys(k for t in told for k in t)
    return [ConfigRow(k, tuple(text.shortened(t.get(k, text.NONE), 90) for t in told)) for k in keys]


def curves(runs: Sequence[Run]) -> list[Plot]:
    """The loss of each job, the runs' lines over each other, and the jobs' throughput of ViLLA."""
    styles = run_styles([r.label for r in runs])
    wanted = [(job, "loss", f"Loss, {TITLES[job]}", "of single global batches", "loss (nats)", True) for job in JOBS]
    wanted.append(
        ("villa", "images_per_second", "Throughput, ViLLA", "mean since the start", "throughput (images/s)", False)
    )
    plots = []
    for job, value, title, note, label, smooth in wanted:
        lines = {r.label: line for r in runs for line in lines_of(r.lines, [job], value).values()}
        plots.append(plot(title, note, label, lines, smooth=smooth, styles=styles))
    return [p for p in plots if p is not None]
