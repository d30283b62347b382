"""The gallery by query: for each attribute the regions that a model or the mapping ranks first, as data for a script.

    items of the models (true regions)  ─┐
    best pairs of the scan (given boxes) ─┴▶ rankings ▶ images within a budget of bytes ▶ JSON inside the page

What the page lacks room for is left out fairly: every query keeps its first regions before any keeps its last.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from shards import manifest
from shards.commit import StageFolder
from villa_dist.config import Config
from villa_dist.evaluate.assemble import pair_rows
from villa_dist.evaluate.items import Items
from villa_dist.names import TITLES
from villa_dist.report import gallery
from villa_dist.report.scan import Hit, Scan
from villa_dist.report.text import count, number, plain, shortened

MOST_QUERIES = 400
MOST_HITS = 12  # shown of a query
MOST_BYTES = 6_000_000  # of images with their regions and texts, as they stand in the page
MOST_REGIONS = 10_000  # of all images together
MOST_TEXT = 400  # characters of an image's text
MAPPING = "mapping"
BATCH = 256  # images that are read in the order of their shards


@dataclass(frozen=True)
class Ranking:
    """Hits of each attribute, best first. name: a job, or "mapping"."""

    name: str
    label: str
    hits: Mapping[int, Sequence[Hit]]


def rankings(config: Config, split: str, items: Mapping[str, Items], found: Scan) -> list[Ranking]:
    """Of the models that have one, ViLLA's first, then of the mapping."""
    order = sorted(
        (job for job in items if items[job].ranking), key=lambda job: (job != "villa", list(TITLES).index(job))
    )
    boxes = _true_boxes(config, split, [items[job] for job in order])
    made = [Ranking(job, TITLES[job], _hits(items[job], boxes)) for job in order]
    return [*made, *([Ranking(MAPPING, TITLES[MAPPING], found.best)] if found.best else [])]


def _true_boxes(config: Config, split: str, kept: Sequence[Items]) -> dict[int, np.ndarray]:
    """The true boxes (T x 4) of every image that a ranking names."""
    wanted = sorted({int(i) for each in kept if each.ranking for i in each.ranking.image.reshape(-1)})
    base = manifest.read(StageFolder(f"{config.run}/{split}", "base"))
    first = np.concatenate([[0], np.cumsum(base.samples)]).astype(int)
    found: dict[int, np.ndarray] = {}
    for index, shard in enumerate(base.shards):
        here = [i for i in wanted if first[index] <= i < first[index + 1]]
        rows = pair_rows(config, split, "truth", shard) if here else []
        found |= {i: rows[i - int(first[index])].boxes for i in here}
    return found


def _hits(kept: Items, boxes: Mapping[int, np.ndarray]) -> dict[int, list[Hit]]:
    best = kept.ranking
    assert best is not None
    found: dict[int, list[Hit]] = {}
    for q, a in enumerate(best.attribute):
        for k in range(best.image.shape[1]):
            image = int(best.image[q, k])
            x1, y1, x2, y2 = (round(float(v), 2) for v in boxes[image][int(best.box[q, k])])
            hit = Hit(image, (x1, y1, x2, y2), float(best.score[q, k]), bool(best.right[q, k]))
            found.setdefault(int(a), []).append(hit)
    return found


def explore(
    config: Config,
    split: str,
    items: Mapping[str, Items],
    found: Scan,
    phrases: Sequence[str],
    groups: Sequence[str],
) -> dict[str, Any]:
    """What the script shows; empty where there is nothing to ask for. Raises: ShardError when an input is damaged."""
    ranked = rankings(config, split, items, found)
    often = {a: max(len(r.hits.get(a, ())) for r in ranked) for r in ranked for a in r.hits}
    having = {
        a: int(items[r.name].relevant[a]) if r.name in items else found.having.get(a, 0)
        for r in ranked[:1]
        for a in often
    }
    asked = sorted(sorted(often, key=lambda a: (-having.get(a, 0), a))[:MOST_QUERIES])
    images = pictures(config, split, in_turn(ranked, asked))
    place = {image: n for n, image in enumerate(images)}
    queries = []
    for a in asked:
        hits = {r.name: [_hit(h, place) for h in r.hits.get(a, ())[:MOST_HITS] if h.image in place] for r in ranked}
        if any(hits.values()):
            queries.append(
                {
                    "p": plain(phrases[a]),
                    "g": plain(groups[a]),
                    "n": having.get(a, 0),
                    "v": _values(items, a),
                    "h": hits,
                }
            )
    if not queries:
        return {}
    return {
        "judged": found.judged,
        "rankings": [{"id": r.name, "label": r.label} for r in ranked],
        "queries": queries,
        "images": list(images.values()),
    }


def in_turn(ranked: Sequence[Ranking], asked: Sequence[int]) -> list[int]:
    """The images of all hits, those of first places first, each once."""
    order = [r.hits[a][k].image for k in range(MOST_HITS) for r in ranked for a in asked if k < len(r.hits.get(a, ()))]
    return list(dict.fromkeys(order))


def _values(items: Mapping[str, Items], attribute: int) -> dict[str, float]:
    """R-Precision of the attribute by job."""
    told = {job: number(float(kept.by_attribute[attribute])) for job, kept in items.items() if len(kept.by_attribute)}
    return {job: round(value, 1) for job, value in told.items() if value is not None}


def _hit(hit: Hit, place: Mapping[int, int]) -> list[Any]:
    """[image, x, y, width, height, score, 1 right / 0 wrong / null unknown]."""
    x1, y1, x2, y2 = hit.box
    verdict = None if hit.right is None else int(hit.right)
    return [place[hit.image], x1, y1, round(x2 - x1, 2), round(y2 - y1, 2), round(hit.score, 3), verdict]


def pictures(config: Config, split: str, wanted: Sequence[int]) -> dict[int, dict[str, Any]]:
    """The images asked for, the first ones first, as many as the budgets hold: pixels, text, and all regions with marks."""
    known = gallery.Known(config, split)
    first = np.concatenate([[0], np.cumsum(known.samples.manifest.samples)]).astype(int)
    shown: dict[int, dict[str, Any]] = {}
    size = regions = 0
    for some in _batches(wanted):  # shard by shard within a batch, since few shards are kept open
        for image in sorted(some):
            index = int(np.searchsorted(first, image, side="right")) - 1
            told = _described(known.picture(index, image - int(first[index]), side=gallery.SMALL_SIDE))
            size, regions = size + len(json.dumps(told)), regions + len(told["r"])
            if size > MOST_BYTES or regions > MOST_REGIONS:
                return shown
            shown[image] = told
    return shown


def _batches(wanted: Sequence[int]) -> list[Sequence[int]]:
    return [wanted[i : i + BATCH] for i in range(0, len(wanted), BATCH)]


def _described(picture: gallery.Picture) -> dict[str, Any]:
    regions = [
        [
            *r.box,
            *(round(v, 2) for v in r.badge),
            int(r.known),
            [[plain(m.phrase), m.verdict, None if m.score is None else round(m.score, 3)] for m in r.marks],
        ]
        for r in picture.regions
    ]
    key, text = plain(shortened(picture.key, 120)), plain(shortened(picture.text, MOST_TEXT))
    said = count(picture.hidden, "more region") if picture.hidden else ""
    return {
        "k": key, "t": text, "u": picture.uri, "w": picture.width, "h": picture.height,
        "p": int(picture.pixelated), "r": regions, "m": said,
    }  # fmt: skip
