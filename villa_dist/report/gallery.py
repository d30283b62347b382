"""The gallery: images of a split with their regions, and what the mapping said of each.

Letters: K boxes that have pairs, T true boxes, P pairs.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int, UInt8
from PIL import Image

from shards import manifest
from shards.commit import StageFolder
from shards.reader import BaseShard
from shards.store import Store
from villa_dist.attributes import vocabulary
from villa_dist.config import Config
from villa_dist.data.samples import Samples
from villa_dist.evaluate.assemble import pair_rows
from villa_dist.evaluate.mapping_quality import MATCH_IOU, matched
from villa_dist.regions.boxes import iou
from villa_dist.types import RegionAttributePairs

IMAGES = 12
MOST_REGIONS = 12  # an image; true regions are shown first
MOST_MARKS = 10  # a region, of one verdict
SMALL_SIDE = 256  # images up to this side are shown pixel by pixel, larger ones are scaled down
LARGE_SIDE = 640
BADGE = 0.07  # of the image's longer side
QUIET = 12.0  # spread of grey levels that a badge may cover more than it must

RIGHT, WRONG, MISSED, ASSIGNED = "right", "wrong", "missed", "assigned"
VERDICTS = (RIGHT, WRONG, MISSED, ASSIGNED)


@dataclass(frozen=True)
class Mark:
    """One attribute of one region. score: of the mapping, None for a missed one."""

    phrase: str
    verdict: str
    score: float | None


@dataclass(frozen=True)
class Region:
    """A numbered box, xywh in pixels of the image. known: a true region; others are proposals only."""

    number: int
    box: tuple[float, float, float, float]
    known: bool
    marks: tuple[Mark, ...]
    hidden: int = 0
    badge: tuple[float, float] = (0.0, 0.0)  # top left corner of its number


@dataclass(frozen=True)
class Picture:
    """One image of the gallery. counts: of the whole image, by verdict; hidden: regions that are not shown."""

    key: str
    text: str
    uri: str
    width: int
    height: int
    pixelated: bool
    regions: tuple[Region, ...]
    hidden: int
    counts: dict[str, int]

    @property
    def badge(self) -> float:
        return BADGE * max(self.width, self.height)


def split_of(config: Config) -> str | None:
    """The split to show: test, else the first other one whose pairs are complete."""
    for split in ("test", *config.evaluate.splits, "train"):
        if all(manifest.exists(StageFolder(f"{config.run}/{split}", stage)) for stage in ("base", "pairs")):
            return split
    return None


def has_truth(config: Config, split: str) -> bool:
    return manifest.exists(StageFolder(f"{config.run}/{split}", "truth"))


def pictures(config: Config, split: str, wanted: int = IMAGES) -> list[Picture]:
    """Images spread evenly over all shards of a split. Raises: ShardError when an input is damaged or missing."""
    known = Known(config, split)
    return [known.picture(index, row) for index, row in chosen_rows(known.samples.manifest.samples, wanted)]


class Known:
    """Images of a split with their pairs, and true pairs where there are some. One shard's pairs are held at a time."""

    def __init__(self, config: Config, split: str) -> None:
        self.config, self.split = config, split
        self.phrases = vocabulary.read(Store(config.run)).phrases
        self.samples = Samples(f"{config.run}/{split}", None, images=True, max_pixels=config.data.max_pixels)
        self.judge = has_truth(config, split)
        self._shard = ""
        self._pairs: list[RegionAttributePairs] = []
        self._truth: list[RegionAttributePairs] = []

    def picture(self, index: int, row: int, side: int = LARGE_SIDE) -> Picture:
        """Row `row` of shard `index`. side: of the picture at most; smaller images are not scaled.

        Raises: ShardError.
        """
        shard = self.samples.manifest.shards[index]
        if shard != self._shard:
            self._pairs = pair_rows(self.config, self.split, "pairs", shard)
            self._truth = pair_rows(self.config, self.split, "truth", shard) if self.judge else []
            self._shard = shard
        base: BaseShard = self.samples.shard(index).base
        sample = self.samples.row(index, row)
        assert sample.pixels is not None
        known = self._truth[row] if self.judge else None
        return picture(base.keys[row], sample.text, sample.pixels, self._pairs[row], known, self.phrases, side)


def chosen_rows(samples: Sequence[int], wanted: int) -> list[tuple[int, int]]:
    """(shard, row) of up to `wanted` samples, evenly spaced over shards of `samples[i]` rows each."""
    total = sum(samples)
    wanted = min(wanted, total)
    first = np.concatenate([[0], np.cumsum(samples)]).astype(int)
    places = [(2 * k + 1) * total // (2 * wanted) for k in range(wanted)]
    shards = np.searchsorted(first, places, side="right") - 1
    return [(int(s), int(p - first[s])) for s, p in zip(shards, places, strict=True)]


def picture(
    key: str,
    text: str,
    pixels: UInt8[np.ndarray, "H W 3"],
    pairs: RegionAttributePairs,
    truth: RegionAttributePairs | None,
    phrases: Sequence[str],
    side: int = LARGE_SIDE,
) -> Picture:
    """One image with its regions, numbered from 1; truth None: nothing is known, so nothing is judged."""
    height, width = pixels.shape[:2]
    every = judged(pairs, truth, phrases) if truth is not None else unjudged(pairs, phrases)
    counts = {v: sum(m.verdict == v for r in every for m in r.marks) for v in VERDICTS}
    shown = place_badges([capped(r) for r in every[:MOST_REGIONS]], pixels)
    small = max(width, height) <= SMALL_SIDE
    return Picture(
        key, text, data_uri(pixels, side), width, height, small, tuple(shown), len(every) - len(shown), counts
    )


def judged(pairs: RegionAttributePairs, truth: RegionAttributePairs, phrases: Sequence[str]) -> list[Region]:
    """True regions with their right, wrong and missed attributes, then boxes that meet none of them.

    A right pair stands at the true region it found; a wrong one at the true region its box meets best.
    """
    found_P = matched(pairs, truth)
    home_K = home_of(pairs.boxes, truth.boxes)
    marks: list[list[tuple[int, int, Mark]]] = [[] for _ in range(len(truth.boxes) + len(pairs.boxes))]

    def add(place: int, verdict: str, attribute: int, score: float | None) -> None:
        order = (VERDICTS.index(verdict), attribute)
        marks[place].append((*order, Mark(phrases[attribute], verdict, score)))

    for p, found in enumerate(found_P):
        box, attribute = int(pairs.region[p]), int(pairs.attribute[p])
        place = int(found) if found >= 0 else int(home_K[box])
        add(place, RIGHT if found >= 0 else WRONG, attribute, float(pairs.score[p]))
    hit = {(int(t), int(a)) for t, a in zip(found_P, pairs.attribute, strict=True) if t >= 0}
    for t, a in zip(truth.region, truth.attribute, strict=True):
        if (int(t), int(a)) not in hit:
            add(int(t), MISSED, int(a), None)
    boxes = np.concatenate([truth.boxes, pairs.boxes]).astype(np.float64)
    shown = [i for i in range(len(boxes)) if i < len(truth.boxes) or marks[i]]
    return [
        Region(n, _xywh(boxes[i]), i < len(truth.boxes), tuple(m for *_, m in sorted(marks[i], key=lambda x: x[:2])))
        for n, i in enumerate(shown, 1)
    ]


def home_of(boxes: Float[np.ndarray, "K 4"], true: Float[np.ndarray, "T 4"]) -> Int[np.ndarray, " K"]:
    """Where each box is shown: the true region it meets best, else a place of its own, numbered from T."""
    own_K = len(true) + np.arange(len(boxes))
    if not len(boxes) or not len(true):
        return own_K
    overlap_KT = iou(boxes.astype(np.float64), true.astype(np.float64))
    return np.where(overlap_KT.max(1) >= MATCH_IOU, overlap_KT.argmax(1), own_K)


def unjudged(pairs: RegionAttributePairs, phrases: Sequence[str]) -> list[Region]:
    """Every box with its attributes by score; the surest box first."""
    marks: list[list[Mark]] = [[] for _ in pairs.boxes]
    for p in np.argsort(-np.asarray(pairs.score, np.float64), kind="stable"):
        phrase = phrases[int(pairs.attribute[p])]
        marks[int(pairs.region[p])].append(Mark(phrase, ASSIGNED, float(pairs.score[p])))
    order = sorted((k for k in range(len(marks)) if marks[k]), key=lambda k: -(marks[k][0].score or 0.0))
    return [Region(n, _xywh(pairs.boxes[k]), False, tuple(marks[k])) for n, k in enumerate(order, 1)]


def capped(region: Region) -> Region:
    """At most MOST_MARKS of each verdict, in order."""
    seen = dict.fromkeys(VERDICTS, 0)
    kept = []
    for mark in region.marks:
        seen[mark.verdict] += 1
        if seen[mark.verdict] <= MOST_MARKS:
            kept.append(mark)
    return Region(region.number, region.box, region.known, tuple(kept), len(region.marks) - len(kept))


def place_badges(regions: Sequence[Region], pixels: UInt8[np.ndarray, "H W 3"]) -> list[Region]:
    """Each number in a corner of its box: the first one, clockwise from the top left, that covers no other number and
    little of what is to be seen."""
    side = BADGE * max(pixels.shape[:2])
    taken: list[tuple[float, float]] = []
    placed = []
    for r in regions:
        x, y, w, h = r.box
        corners = [(x, y), (x + w - side, y), (x + w - side, y + h - side), (x, y + h - side)]
        free = [c for c in corners if all(abs(c[0] - t[0]) >= side or abs(c[1] - t[1]) >= side for t in taken)]
        busy = [_busy(pixels, c, side) for c in free or corners]
        quiet = [c for c, b in zip(free or corners, busy, strict=True) if b <= min(busy) + QUIET]
        taken.append(quiet[0])
        placed.append(Region(r.number, r.box, r.known, r.marks, r.hidden, quiet[0]))
    return placed


def _busy(pixels: UInt8[np.ndarray, "H W 3"], corner: tuple[float, float], side: float) -> float:
    """How much there is to see under a badge: the spread of the pixels' values, 0 to 128."""
    x, y = (max(0, int(c)) for c in corner)
    under = pixels[y : y + int(side) + 1, x : x + int(side) + 1]
    return float(under.std()) if under.size else 0.0


def data_uri(pixels: UInt8[np.ndarray, "H W 3"], side: int = LARGE_SIDE) -> str:
    """PNG for small images, whose pixels are shown as they are; JPEG of at most `side` for others."""
    image, handle = Image.fromarray(pixels), io.BytesIO()
    if max(image.size) <= SMALL_SIDE:
        image.save(handle, "PNG", optimize=True)
        kind = "png"
    else:
        image.thumbnail((side, side))
        image.save(handle, "JPEG", quality=85 if side > SMALL_SIDE else 75)
        kind = "jpeg"
    return f"data:image/{kind};base64," + base64.b64encode(handle.getvalue()).decode()


def _xywh(box: np.ndarray) -> tuple[float, float, float, float]:
    x1, y1, x2, y2 = (round(float(v), 2) for v in box)
    return x1, y1, round(x2 - x1, 2), round(y2 - y1, 2)
