"""`villa shards stats`: what a data set holds, from markers, indices and sidecars of all shards, and texts and image headers
of a few. Nothing grows with the number of samples: results of shards are sums and histograms.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from shards import sidecar
from shards.commit import StageFolder
from shards.decode import DecodeError, image_member, sample_text, upright_size
from shards.errors import ShardError
from shards.gather import Look, Task, gather
from shards.histogram import Histogram
from shards.index import ShardIndex
from shards.places import Place, look_at, open_tar
from shards.reader import read_committed
from shards.store import Store
from shards.tar import Sample, Scan, tar_samples
from shards.verify_sidecar import SCHEMAS
from shards.work import RunUnits

SAMPLED = 8  # shards whose texts and image headers are read
TOP = 20  # attributes in the result


@dataclass
class Tally:
    """Sums and histograms of some shards; they add."""

    numbers: Counter[str] = field(default_factory=Counter)  # `stage/what` -> sum
    counters: dict[str, Counter[str]] = field(default_factory=dict)
    histograms: dict[str, Histogram] = field(default_factory=dict)

    def count(self, name: str, values: Mapping[str, int]) -> None:
        self.counters.setdefault(name, Counter()).update(dict(values))

    def spread(self, name: str, values: Any) -> None:
        self.histograms.setdefault(name, Histogram()).add(values)

    def to_json(self) -> dict[str, Any]:
        return {
            "numbers": dict(self.numbers),
            "counters": {k: dict(v) for k, v in self.counters.items()},
            "histograms": {k: v.to_json() for k, v in self.histograms.items()},
        }

    def merge(self, value: Mapping[str, Any]) -> None:
        self.numbers.update(value["numbers"])
        for name, counts in value["counters"].items():
            self.count(name, counts)
        for name, histogram in value["histograms"].items():
            self.histograms.setdefault(name, Histogram()).merge(Histogram.from_json(histogram))


@dataclass(frozen=True)
class StatsTask:
    """A unit is a shard. sampled: the shards whose tars are read."""

    place: Place
    sampled: frozenset[str]

    def open(self) -> Look:
        if self.place.kind == "tars":
            store = Store(self.place.url)
            return lambda unit: tally_tar(store, unit, unit in self.sampled).to_json()
        folders = [StageFolder(self.place.url, name) for name in self.place.stages]
        return lambda unit: tally_shard(folders, unit, unit in self.sampled).to_json()


@dataclass(frozen=True)
class Stats:
    place: Place
    shards: int
    sampled: int
    tally: Tally
    phrases: tuple[str, ...] = ()


def stats(
    path: str,
    run: RunUnits,
    *,
    sample: int = SAMPLED,
    scratch: str | None = None,
    progress: Callable[[int], None] = lambda total: None,
) -> Stats:
    """progress: called with the number of shards, then with 0 for each that is done.

    Raises: VillaError when `path` holds no shards; ShardError when a shard is damaged.
    """
    place = look_at(path)
    units: Sequence[str] = place.tars
    if place.kind != "tars":
        units = sorted({s for name in place.stages for s in StageFolder(place.url, name).shards_done()})
    sampled = spaced(units, sample)
    total = Tally()
    progress(len(units))

    def take(unit: str, result: dict[str, Any]) -> None:
        total.merge(result)
        progress(0)

    task: Task = StatsTask(place, frozenset(sampled))
    gather(run, task, units, take, scratch)
    return Stats(place, len(units), len(sampled), total, phrases(place))


def spaced(units: Sequence[str], wanted: int) -> list[str]:
    """Up to `wanted` units, evenly spaced, the same ones each time."""
    wanted = min(wanted, len(units))
    return [units[(2 * k + 1) * len(units) // (2 * wanted)] for k in range(wanted)]


def phrases(place: Place) -> tuple[str, ...]:
    """The vocabulary in the folder above a data set; empty where there is none that is readable."""
    above = Store(place.url.rpartition("/")[0] or ".")
    if place.kind == "tars" or not above.exists("vocabulary.parquet"):
        return ()
    try:
        table = sidecar.from_bytes(above.read("vocabulary.parquet"), "", pa.schema([("phrase", pa.string())]))
    except ShardError:
        return ()
    return tuple(table["phrase"].to_pylist())


def tally_shard(folders: Sequence[StageFolder], shard: str, sampled: bool) -> Tally:
    tally = Tally()
    for folder in folders:
        if not folder.store.exists(f"{shard}.done.json"):
            continue
        marker = folder.marker(shard)
        stage = folder.stage
        tally.numbers[f"{stage}/shards"] += 1
        tally.numbers[f"{stage}/samples"] += marker.samples
        tally.numbers[f"{stage}/bytes"] += sum(o.bytes for o in marker.outputs)
        tally.count(f"{stage}/refused", marker.refused)
        if stage == "base":
            place, data = read_committed(folder, marker.output(".idx"))
            index = ShardIndex.from_bytes(data, place)
            tally.spread("sample_bytes", index.lengths)
            tally.count("suffixes", Counter(s for row in range(len(index)) for s, _, _ in index.members(row)))
            if sampled:
                _look_inside(folder.store, folder.locate(marker.output(".tar")), tally)
        elif stage in SCHEMAS:
            place, data = read_committed(folder, marker.output(".parquet"))
            tally_sidecar(sidecar.from_bytes(data, place, SCHEMAS[stage]), stage, tally)
    return tally


def tally_tar(store: Store, name: str, sampled: bool) -> Tally:
    tally, scan = Tally(), Scan()
    with open_tar(store, name) as (view, file):
        samples = list(tar_samples(view, file, scan))
        tally.numbers["tars/bytes"] += len(view)
    tally.numbers["tars/shards"] += 1
    tally.numbers["tars/samples"] += len(samples)
    tally.count("tars/refused", Counter(reason for _, reason in scan.refused))
    if scan.problem:
        tally.count("tars/refused", {"damaged_shard": 1})
    tally.spread("sample_bytes", [s.stop - s.start for s in samples])
    tally.count("suffixes", Counter(f"{suffix}" for s in samples for suffix in s.suffixes))
    if sampled:
        _look_inside(store, name, tally)
    return tally


def tally_sidecar(table: pa.Table, stage: str, tally: Tally) -> None:
    _, box_at = sidecar.list_column(table, "boxes")
    tally.numbers[f"{stage}/regions"] += int(box_at[-1])
    tally.spread(f"{stage}/regions_per_image", np.diff(box_at))
    name = "attribute" if "attribute" in table.column_names else "attributes"
    ids, at = sidecar.list_column(table, name)
    what = "pairs" if name == "attribute" else "mentions"
    tally.numbers[f"{stage}/{what}"] += len(ids)
    tally.spread(f"{stage}/{what}_per_image", np.diff(at))
    found, counts = np.unique(ids, return_counts=True)
    counted = zip(found.tolist(), counts.tolist(), strict=True)
    tally.count(f"{stage}/attributes", {str(i): n for i, n in counted})


def _look_inside(store: Store, name: str, tally: Tally) -> None:
    """Texts and image headers of one tar."""
    scan, words, sizes = Scan(), [], []
    with open_tar(store, name) as (view, file):
        for sample in tar_samples(view, file, scan):
            members = _members(view, sample)
            try:
                words.append(len(sample_text(members).split()))
            except DecodeError as error:
                tally.count("unreadable", {error.reason: 1})
            try:
                sizes.append(upright_size(image_member(members)))
            except DecodeError as error:
                tally.count("unreadable", {error.reason: 1})
    tally.spread("text_words", words)
    tally.spread("image_width", [w for w, _ in sizes])
    tally.spread("image_height", [h for _, h in sizes])


def _members(view: memoryview, sample: Sample) -> dict[str, bytes]:
    return {s: bytes(view[m.offset : m.offset + m.size]) for s, m in zip(sample.suffixes, sample.members, strict=True)}


def summary(found: Stats) -> dict[str, Any]:
    """The result line's content."""
    tally, numbers = found.tally, found.tally.numbers
    stages = [n for n in (found.place.stages or ("tars",)) if f"{n}/shards" in numbers]
    refused: Counter[str] = sum((c for n, c in tally.counters.items() if n.endswith("/refused")), Counter())
    return {
        "kind": found.place.kind,
        "shards": found.shards,
        "samples": max((numbers[f"{n}/samples"] for n in stages), default=0),
        "bytes": sum(numbers[f"{n}/bytes"] for n in stages),
        "sample_bytes": _of(tally, "sample_bytes"),
        "suffixes": dict(tally.counters.get("suffixes", Counter()).most_common()),
        "refused": dict(refused.most_common()),
        "text_words": _of(tally, "text_words"),
        "image_width": _of(tally, "image_width"),
        "image_height": _of(tally, "image_height"),
        "sampled_shards": found.sampled,
        "sampled_samples": tally.histograms["image_width"].count if "image_width" in tally.histograms else 0,
        "stages": {n: _stage(n, found) for n in stages},
    }


def _of(tally: Tally, name: str) -> dict[str, float]:
    return tally.histograms[name].summary() if name in tally.histograms else {}


def _stage(stage: str, found: Stats) -> dict[str, Any]:
    tally, numbers = found.tally, found.tally.numbers
    made: dict[str, Any] = {k: numbers[f"{stage}/{k}"] for k in ("shards", "samples", "bytes")}
    for what in ("regions", "pairs", "mentions"):
        if f"{stage}/{what}_per_image" in tally.histograms:
            made[what] = numbers[f"{stage}/{what}"]
            made[f"{what}_per_image"] = _of(tally, f"{stage}/{what}_per_image")
    if made.get("pairs"):
        made["bytes_per_pair"] = round(made["bytes"] / made["pairs"], 2)
    attributes = tally.counters.get(f"{stage}/attributes")
    if attributes:
        made["attributes"] = len(attributes)
        made["most_frequent"] = {_phrase(found.phrases, i): n for i, n in attributes.most_common(TOP)}
        made["per_attribute"] = _spread(list(attributes.values()))
    return made


def _phrase(known: Sequence[str], attribute: str) -> str:
    return known[int(attribute)] if 0 <= int(attribute) < len(known) else attribute


def _spread(values: list[int]) -> dict[str, float]:
    made = Histogram()
    made.add(values)
    return made.summary()
