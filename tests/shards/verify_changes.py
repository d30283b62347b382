"""Single changes to a correct data set, each with the finding that must be made of it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import made_dataset
import numpy as np
from made_dataset import change_column, edit_json, edit_marker, remake_manifest, replace_base, replace_output, samples

from shards import manifest, sidecar
from shards.index import SCHEMA, ShardIndex
from shards.tar import BLOCK, END

Change = Callable[[Path], object]
SHARD = "000001"


def flipped(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def cut(path: Path, at: int) -> None:
    path.write_bytes(path.read_bytes()[:at])


def swapped(a: Path, b: Path) -> None:
    first, second = a.read_bytes(), b.read_bytes()
    a.write_bytes(second)
    b.write_bytes(first)


def swapped_with_markers(dataset: Path, stage: str) -> None:
    """Two shards' sidecars change places, and everything that names them is made to agree."""
    made = made_dataset.tables
    first, second = (sidecar.to_bytes(made(s)[stage]) for s in ("000000", "000001"))
    replace_output(dataset, stage, "000000", "000000.parquet", second)
    replace_output(dataset, stage, "000001", "000001.parquet", first)


def set_value(row: int, value: Any) -> Callable[[list[Any]], None]:
    def change(values: list[Any]) -> None:
        values[row] = value

    return change


def set_inner(row: int, at: int, value: Any) -> Callable[[list[Any]], None]:
    def change(values: list[Any]) -> None:
        values[row][at] = value

    return change


def with_samples(change: Callable[[Any], Any]) -> Change:
    """The base shard's samples change, the rest of the data set does not; tar, index and their sums are right."""
    return lambda d: replace_base(d, "000000", change(samples("000000")), all_of_it=True)


def manifest_cell(name: str, change: Callable[[Any], Any]) -> Change:
    def apply(d: Path) -> None:
        path = d / "pairs" / manifest.NAME
        rows = sidecar.from_bytes(path.read_bytes(), "", manifest.SCHEMA).to_pydict()
        rows[name][1] = change(rows[name][1])
        path.write_bytes(sidecar.to_bytes(sidecar.table(manifest.SCHEMA, rows)))

    return apply


def manifest_rows(change: Callable[[list[int]], list[int]]) -> Change:
    def apply(d: Path) -> None:
        path = d / "base" / manifest.NAME
        table = sidecar.from_bytes(path.read_bytes(), "", manifest.SCHEMA)
        path.write_bytes(sidecar.to_bytes(table.take(change(list(range(len(table)))))))

    return apply


def trailing(d: Path) -> None:
    tar = (d / f"base/{SHARD}.tar").read_bytes()
    replace_output(d, "base", SHARD, f"{SHARD}.tar", tar + END)


def quarantine_rows(rows: list[tuple[str, str, int]]) -> Change:
    return lambda d: replace_output(d, "base", SHARD, f"quarantine/{SHARD}.parquet", made_dataset.quarantine(rows))


def index_cell(name: str, value: Any) -> Change:
    def apply(d: Path) -> None:
        _, data = made_dataset.tar_and_index(samples(SHARD))
        columns = ShardIndex.from_bytes(data, "").table.to_pydict()
        columns[name][2] = value
        made = ShardIndex(sidecar.table(SCHEMA, columns))
        replace_output(d, "base", SHARD, f"{SHARD}.idx", made.to_bytes())

    return apply


def key_order(values: list[str]) -> None:
    values[0], values[1] = values[1], values[0]


def another_key(made: Any) -> Any:
    return [("other", made[0][1]), *made[1:]]


def marker_file(change: Callable[[dict[str, Any]], None], stage: str = "base") -> Change:
    return lambda d: edit_json(d / stage / f"{SHARD}.done.json", change)


INF = float("inf")
CHANGES: dict[str, tuple[Change, str]] = {
    # files
    "tar: a byte of a header": (lambda d: flipped(d / f"base/{SHARD}.tar", 3), "error: another content"),
    "tar: a byte of an image": (lambda d: flipped(d / f"base/{SHARD}.tar", 600), "error: another content"),
    "tar: a byte of the padding": (lambda d: flipped(d / f"base/{SHARD}.tar", -1030), "error: another content"),
    "tar: a byte of the end": (lambda d: flipped(d / f"base/{SHARD}.tar", -3), "error: another content"),
    "tar: cut at a member": (lambda d: cut(d / f"base/{SHARD}.tar", 4 * BLOCK), "error: another size"),
    "tar: cut before the end": (lambda d: cut(d / f"base/{SHARD}.tar", -1024), "error: damaged tar"),
    "tar: last end block cut": (lambda d: cut(d / f"base/{SHARD}.tar", -512), "error: another size"),
    "tar: empty": (lambda d: cut(d / f"base/{SHARD}.tar", 0), "error: damaged tar"),
    "tar: gone": (lambda d: (d / f"base/{SHARD}.tar").unlink(), "error: missing file"),
    "tars: exchanged": (lambda d: swapped(d / "base/000000.tar", d / "base/000002.tar"), "error: another content"),
    "tar: zeros behind the end": (trailing, "error: trailing data"),
    "index: a byte": (lambda d: flipped(d / f"base/{SHARD}.idx", 40), "error: another content"),
    "index: gone": (lambda d: (d / f"base/{SHARD}.idx").unlink(), "error: missing file"),
    "indices: exchanged": (lambda d: swapped(d / "base/000000.idx", d / "base/000001.idx"), "error: another"),
    "sidecar: a byte": (lambda d: flipped(d / f"pairs/{SHARD}.parquet", 100), "error: another content"),
    "sidecar: cut": (lambda d: cut(d / f"pairs/{SHARD}.parquet", -4), "error: another size"),
    "sidecar: gone": (lambda d: (d / f"regions/{SHARD}.parquet").unlink(), "error: missing file"),
    "sidecars: exchanged": (
        lambda d: swapped(d / "pairs/000000.parquet", d / "pairs/000001.parquet"),
        "error: another",
    ),
    "quarantine: a byte": (lambda d: flipped(d / f"base/quarantine/{SHARD}.parquet", 30), "error: another content"),
    "quarantine: gone": (lambda d: (d / f"base/quarantine/{SHARD}.parquet").unlink(), "error: missing file"),
    "quarantine: one that no marker names": (
        lambda d: (d / "base/quarantine/000000.parquet").write_bytes(b""),
        "warning: unclaimed file",
    ),
    "a stray shard": (lambda d: (d / "base/000009.tar").write_bytes(END), "warning: unclaimed file"),
    # markers
    "marker: gone": (lambda d: (d / f"base/{SHARD}.done.json").unlink(), "error: missing marker"),
    "marker: gone, from the manifest too": (
        lambda d: ((d / f"base/{SHARD}.done.json").unlink(), remake_manifest(d, "base")),
        "error: no base shard",
    ),
    "marker: of a sidecar gone": (lambda d: (d / f"truth/{SHARD}.done.json").unlink(), "error: incomplete stage"),
    "marker: empty": (lambda d: cut(d / f"pairs/{SHARD}.done.json", 0), "error: damaged marker"),
    "marker: no JSON": (lambda d: cut(d / f"pairs/{SHARD}.done.json", 90), "error: damaged marker"),
    "marker: spaces": (lambda d: (d / f"base/{SHARD}.done.json").open("a").write(" "), "error: damaged marker"),
    "marker: a field less": (marker_file(lambda m: m.pop("counts")), "error: damaged marker"),
    "marker: a text for a count": (marker_file(lambda m: m.update(samples="4")), "error: damaged marker"),
    "marker: samples": (lambda d: edit_marker(d, "base", SHARD, samples=5), "error: marker differs"),
    "marker: keys digest": (lambda d: edit_marker(d, "base", SHARD, keys_digest="0" * 32), "error: marker differs"),
    "marker: content digest": (
        lambda d: edit_marker(d, "base", SHARD, content_digest="0" * 32),
        "error: marker differs",
    ),
    "marker: came in": (lambda d: edit_marker(d, "base", SHARD, came_in=8), "error: conservation"),
    "marker: came in, digest": (
        lambda d: edit_marker(d, "base", SHARD, came_in_digest="1" * 32),
        "error: conservation",
    ),
    "marker: refused": (lambda d: edit_marker(d, "base", SHARD, refused={"no_text": 3}), "error: conservation"),
    "marker: refused, digest": (
        lambda d: edit_marker(d, "base", SHARD, refused_digest="1" * 32),
        "error: conservation",
    ),
    "marker: shard": (marker_file(lambda m: m.update(shard="000002")), "error: marker differs"),
    "marker: stage": (marker_file(lambda m: m.update(stage="truth"), "pairs"), "error: marker differs"),
    "marker: another config": (lambda d: edit_marker(d, "pairs", SHARD, fingerprint="0" * 16), "error: another config"),
    "marker: an output less": (lambda d: edit_marker(d, "pairs", SHARD, outputs=()), "error: marker differs"),
    "marker: an output's name": (
        lambda d: (d / f"pairs/{SHARD}.done.json").write_bytes(
            (d / f"pairs/{SHARD}.done.json").read_bytes().replace(b'"file": "000001', b'"file": "000000')
        ),
        "error: marker differs",
    ),
    "marker: made from another base": (
        lambda d: edit_marker(d, "pairs", SHARD, input_digest="0" * 64),
        "error: made from another base",
    ),
    "marker: counts": (lambda d: edit_marker(d, "pairs", SHARD, counts={"pairs": 11}), "error: marker differs"),
    "markers: exchanged": (
        lambda d: swapped(d / "pairs/000000.done.json", d / "pairs/000001.done.json"),
        "error: marker differs",
    ),
    "config: another": (
        lambda d: edit_json(d / "pairs/config.json", lambda c: c.update(more=1)),
        "error: another config",
    ),
    "config: damaged": (lambda d: cut(d / "pairs/config.json", 5), "error: damaged config"),
    "config: gone": (lambda d: (d / "pairs/config.json").unlink(), "warning: no config"),
    # manifests
    "manifest: gone": (lambda d: (d / "pairs" / manifest.NAME).unlink(), "warning: no manifest"),
    "manifest: cut": (lambda d: cut(d / "pairs" / manifest.NAME, -9), "error: damaged manifest"),
    "manifest: samples": (manifest_cell("samples", lambda v: v + 1), "error: manifest differs"),
    "manifest: bytes": (manifest_cell("bytes", lambda v: v + 1), "error: manifest differs"),
    "manifest: sha256": (manifest_cell("sha256", lambda v: v[::-1]), "error: manifest differs"),
    "manifest: refused": (manifest_cell("refused", lambda v: v + 1), "error: manifest differs"),
    "manifest: a shard's name": (manifest_cell("shard", lambda v: "000007"), "error: missing marker"),
    "manifest: a row less": (manifest_rows(lambda rows: rows[:2]), "error: manifest differs"),
    "manifest: a row twice": (manifest_rows(lambda rows: [*rows, 2]), "error: manifest differs"),
    "manifest: another order": (manifest_rows(lambda rows: rows[::-1]), "error: manifest differs"),
    # contents, with everything that records them made to agree
    "tar: a sample twice": (with_samples(lambda s: [*s, s[0]]), "error: duplicate key"),
    "tar: a sample less": (with_samples(lambda s: s[1:]), "error: not aligned"),
    "tar: samples exchanged": (with_samples(lambda s: [s[1], s[0], *s[2:]]), "error: not aligned"),
    "tar: another key": (with_samples(another_key), "error: not aligned"),
    "tar: another suffix": (
        with_samples(lambda s: [(s[0][0], {"bin": b"x", **s[0][1]}), *s[1:]]),
        "error: made from another base",
    ),
    "tar: another image": (
        with_samples(lambda s: [(s[0][0], {**s[0][1], "png": made_dataset.png(99)}), *s[1:]]),
        "error: made from",
    ),
    "tar: another text, not in the digests": (
        lambda d: replace_base(
            d, "000000", [(k, {**m, "txt": b"other"}) for k, m in samples("000000")], all_of_it=False
        ),
        "error: marker differs",
    ),
    "index: another offset": (index_cell("offset", 1), "error: unreadable index"),
    "index: another key": (index_cell("key", "other"), "error: index differs"),
    "index: another suffix": (index_cell("suffixes", ["png", "json"]), "error: index differs"),
    "index: another size": (index_cell("member_sizes", [1, 2]), "error: index differs"),
    "quarantine: a row less": (
        quarantine_rows([("bad/0", "no_text", 3), ("bad/1", "no_text", 9)]),
        "error: conservation",
    ),
    "quarantine: another reason": (
        quarantine_rows([("bad/0", "no_text", 3), ("bad/1", "link", 4), ("bad/2", "no_image", 5)]),
        "error: conservation",
    ),
    "quarantine: another sample": (
        quarantine_rows([("bad/0", "no_text", 3), ("bad/1", "no_text", 4), ("bad/2", "no_image", 6)]),
        "error: conservation",
    ),
    "pairs: exchanged with their markers": (lambda d: swapped_with_markers(d, "pairs"), "error: not aligned"),
    "regions: exchanged with their markers": (lambda d: swapped_with_markers(d, "regions"), "error: not aligned"),
    "pairs: keys in another order": (
        lambda d: change_column(d, "pairs", SHARD, "key", key_order),
        "error: not aligned",
    ),
    "pairs: region": (
        lambda d: change_column(d, "pairs", SHARD, "region", set_inner(2, 1, 3)),
        "error: region out of range",
    ),
    "pairs: attribute": (
        lambda d: change_column(d, "pairs", SHARD, "attribute", set_inner(2, 1, 5)),
        "error: attribute out of range",
    ),
    "pairs: negative attribute": (
        lambda d: change_column(d, "truth", SHARD, "attribute", set_inner(0, 0, -1)),
        "error: attribute out of range",
    ),
    "pairs: score": (
        lambda d: change_column(d, "pairs", SHARD, "score", set_inner(0, 0, INF)),
        "error: score not finite",
    ),
    "pairs: a list shorter": (
        lambda d: change_column(d, "pairs", SHARD, "attribute", set_value(1, [1])),
        "error: lists of different length",
    ),
    "pairs: a pair twice": (
        lambda d: change_column(d, "pairs", SHARD, "region", set_value(0, [0, 0, 2]), attribute=[0, 0, 2]),
        "warning: pair twice",
    ),
    "pairs: a null": (
        lambda d: change_column(d, "pairs", SHARD, "region", set_value(0, None)),
        "error: unreadable sidecar",
    ),
    "pairs: box not finite": (
        lambda d: change_column(d, "pairs", SHARD, "boxes", set_inner(0, 0, [0, 0, np.nan, 1])),
        "error: box not finite",
    ),
    "pairs: box without area": (
        lambda d: change_column(d, "pairs", SHARD, "boxes", set_inner(0, 0, [3, 3, 3, 4])),
        "error: box without area",
    ),
    "pairs: box outside": (
        lambda d: change_column(d, "pairs", SHARD, "boxes", set_inner(3, 0, [0, 0, 21, 4])),
        "error: box outside the image",
    ),
    "regions: negative box": (
        lambda d: change_column(d, "regions", SHARD, "boxes", set_inner(3, 0, [-1, 0, 2, 4])),
        "error: box outside the image",
    ),
    "regions: width": (
        lambda d: change_column(d, "regions", SHARD, "width", set_value(0, 19)),
        "error: image size differs",
    ),
    "regions: objectness": (
        lambda d: change_column(d, "regions", SHARD, "objectness", set_inner(0, 0, np.nan)),
        "error: objectness not finite",
    ),
    "regions: mentions twice": (
        lambda d: change_column(d, "regions", SHARD, "attributes", set_inner(0, 0, 1)),
        "error: attributes not ascending",
    ),
    "embeddings: row": (
        lambda d: change_column(d, "embeddings", SHARD, "row", set_value(11, 4)),
        "error: row out of range",
    ),
    "embeddings: NaN": (
        lambda d: change_column(d, "embeddings", SHARD, "embedding", set_inner(0, 0, np.nan)),
        "error: embedding not finite",
    ),
    "vocabulary: count": (
        lambda d: change_column(d, "vocabulary", SHARD, "count", set_value(0, 5)),
        "error: phrase count out of range",
    ),
    "vocabulary: smaller than the ids": (
        lambda d: (d.parent / "vocabulary.parquet").write_bytes(
            sidecar.to_bytes(sidecar.table(made_dataset.VOCABULARY, {"attribute": [0, 1], "phrase": ["a", "b"]}))
        ),
        "error: attribute out of range",
    ),
    "vocabulary: damaged": (lambda d: cut(d.parent / "vocabulary.parquet", 50), "error: damaged vocabulary"),
    "stage: base gone": (lambda d: shutil.rmtree(d / "base"), "error: no base"),
}
