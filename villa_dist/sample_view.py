"""One sample with what its sidecars say of it, found by its key: what `villa shards show` draws.

Letters: R regions, P pairs.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np
import pyarrow as pa
from jaxtyping import UInt8

from shards import sidecar
from shards.commit import SUFFIX, StageFolder
from shards.decode import DecodeError, decode_image, image_member, sample_text
from shards.errors import ShardError, VillaError
from shards.places import Place, look_at, open_tar
from shards.reader import BaseShard, read_sidecar
from shards.stats import phrases
from shards.store import Store
from shards.tar import Scan, group, walk

STAGES = ("pairs", "truth", "regions")  # in the order they are looked for
NEAREST = 5
LOOKED_THROUGH = 200_000  # keys that are compared for suggestions


@dataclass(frozen=True)
class Region:
    """A box, xyxy in pixels, with (phrase, score) of each attribute that is said of it, surest first.

    group: regions of one are drawn in one colour; None: each has its own.
    """

    box: tuple[float, float, float, float]
    marks: tuple[tuple[str, float], ...]
    score: float
    group: int | None = None


@dataclass(frozen=True)
class View:
    """regions: surest first. mentions: attributes that the text mentions, where a regions sidecar says so."""

    key: str
    where: str
    stage: str
    pixels: UInt8[np.ndarray, "H W 3"]
    text: str
    regions: tuple[Region, ...]
    mentions: tuple[str, ...] = ()


def view(path: str, key: str, stage: str | None = None) -> View:
    """The sample `key` of a data set, or of foreign tars.

    Raises: VillaError when there is no such sample (with the nearest keys) or no such stage; ShardError when it is damaged.
    """
    place = look_at(path)
    if place.kind == "tars":
        return _of_tars(place, key)
    stage = stage if stage or place.kind == "dataset" else _sidecar_or_none(place.stages[0])
    base = StageFolder(place.url, "base")
    for shard in base.shards_done():
        opened = BaseShard(base, shard)
        if key in opened.keys:
            return _of_shard(place, opened, opened.keys.index(key), stage)
    every = (k for shard in base.shards_done() for k in BaseShard(base, shard).keys)
    raise VillaError(_unknown(path, key, every))


def _sidecar_or_none(name: str) -> str | None:
    return name if name in STAGES else None


def _unknown(path: str, key: str, every: Iterator[str]) -> str:
    """The message for a key that is not there. Compares at most LOOKED_THROUGH keys."""
    nearest: list[str] = []
    keys = islice(every, LOOKED_THROUGH)
    while chunk := list(islice(keys, 2000)):
        close = difflib.get_close_matches(key, [*nearest, *chunk], 10 * NEAREST, 0.4) or [*nearest, *chunk]
        nearest = sorted(close, key=lambda k: -_alike(key, k))[:NEAREST]  # a stable sort: then by likeness
    known = f"the nearest are {', '.join(map(repr, nearest))}" if nearest else "it holds no sample"
    return f"there is no sample {key!r} in {path}; {known}"


def _alike(a: str, b: str) -> int:
    """How many characters two keys begin with alike."""
    return next((n for n, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def _of_shard(place: Place, base: BaseShard, row: int, stage: str | None) -> View:
    members = base.sample(row)
    key = base.keys[row]
    where = f"{base.place} row {row}"
    pixels, text = _decoded(members, where)
    chosen = stage or next((s for s in STAGES if StageFolder(place.url, s).store.exists(base.shard + SUFFIX)), None)
    if chosen is None:
        return View(key, where, "", pixels, text, ())
    if chosen not in STAGES:
        raise VillaError(f"stage {chosen!r} has no boxes to show; choose one of {', '.join(STAGES)}")
    table = read_sidecar(
        StageFolder(place.url, chosen), base.shard, sidecar.REGIONS if chosen == "regions" else sidecar.PAIRS
    )
    sidecar.check_aligned(table, base.keys, f"{place.url}/{chosen}/{base.shard}")
    words = phrases(place)
    made = _regions(table, row, words) if chosen == "regions" else _pairs(table, row, words)
    mentions = table["attributes"][row].as_py() if chosen == "regions" else ()
    return View(key, where, chosen, pixels, text, made, tuple(_phrase(words, i) for i in mentions))


def _pairs(table: pa.Table, row: int, words: tuple[str, ...]) -> tuple[Region, ...]:
    boxes, region, attribute, score = (table[n][row].as_py() for n in ("boxes", "region", "attribute", "score"))
    marks: list[list[tuple[str, float]]] = [[] for _ in boxes]
    for r, a, s in zip(region, attribute, score, strict=True):
        if r >= len(boxes):
            raise ShardError(f"row {row} names region {r} of {len(boxes)}; `villa shards verify` says more")
        marks[r].append((_phrase(words, a), float(s)))
    made = [
        Region(tuple(box), tuple(sorted(m, key=lambda x: -x[1])), max((s for _, s in m), default=0.0))
        for box, m in zip(boxes, marks, strict=True)
    ]
    return tuple(sorted(made, key=_first))


def _regions(table: pa.Table, row: int, words: tuple[str, ...]) -> tuple[Region, ...]:
    made = [
        Region(tuple(box), (), float(score))
        for box, score in zip(table["boxes"][row].as_py(), table["objectness"][row].as_py(), strict=True)
    ]
    return tuple(sorted(made, key=_first))


def _first(region: Region) -> tuple[float, float]:
    """Surer regions come first, of equally sure ones the larger."""
    x1, y1, x2, y2 = region.box
    return -region.score, -(x2 - x1) * (y2 - y1)


def _phrase(words: tuple[str, ...], attribute: int) -> str:
    return words[attribute] if 0 <= attribute < len(words) else f"attribute {attribute}"


def _decoded(members: dict[str, bytes], where: str) -> tuple[np.ndarray, str]:
    """A sample without a text is shown with none; one without an image that decodes cannot be."""
    try:
        pixels = decode_image(image_member(members))
    except DecodeError as error:
        raise VillaError(f"{where} cannot be shown: {error}") from error
    try:
        return pixels, sample_text(members)
    except DecodeError as error:
        return pixels, f"({error})"


def _of_tars(place: Place, key: str) -> View:
    store = Store(place.url)
    for name in place.tars:
        with open_tar(store, name) as (data, file):
            for sample in group(walk(data, file, Scan()), Scan()):
                if sample.key == key:
                    pairs = zip(sample.suffixes, sample.members, strict=True)
                    members = {s: bytes(data[m.offset : m.offset + m.size]) for s, m in pairs}
                    where = store.path(name)
                    return View(key, where, "", *_decoded(members, where), ())
    raise VillaError(_unknown(place.url, key, _keys(store, place.tars)))


def _keys(store: Store, names: tuple[str, ...]) -> Iterator[str]:
    for name in names:
        with open_tar(store, name) as (data, file):
            yield from [sample.key for sample in group(walk(data, file, Scan()), Scan())]
