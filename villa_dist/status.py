"""What a run has committed so far and how fast, from its markers alone: it can be asked while a job runs, from anywhere."""

from __future__ import annotations

import time
from collections.abc import Mapping
from statistics import median
from typing import Any

from shards import manifest
from shards.commit import SUFFIX, Marker, StageFolder
from shards.errors import ShardError, VillaError
from shards.store import Store
from villa_dist import models
from villa_dist.mapping import quality
from villa_dist.names import JOBS
from villa_dist.observe import duration
from villa_dist.profile import binding, summed
from villa_dist.stages.progress import retried

SPLITS = ("train", "validation", "test")
OF_A_SAMPLE = (
    "embeddings",
)  # and `regions` where pairs are fused: how many shards they will have is not known from base
RECENT = 128  # commits that the rate is taken over
PAUSE = 20.0  # times the usual distance between commits: the job was started again there


def status(run: str, now: float | None = None) -> dict[str, Any]:
    """Every stage of a run, and which models are finished. Raises: VillaError when there is no such run."""
    store = Store(run)
    if not store.exists("config.yaml") and not store.exists("train"):
        raise VillaError(
            f"{store.path()} is not the folder of a run: it holds neither config.yaml nor train/; "
            "give the folder that the config names as `run`, which is also in every result line"
        )
    stages: dict[str, Any] = {}
    for split in SPLITS:
        names = Store(f"{run}/{split}").folders()
        base = _shards_of_base(run, split)
        for name in names:
            found = stage_status(StageFolder(f"{run}/{split}", name), base, time.time() if now is None else now)
            if found:
                stages[f"{split}/{name}"] = found
    finished = {n: models.done(f"{run}/models/{n}") is not None for n in JOBS}
    return {"run": run, "stages": stages, "models": finished, "report": store.exists("report.html")}


def _shards_of_base(run: str, split: str) -> tuple[int, int] | None:
    """(shards, samples) of a split, once its ingest is complete."""
    try:
        base = manifest.read(StageFolder(f"{run}/{split}", "base"))
    except ShardError:
        return None
    return len(base.shards), base.total


def stage_status(folder: StageFolder, base: tuple[int, int] | None, now: float) -> dict[str, Any] | None:
    """None where nothing is committed. Raises: ShardError for a damaged marker."""
    modified = folder.store.list_modified("", SUFFIX)
    if not modified:
        return None
    markers = {name: folder.marker(name.removesuffix(SUFFIX)) for name in modified}
    complete = folder.store.exists(manifest.NAME)
    found: dict[str, Any] = {
        "shards": len(markers),
        "samples": sum(m.samples for m in markers.values()),
        "refused": summed(m.refused for m in markers.values()),
        "complete": complete,
        "counts": summed(m.counts for m in markers.values()),
        "retried": retried(folder),
        "seconds": {k: round(s, 1) for k, s in summed(m.seconds for m in markers.values()).items()},
    }
    if judged := quality.of_counts(found["counts"]):
        apart = quality.outlying(
            {name.removesuffix(SUFFIX): quality.of_counts(m.counts) for name, m in markers.items()}
        )
        found["quality"] = {**judged, **({"outlying": apart} if apart else {})}
    held_up = binding(found["seconds"])
    if held_up:
        found["binding"] = {"resource": held_up[0], "share": round(held_up[1], 3)}
    found |= _rates(markers, modified)
    if complete or base is None or folder.stage in OF_A_SAMPLE:
        return found
    found["of"] = {"shards": base[0], "samples": base[1]}
    rate = found.get("images_per_second")
    if rate:
        left = (base[1] - found["samples"]) / rate - max(0.0, now - max(modified.values()))
        found["seconds_left"] = round(max(0.0, left), 1)
    found["seconds_since_commit"] = round(max(0.0, now - max(modified.values())), 1)
    return found


def _rates(markers: Mapping[str, Marker], modified: Mapping[str, float]) -> dict[str, float]:
    """Images, regions and pairs a second over the last commits of the job that runs, or ran last."""
    names = recent(modified)
    seconds = modified[names[-1]] - modified[names[0]]
    if seconds <= 0:
        return {}
    later = [markers[name] for name in names[1:]]  # the first only says when the others began
    rates = {"images_per_second": sum(m.samples for m in later) / seconds}
    for what in ("regions", "pairs"):
        if any(what in m.counts for m in later):
            rates[f"{what}_per_second"] = sum(m.counts.get(what, 0) for m in later) / seconds
    return {name: round(rate, 2) for name, rate in rates.items()}


def recent(modified: Mapping[str, float]) -> list[str]:
    """The last commits in order, back to the last long pause."""
    names = sorted(modified, key=lambda name: (modified[name], name))[-RECENT:]
    steps = [modified[b] - modified[a] for a, b in zip(names, names[1:], strict=False)]
    usual = median([s for s in steps if s > 0] or [0.0])
    start = max((n + 1 for n, step in enumerate(steps[:-1]) if step > max(PAUSE * usual, 60.0)), default=0)
    return names[start:]


def lines(found: Mapping[str, Any]) -> list[str]:
    """One line a stage for a person; what is done last comes last."""
    told = []
    for name, stage in found["stages"].items():
        of = f"/{stage['of']['shards']}" if "of" in stage else ""
        said = [f"{name:<24} {stage['shards']}{of} shards, {stage['samples']:,} images"]
        said += [
            f"{stage[f'{what}_per_second']:,.1f} {what}/s"
            for what in ("images", "regions", "pairs")
            if f"{what}_per_second" in stage
        ]
        if stage["retried"]:
            said.append(f"retried {sum(stage['retried'].values())} ({_counted(stage['retried'])})")
        if stage["refused"]:
            said.append(f"quarantined {sum(stage['refused'].values())} ({_counted(stage['refused'])})")
        said += [f"{name} {value:.3f}" for name, value in stage.get("quality", {}).items() if name != "outlying"]
        said += [f"shard {shard}: {why}" for shard, why in stage.get("quality", {}).get("outlying", {}).items()]
        if "binding" in stage:
            said.append(f"{stage['binding']['resource']} {stage['binding']['share']:.0%}")
        if stage["complete"]:
            said.append("complete")
        elif "seconds_left" in stage:
            said.append(f"{duration(stage['seconds_left'])} left")
        told.append(", ".join(said))
    return told


def _counted(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in sorted(counts.items()))
