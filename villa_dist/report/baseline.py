"""A run's figures by name, and whether one run's are below another's by more than chance.

    results.json and <run>/evaluated ─▶ Measured ─▶ a baseline's file (`villa evaluate --write-baseline`)
    two of Measured                  ─▶ differences (`villa evaluate --compare`, `villa report RUN RUN`)

A figure's name is split/model/metric (test/villa/a2r), or split/part/model/… of other parts of evaluation.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from math import hypot
from typing import Any

import numpy as np
from jaxtyping import Float

from shards.errors import ShardError, StorageFullError, VillaError
from shards.store import Store
from villa_dist.evaluate import items
from villa_dist.evaluate.figures import interval_of
from villa_dist.names import CHANCE, VLMS
from villa_dist.report.text import between, figure, number, signed

RESULTS = "results.json"
KIND, FORMAT = "villa baseline", 1
OWN = ("a2r", "r2a", "precision", "recall", "f1")  # figures, with or without an interval
MAIN = (
    "top1",
    "top5",
    "mean_rank",
    "mean_rank_ties_lost",
)  # and i2t@k, t2i@k: figures too where no interval was asked for
LAID_OUT = ("models", "subsets")  # keys of results.json that name nothing
REMEDY = "evaluate the run again, or write the baseline again with `villa evaluate CONFIG --write-baseline FILE`"


class BelowBaselineError(VillaError):
    """A figure is lower than the baseline's by more than its interval, or is not measured any more."""

    exit_code = 5


@dataclass(frozen=True)
class Metric:
    """value and interval as in results.json, mostly percent; draws: under resamples of the images of `task`, if kept."""

    value: float
    interval: tuple[float, float] | None = None
    task: str = ""
    draws: Float[np.ndarray, " B1"] | None = None


@dataclass(frozen=True)
class Measured:
    """place: the run or the file. bare: names of what was measured without an interval and so is no figure."""

    place: str
    metrics: Mapping[str, Metric]
    code: Mapping[str, Any]
    bare: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Difference:
    """second less first in points. low and high: of 95 % of the resamples, paired if both were drawn alike, else from the
    two intervals; None where neither figure has one."""

    name: str
    first: Metric
    second: Metric
    value: float
    low: float | None
    high: float | None
    paired: bool

    @property
    def worse(self) -> bool:
        """Beyond chance, as far as that is known. Without any interval every step back is."""
        if lower_is_better(self.name):
            return (self.value if self.low is None else self.low) > 0
        return (self.value if self.high is None else self.high) < 0

    @property
    def better(self) -> bool:
        if self.low is None or self.high is None:
            return False
        return self.high < 0 if lower_is_better(self.name) else self.low > 0

    @property
    def span(self) -> str:
        return f"{signed(self.low)} to {signed(self.high)}" if self.low is not None else ""

    def __str__(self) -> str:
        known = f"95% interval of the difference {self.span}{'' if self.paired else ', not paired'}"
        if not self.paired and (self.first.interval is None) != (self.second.interval is None):
            bare = "the baseline has" if self.first.interval is None else "the figure has now"
            known += f", and too narrow, as {bare} no interval (evaluate.bootstrap: 0 draws none)"
        return (
            f"{self.name}: {figure(self.second.value)} now, {figure(self.first.value)} in the baseline "
            f"({signed(self.value)}; {known if self.span else 'no interval is known, so any step back counts'})"
        )


def lower_is_better(name: str) -> bool:
    return "rank" in name.rpartition("/")[2]


def of_run(run: str) -> Measured:
    """Raises: VillaError when it has no results, or they are damaged."""
    store = Store(run)
    results = read_results(store)
    if not results:
        raise VillaError(f"{store.path()} has no {RESULTS}, so there is nothing to compare; run `villa evaluate` on it")
    return of_results(store, results)


def read_results(store: Store) -> dict[str, Any]:
    """results.json, or nothing where nothing was evaluated. Raises: ShardError when it is not a JSON object."""
    if not store.exists(RESULTS):
        return {}
    try:
        results = json.loads(store.read(RESULTS))
    except ValueError as error:
        raise ShardError(f"{store.path(RESULTS)} is not JSON ({error}); run the evaluate stage again") from error
    if not isinstance(results, dict):
        raise ShardError(f"{store.path(RESULTS)} holds no JSON object; run the evaluate stage again")
    return results


def of_results(store: Store, results: Mapping[str, Any]) -> Measured:
    found: dict[str, Metric] = {}
    bare: set[str] = set()
    for split, measured in (results.get("splits") or {}).items():
        for job, told in measured.items():
            kept = items.read(store, split, job) if job in (*VLMS, "mapping") else None
            for name, value, interval, counts in figures(told):
                if not counts:
                    bare.add(f"{split}/{job}/{name}")
                    continue
                draws = kept.draws.get(name) if kept else None
                found[f"{split}/{job}/{name}"] = Metric(value, interval, kept.task if kept else "", draws)
    for part, by_split in results.items():
        if part not in ("metrics", "splits", "images", "weights", "code") and isinstance(by_split, dict):
            for split, told in by_split.items():
                for name, value, interval, counts in figures(told if isinstance(told, dict) else {}):
                    if counts:
                        found[f"{split}/{part}/{name}"] = Metric(value, interval)
                    else:
                        bare.add(f"{split}/{part}/{name}")
    return Measured(store.path(), found, results.get("code") or {}, frozenset(bare))


def figures(
    told: Mapping[str, Any], path: str = "", main: str = "", resamples: object = None
) -> Iterator[tuple[str, float, Any, bool]]:
    """(name, value, interval, whether it is a figure) of every number. Figures are those that have an interval, OWN, and
    where no interval was asked for (resamples: 0) those that would have one. An interval stands under `intervals`, as
    `<name>_interval`, or as `interval`, which is of the protocol's main figure."""
    main = {"coco": "AP50", "lvis": "AP"}.get(str(told.get("protocol")), main)
    resamples = told.get("resamples", resamples)
    for key, value in told.items():
        if isinstance(value, dict):
            if key not in ("intervals", CHANCE) and not key.endswith("_by_group"):
                yield from figures(value, path if key in LAID_OUT else f"{path}{key}/", main, resamples)
            continue
        known = number(value)
        ways = (
            (told.get("intervals") or {}).get(key),
            told.get(f"{key}_interval"),
            told.get("interval") if key == main else None,
        )
        interval = next(((float(w[0]), float(w[1])) for w in ways if w and between(w)), None)
        if known is not None:
            asked = resamples == 0 and (key in (main, *MAIN) or key.startswith(("i2t@", "t2i@")))
            yield f"{path}{key}", known, interval, bool(interval) or key in OWN or asked


def to_bytes(measured: Measured) -> bytes:
    """The baseline's file. Draws are kept, so that a later comparison is paired."""
    told: dict[str, Any] = {}
    for name, m in sorted(measured.metrics.items()):
        told[name] = {"value": m.value, "interval": m.interval}
        if m.draws is not None:
            told[name] |= {"task": m.task, "draws": [None if np.isnan(v) else round(float(v), 4) for v in m.draws]}
    whole = {"kind": KIND, "format": FORMAT, "run": measured.place, "code": dict(measured.code), "metrics": told}
    return (json.dumps(whole, separators=(",", ":")) + "\n").encode()


def in_folder(file: str) -> tuple[Store, str]:
    """The folder of a file, local or not, and its name there."""
    folder, _, name = file.rpartition("/")
    return Store(folder or ("/" if file.startswith("/") else ".")), name


def writable(place: str, option: str) -> tuple[Store, str]:
    """The folder of a file that shall be written, and its name there. option: what named it, for messages.

    Raises: VillaError, before any work, where no file can be written there.
    """
    folder, name = in_folder(place)
    if not name or (folder.exists(name) and not folder.is_file(name)):
        raise VillaError(f"{option} {place!r} is a folder; give a file in it")
    trial = (
        f".{name[:100]}.{uuid.uuid4().hex[:12]}.tmp"  # what is there is not touched before there is something to write
    )
    try:
        folder.put(trial, b"")
    except StorageFullError:
        raise
    except (VillaError, OSError) as error:
        why = error.__cause__ if isinstance(error.__cause__, OSError) else error
        said = (why.strerror if isinstance(why, OSError) else None) or str(why)
        if isinstance(why, FileExistsError | NotADirectoryError):
            said = "a part of its path is a file"
        raise VillaError(f"{option} {place!r} cannot be written: {said}; give a file that can be") from error
    with suppress(VillaError, OSError):  # storage may take files and let none be removed
        folder.remove(trial)
    return folder, name


def read(place: str) -> Measured:
    """A baseline's file, or the folder of a run. Raises: VillaError naming it."""
    store = Store(place)
    if store.exists(RESULTS) or store.exists("config.yaml"):
        return of_run(place)
    folder, name = in_folder(place)
    data = folder.find(name) if name else None
    if data is None:
        raise VillaError(f"baseline {place} is neither a file nor the folder of a run; {REMEDY}")
    try:
        whole = json.loads(data)
        if whole["kind"] != KIND or whole["format"] != FORMAT:
            raise ValueError(f"its kind and format are {whole['kind']!r}, {whole['format']!r}, not {KIND!r}, {FORMAT}")
        return Measured(place, {n: _metric(m) for n, m in whole["metrics"].items()}, whole["code"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        said = f"it has no {error}" if isinstance(error, KeyError) else str(error)
        raise VillaError(f"{place} is no baseline: {said}; {REMEDY}") from error


def _metric(told: Mapping[str, Any]) -> Metric:
    value, interval, draws = number(told["value"]), told["interval"], told.get("draws")
    if value is None:
        raise ValueError(f"a value is {told['value']!r}, which is no finite number")
    if interval is not None and not between(interval):
        raise ValueError(f"an interval is {interval!r}")
    drawn = None if draws is None else np.array([np.nan if v is None else float(v) for v in draws])
    return Metric(value, tuple(map(float, interval)) if interval else None, str(told.get("task", "")), drawn)  # type: ignore[arg-type]


def difference(name: str, first: Metric, second: Metric) -> Difference:
    """Paired where both were drawn alike."""
    value = second.value - first.value
    one, two = first.draws, second.draws
    if one is not None and two is not None and first.task == second.task and len(one) == len(two):
        span = interval_of(two - one, 1.0)
        if span:
            return Difference(name, first, second, value, span[0], span[1], True)
    if first.interval is None and second.interval is None:
        return Difference(name, first, second, value, None, None, False)
    (low1, high1), (low2, high2) = (m.interval or (m.value, m.value) for m in (first, second))
    down, up = hypot(second.value - low2, high1 - first.value), hypot(high2 - second.value, first.value - low1)
    return Difference(name, first, second, value, value - down, value + up, False)


def differences(first: Measured, second: Measured) -> list[Difference]:
    """Of the figures that both have, in the order of the first."""
    return [difference(n, m, second.metrics[n]) for n, m in first.metrics.items() if n in second.metrics]


def _lost(name: str, now: Measured) -> str:
    if name in now.bare:
        return (
            "measured now without an interval, so it is not known what is chance; set evaluate.bootstrap (of detection: "
            "evaluate.detection.bootstrap) above 0"
        )
    return "not measured now"


def check(baseline: Measured, now: Measured) -> list[Difference]:
    """The differences. Raises: BelowBaselineError naming every figure that is worse, both values and the interval, and every
    one that is not measured any more."""
    found = differences(baseline, now)
    if not baseline.metrics:
        raise VillaError(f"baseline {baseline.place} holds no figure; {REMEDY}")
    lost = [
        f"{n}: {figure(m.value)} in the baseline, {_lost(n, now)}"
        for n, m in baseline.metrics.items()
        if n not in now.metrics
    ]
    worse = [*map(str, filter(lambda d: d.worse, found)), *lost]
    if worse:
        raise BelowBaselineError(
            f"{len(worse)} of {len(baseline.metrics)} figures are below the baseline {baseline.place}:\n"
            + "\n".join(f"  {line}" for line in worse)
            + "\nmend what lowered them, or accept them: `--write-baseline` without `--compare` stores the new figures"
        )
    return found
