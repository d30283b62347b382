"""How well the mapping did on each shard, in shard order, so that one of another kind is seen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from villa_dist.mapping import quality
from villa_dist.report import tables
from villa_dist.report.markers import Folder, Markers
from villa_dist.report.plots import Plot, scatter
from villa_dist.report.text import figure

MEASURES = {
    "presence": ("Presence", "images that mention an attribute, told from those that do not", "presence (0.5: chance)"),
    "doubt": ("Doubt", "mean entropy of a score", "entropy (bits)"),
    "empty": ("Regions without an attribute", "share of the shard's regions", "share of regions"),
}
MOST_NAMED = 20


@dataclass(frozen=True)
class Apart:
    """A shard far from most in at least one measure. values: by measure, where known; far: those it is far in."""

    shard: str
    values: Mapping[str, float]
    far: tuple[str, ...]


@dataclass(frozen=True)
class Quality:
    """Of one split. whole: over all shards; apart: up to MOST_NAMED of `apart_count`."""

    split: str
    shards: int
    whole: Mapping[str, float]
    plots: tuple[Plot, ...]
    apart: tuple[Apart, ...]
    apart_count: int


def mapping_quality(markers: Markers) -> list[Quality]:
    """Of every split whose pair markers say something. Raises: ShardError for a damaged marker."""
    found = [of_split(split, markers.of(split, "pairs")) for split in tables.SPLITS]
    return [q for q in found if q is not None]


def of_split(split: str, pairs: Folder) -> Quality | None:
    of_shard = {shard: quality.of_counts(counts) for shard, counts in pairs.of_shard.items()}
    whole = quality.of_counts(pairs.counts)
    if not any(name in whole for name in MEASURES):
        return None
    far = {name: set(quality.far(column(of_shard, name))) for name in MEASURES}
    apart = [
        Apart(shard, values, tuple(name for name in MEASURES if shard in far[name]))
        for shard, values in of_shard.items()
        if any(shard in f for f in far.values())
    ]
    plots = tuple(
        scatter(*MEASURES[name], [of_shard[s].get(name) for s in of_shard], [s in far[name] for s in of_shard])
        for name in MEASURES
        if name in whole
    )
    return Quality(split, len(of_shard), whole, plots, tuple(apart[:MOST_NAMED]), len(apart))


def column(of_shard: Mapping[str, Mapping[str, float]], name: str) -> dict[str, float]:
    return {shard: values[name] for shard, values in of_shard.items() if name in values}


def said(q: Quality) -> str:
    """The measures of the whole split in one line."""
    return ", ".join(f"{name} {figure(q.whole[name], 3)}" for name in MEASURES if name in q.whole)


def named(apart: Sequence[Apart]) -> str:
    return ", ".join(a.shard for a in apart)
