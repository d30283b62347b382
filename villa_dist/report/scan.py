"""One pass over the pairs of a split, or over a sample of it: what the confusion and the gallery by query are made of.

Letters: A attributes, T true boxes and K boxes with pairs of an image, P pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import combinations

import numpy as np
from jaxtyping import Int

from shards import manifest
from shards.commit import StageFolder
from villa_dist.config import Config
from villa_dist.evaluate.assemble import pair_rows
from villa_dist.evaluate.mapping_quality import matched
from villa_dist.report.gallery import home_of
from villa_dist.types import RegionAttributePairs

MOST_SHARDS, MOST_IMAGES = 32, 4000  # that are read; spread evenly over a larger split
TOP = 16  # pairs kept of each attribute
MOST_TOGETHER = 12  # attributes of a region that are paired with one another


@dataclass(frozen=True)
class Hit:
    """A region that an attribute was given to. image: in the split's order; box: xyxy pixels; right: None where nothing is
    known to be true."""

    image: int
    box: tuple[float, float, float, float]
    score: float
    right: bool | None


@dataclass
class Scan:
    """What was seen. judged: against true pairs. regions: true ones if judged, else those with pairs.

    given[b, a]: regions that have attribute b and were given a although they have not (a = b: were given b rightly);
    having[a]: regions that have a, or without truth that were given it; both[a, b]: given both, a < b.
    """

    judged: bool
    shards: int
    part: bool = False  # not all of the split
    images: int = 0
    regions: int = 0
    given: dict[tuple[int, int], int] = field(default_factory=dict)
    having: dict[int, int] = field(default_factory=dict)
    both: dict[tuple[int, int], int] = field(default_factory=dict)
    best: dict[int, list[Hit]] = field(default_factory=dict)


def scan(config: Config, split: str, judged: bool) -> Scan:
    """Raises: ShardError when a sidecar is damaged or missing."""
    base = manifest.read(StageFolder(f"{config.run}/{split}", "base"))
    chosen = spread(len(base.shards), MOST_SHARDS)
    found = Scan(judged, len(chosen))
    first = np.concatenate([[0], np.cumsum(base.samples)]).astype(int)
    rows = -(-MOST_IMAGES // max(1, len(chosen)))
    for index in chosen:
        shard = base.shards[index]
        said = pair_rows(config, split, "pairs", shard)[:rows]
        true = pair_rows(config, split, "truth", shard)[:rows] if judged else [None] * len(said)
        for row, (pairs, truth) in enumerate(zip(said, true, strict=True)):
            see(found, int(first[index]) + row, pairs, truth)
    found.part = found.images < base.total
    found.best = {a: _first(hits) for a, hits in sorted(found.best.items())}
    return found


def spread(total: int, wanted: int) -> list[int]:
    """Up to `wanted` of range(total), evenly spaced."""
    wanted = min(total, wanted)
    return [(2 * k + 1) * total // (2 * wanted) for k in range(wanted)]


def see(found: Scan, image: int, pairs: RegionAttributePairs, truth: RegionAttributePairs | None) -> None:
    """Add one image."""
    found.images += 1
    right_P = matched(pairs, truth) if truth is not None else np.full(len(pairs.region), -1)
    for p in np.argsort(-np.asarray(pairs.score, np.float64), kind="stable"):
        x1, y1, x2, y2 = (round(float(v), 2) for v in pairs.boxes[int(pairs.region[p])])
        verdict = bool(right_P[p] >= 0) if truth is not None else None
        hits = found.best.setdefault(int(pairs.attribute[p]), [])
        hits.append(Hit(image, (x1, y1, x2, y2), float(pairs.score[p]), verdict))
        if len(hits) > 16 * TOP:
            hits[:] = _first(hits)
    if truth is None:
        _together(found, pairs)
        return
    found.regions += len(truth.boxes)
    home_K = home_of(pairs.boxes, truth.boxes)
    for has, was_given in zip(
        _sets(truth.region, truth.attribute, len(truth.boxes)),
        _given(pairs, right_P, home_K, len(truth.boxes)),
        strict=True,
    ):
        for b in has:
            found.having[b] = found.having.get(b, 0) + 1
            for a in was_given:
                if a == b or a not in has:
                    found.given[b, a] = found.given.get((b, a), 0) + 1


def _given(
    pairs: RegionAttributePairs, right_P: Int[np.ndarray, " P"], home_K: Int[np.ndarray, " K"], boxes: int
) -> list[set[int]]:
    """The attributes given to each true box: right ones where they were found, wrong ones where their box is at home."""
    at = np.where(right_P >= 0, right_P, home_K[pairs.region] if len(pairs.region) else right_P)
    inside = at < boxes
    return _sets(at[inside], pairs.attribute[inside], boxes)


def _sets(region: Sequence[int] | np.ndarray, attribute: Sequence[int] | np.ndarray, boxes: int) -> list[set[int]]:
    found: list[set[int]] = [set() for _ in range(boxes)]
    for r, a in zip(region, attribute, strict=True):
        found[int(r)].add(int(a))
    return found


def _together(found: Scan, pairs: RegionAttributePairs) -> None:
    """Which attributes were given to the same region."""
    for said in _sets(pairs.region, pairs.attribute, len(pairs.boxes)):
        found.regions += bool(said)
        for a in said:
            found.having[a] = found.having.get(a, 0) + 1
        for a, b in combinations(sorted(said)[:MOST_TOGETHER], 2):
            found.both[a, b] = found.both.get((a, b), 0) + 1


def _first(hits: Sequence[Hit]) -> list[Hit]:
    return sorted(hits, key=lambda h: (-h.score, h.image, h.box))[:TOP]
