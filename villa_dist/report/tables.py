"""The tables of the report as plain records: results, mapping, training, stages, and what was refused."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from shards import sidecar
from shards.commit import Marker, StageFolder
from shards.store import Store
from villa_dist.evaluate.items import Items
from villa_dist.mapping import quality
from villa_dist.names import TITLES, VLMS
from villa_dist.profile import binding, worker_seconds
from villa_dist.report.attributes import paired
from villa_dist.report.markers import MOST_EXAMPLES, Markers
from villa_dist.report.text import between, count, number

SPLITS = ("train", "validation", "test")
STAGES = {
    "base": "ingest",
    "truth": "known pairs",
    "vocabulary": "vocabulary",
    "regions": "regions",
    "embeddings": "region embeddings",
    "pairs": "pairs",
    "evaluate-one_to_one": "evaluate, one-to-one",
    "evaluate-villa": "evaluate, ViLLA",
    "evaluate-ground_truth": "evaluate, ground truth",
    "boxes": "known boxes",
}
BY_MODEL = ("detect", "whole", "phrases")  # stages with a folder a model, such as detect-villa
MIN_GAP = (
    0.5  # points; a share of a smaller gap, or of one that may be chance, says more about noise than about the method
)


@dataclass(frozen=True)
class Score:
    """A metric in percent, its difference to the one-to-one VLM in points, the share of the gap closed in percent.

    interval, paired: of the value and of the difference, in words; empty where none is known. chance: the interval of the
    difference holds 0. beyond: the model is above the one of true pairs on 97.5 % of the resamples; level: it is neither
    above nor below by more than chance. Both are false where no interval is known.
    """

    value: float | None
    difference: float | None
    closed: float | None
    interval: str = ""
    paired: str = ""
    chance: bool = False
    beyond: bool = False
    level: bool = False


@dataclass(frozen=True)
class ResultRow:
    job: str
    label: str
    a2r: Score
    r2a: Score
    by_group: tuple[float | None, ...]  # A->R, one a group of the table


@dataclass(frozen=True)
class SplitResults:
    """What was measured on one split. `mapping` is empty where no pairs were compared with known ones."""

    split: str
    regions: int | None
    groups: tuple[str, ...]
    rows: tuple[ResultRow, ...]
    mapping: Mapping[str, Any]
    mapping_groups: tuple[str, ...]

    def row(self, job: str) -> ResultRow | None:
        return next((r for r in self.rows if r.job == job), None)


Kept = Mapping[str, Mapping[str, Items]]  # split -> job -> what evaluate has kept


def by_split(results: Mapping[str, Any], kept: Kept | None = None) -> list[SplitResults]:
    """Every split of results.json, `test` first."""
    splits = dict(results.get("splits") or {})
    if not splits and results.get("metrics"):
        splits = {"test": results["metrics"]}
    order = sorted(splits, key=lambda s: (s != "test", s))
    return [split_results(s, splits[s], (kept or {}).get(s, {})) for s in order if splits[s]]


def split_results(split: str, measured: Mapping[str, Any], items: Mapping[str, Items]) -> SplitResults:
    jobs = [job for job in VLMS if measured.get(job)]
    mapping = measured.get("mapping") or {}
    groups = tuple(dict.fromkeys(g for job in jobs for g in measured[job].get("a2r_by_group") or {}))
    rows = tuple(
        ResultRow(
            job,
            TITLES[job],
            score(measured, job, "a2r", items),
            score(measured, job, "r2a", items),
            tuple(number((measured[job].get("a2r_by_group") or {}).get(g)) for g in groups),
        )
        for job in jobs
    )
    regions = next((int(n) for job in jobs if (n := number(measured[job].get("regions"))) is not None), None)
    return SplitResults(split, regions, groups, rows, mapping, tuple(mapping.get("f1_by_group") or {}))


def score(measured: Mapping[str, Any], job: str, metric: str, items: Mapping[str, Items]) -> Score:
    mine, base, best = (number((measured.get(j) or {}).get(metric)) for j in (job, "one_to_one", "ground_truth"))
    interval = between((measured.get(job) or {}).get(f"{metric}_interval"))
    if job == "one_to_one" or mine is None or base is None:
        return Score(mine, None, None, interval)
    base_items, best_items = items.get("one_to_one"), items.get("ground_truth")
    own = paired(base_items, items.get(job), metric)
    gap, over = paired(base_items, best_items, metric), paired(best_items, items.get(job), metric)
    closed = None if gap is not None and not gap.significant else gap_closed(mine, base, best)
    return Score(
        mine,
        mine - base,
        closed,
        interval,
        own.span if own else "",
        own is not None and not own.significant,
        over is not None and over.low > 0,
        over is not None and not over.significant,
    )


def gap_closed(mine: float, base: float, best: float | None) -> float | None:
    """Share in percent of the way from `base` to `best`; None where there is no gap worth the name."""
    if best is None or best - base < MIN_GAP:
        return None
    return 100.0 * (mine - base) / (best - base)


@dataclass(frozen=True)
class TrainingRow:
    job: str
    label: str
    steps: int
    loss: float | None  # of the last logged step
    images_per_second: float | None
    data_wait: float | None  # percent of the time spent waiting for data


def training(metrics: Mapping[str, Sequence[Mapping[str, float]]]) -> list[TrainingRow]:
    rows = []
    for job, lines in metrics.items():
        last = lines[-1]
        wait = number(last.get("data_wait"))
        rows.append(
            TrainingRow(
                job,
                TITLES.get(job, job),
                int(number(last.get("step")) or 0),
                number(last.get("loss")),
                number(last.get("images_per_second")),
                None if wait is None else 100.0 * wait,
            )
        )
    return rows


@dataclass(frozen=True)
class StageRow:
    """One stage on one split: sums over its committed shards. `parts` are seconds, of all workers together; where
    there is waiting, `read` and `decode` are those of threads beside the work."""

    split: str
    folder: str
    stage: str
    shards: int
    samples: int
    made: str
    parts: tuple[tuple[str, float], ...]

    @property
    def seconds(self) -> float | None:
        return worker_seconds(dict(self.parts)) if self.parts else None

    @property
    def binding(self) -> str:
        """The resource that took most of the workers' time, and its share."""
        found = binding(dict(self.parts))
        return f"{found[0]} ({found[1]:.0%})" if found else ""

    @property
    def rate(self) -> float | None:
        return self.samples / self.seconds if self.seconds else None


def profile(markers: Markers) -> list[StageRow]:
    """Every stage that has committed a shard, split by split. Raises: ShardError for a damaged marker."""
    rows = []
    for split in SPLITS:
        by_model = [f for f in Store(f"{markers.run}/{split}").folders() if f.partition("-")[0] in BY_MODEL]
        for folder, stage in {**STAGES, **{f: _by_model(f) for f in sorted(by_model)}}.items():
            found = markers.of(split, folder)
            if found.shards:
                made = [f"{count(n)} {name}" for name, n in sorted(found.counts.items()) if not _of_quality(name)]
                made += [f"estimated from {found.read:,} of the shards"] if found.read < found.shards else []
                parts = tuple(sorted(found.seconds.items(), key=lambda part: -part[1]))
                rows.append(StageRow(split, folder, stage, found.shards, found.samples, ", ".join(made), parts))
    return rows


def _of_quality(name: str) -> bool:
    """Whether a count is a part of the mapping's quality, which has a section of its own."""
    return ":" in name or any(name in parts for measure, parts in quality.PARTS.items() if measure != "empty")


def _by_model(folder: str) -> str:
    stage, _, name = folder.partition("-")
    return f"{stage}, {TITLES.get(name, name)}"


@dataclass(frozen=True)
class RefusedSample:
    split: str
    key: str
    reason: str
    detail: str


@dataclass(frozen=True)
class Refusals:
    """`by_reason[reason][i]` samples were refused in `splits[i]`. Of `warned` warnings the first are kept."""

    splits: tuple[str, ...]
    came_in: tuple[int, ...]
    by_reason: Mapping[str, tuple[int, ...]]
    examples: tuple[RefusedSample, ...]
    warnings: tuple[str, ...]
    warned: int

    @property
    def total(self) -> int:
        return sum(sum(counts) for counts in self.by_reason.values())


def refusals(markers: Markers) -> Refusals:
    """What ingest refused, with up to MOST_EXAMPLES examples shared fairly among the reasons, and as many warnings."""
    found = {split: base for split in SPLITS if (base := markers.of(split, "base")).shards}
    reasons = sorted({reason for base in found.values() for reason in base.refused})
    by_reason = {r: tuple(base.refused.get(r, 0) for base in found.values()) for r in reasons}
    left = quotas({r: sum(n) for r, n in by_reason.items()}, MOST_EXAMPLES)
    examples: list[RefusedSample] = []
    for split, base in found.items():
        for marker in base.refusing:
            if any(left[reason] for reason in marker.refused):
                examples += _examples(StageFolder(f"{markers.run}/{split}", "base"), split, marker, left)
    warnings = [line for base in found.values() for line in base.warnings]
    return Refusals(
        tuple(found),
        tuple(base.came_in for base in found.values()),
        by_reason,
        tuple(examples),
        tuple(warnings[:MOST_EXAMPLES]),
        sum(base.warned for base in found.values()),
    )


def _examples(folder: StageFolder, split: str, marker: Marker, left: dict[str, int]) -> list[RefusedSample]:
    """Rows of one shard's quarantine file, as long as `left` has room for their reason; `left` is counted down."""
    rows = []
    for output in marker.outputs:
        if not output.file.startswith("quarantine/"):
            continue
        name = folder.locate(output)
        table = sidecar.from_bytes(folder.store.read(name), folder.store.path(name), sidecar.QUARANTINE)
        for row in table.to_pylist():
            if left.get(row["reason"], 0):
                left[row["reason"]] -= 1
                rows.append(RefusedSample(split, row["key"], row["reason"], row["detail"]))
    return rows


def quotas(counts: Mapping[str, int], limit: int) -> dict[str, int]:
    """How many examples each reason gets, so that a frequent one does not hide a rare one."""
    given = dict.fromkeys(counts, 0)
    room = True
    while room and sum(given.values()) < limit:
        room = False
        for reason, there in counts.items():
            if given[reason] < there and sum(given.values()) < limit:
                given[reason] += 1
                room = True
    return given
