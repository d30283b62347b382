"""`verify` finds every change that means something, and nothing in a correct data set."""

from __future__ import annotations

import dataclasses
import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import made_dataset
import numpy as np
import pytest
from made_dataset import change_column, edit_json, edit_marker, make, remake_manifest, replace_base, replace_output, samples

from shards import manifest, sidecar
from shards.commit import ATTEMPTS, StageFolder
from shards.errors import VillaError
from shards.findings import CAP, Findings, lines
from shards.tar import BLOCK, END
from shards.verify import Verified, verify
from shards.work import run_here


@pytest.fixture(scope="session")
def correct(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("correct"))


@pytest.fixture
def dataset(correct: Path, tmp_path: Path) -> Path:
    shutil.copytree(correct.parent, tmp_path / "run")
    return tmp_path / "run" / "train"


def verified(path: Path | str, **options: Any) -> Verified:
    return verify(str(path), run_here, **options)


def kinds(found: Findings) -> set[str]:
    return {f"{severity}: {kind}" for severity, kind in found.counts}


def files(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


@pytest.mark.parametrize("deep", [False, True])
def test_a_correct_data_set_is_clean_and_untouched(dataset: Path, deep: bool) -> None:
    before = files(dataset.parent)
    found = verified(dataset, deep=deep)
    assert list(found.findings) == []
    assert (found.place.kind, found.shards, found.samples) == ("dataset", 3, 12)
    assert files(dataset.parent) == before


@pytest.mark.parametrize("stage", ["base", "pairs", "regions", "truth", "embeddings", "vocabulary"])
def test_one_stage_is_verified_by_itself(dataset: Path, stage: str) -> None:
    found = verified(dataset / stage)
    assert list(found.findings) == []
    assert (found.place.kind, found.place.stages, found.shards) == ("stage", (stage,), 3)
    (dataset / "truth" / "000001.parquet").write_bytes(b"x")
    assert verified(dataset / stage).findings.clean == (stage != "truth")


# ---- single changes, each with what must be said of it

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
        from shards.index import SCHEMA, ShardIndex

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
    "sidecars: exchanged": (lambda d: swapped(d / "pairs/000000.parquet", d / "pairs/000001.parquet"), "error: another"),
    "quarantine: a byte": (lambda d: flipped(d / f"base/quarantine/{SHARD}.parquet", 30), "error: another content"),
    "quarantine: gone": (lambda d: (d / f"base/quarantine/{SHARD}.parquet").unlink(), "error: missing file"),
    "quarantine: one that no marker names": (
        lambda d: (d / "base/quarantine/000000.parquet").write_bytes(b""), "warning: unclaimed file",
    ),
    "a stray shard": (lambda d: (d / "base/000009.tar").write_bytes(END), "warning: unclaimed file"),
    # markers
    "marker: gone": (lambda d: (d / f"base/{SHARD}.done.json").unlink(), "error: missing marker"),
    "marker: gone, from the manifest too": (
        lambda d: ((d / f"base/{SHARD}.done.json").unlink(), remake_manifest(d, "base")), "error: no base shard",
    ),
    "marker: of a sidecar gone": (lambda d: (d / f"truth/{SHARD}.done.json").unlink(), "error: incomplete stage"),
    "marker: empty": (lambda d: cut(d / f"pairs/{SHARD}.done.json", 0), "error: damaged marker"),
    "marker: no JSON": (lambda d: cut(d / f"pairs/{SHARD}.done.json", 90), "error: damaged marker"),
    "marker: spaces": (lambda d: (d / f"base/{SHARD}.done.json").open("a").write(" "), "error: damaged marker"),
    "marker: a field less": (marker_file(lambda m: m.pop("counts")), "error: damaged marker"),
    "marker: a text for a count": (marker_file(lambda m: m.update(samples="4")), "error: damaged marker"),
    "marker: samples": (lambda d: edit_marker(d, "base", SHARD, samples=5), "error: marker differs"),
    "marker: keys digest": (lambda d: edit_marker(d, "base", SHARD, keys_digest="0" * 32), "error: marker differs"),
    "marker: content digest": (lambda d: edit_marker(d, "base", SHARD, content_digest="0" * 32), "error: marker differs"),
    "marker: came in": (lambda d: edit_marker(d, "base", SHARD, came_in=8), "error: conservation"),
    "marker: came in, digest": (lambda d: edit_marker(d, "base", SHARD, came_in_digest="1" * 32), "error: conservation"),
    "marker: refused": (lambda d: edit_marker(d, "base", SHARD, refused={"no_text": 3}), "error: conservation"),
    "marker: refused, digest": (lambda d: edit_marker(d, "base", SHARD, refused_digest="1" * 32), "error: conservation"),
    "marker: shard": (marker_file(lambda m: m.update(shard="000002")), "error: marker differs"),
    "marker: stage": (marker_file(lambda m: m.update(stage="truth"), "pairs"), "error: marker differs"),
    "marker: another config": (lambda d: edit_marker(d, "pairs", SHARD, fingerprint="0" * 16), "error: another config"),
    "marker: an output less": (lambda d: edit_marker(d, "pairs", SHARD, outputs=()), "error: marker differs"),
    "marker: an output's name": (
        lambda d: (d / f"pairs/{SHARD}.done.json").write_bytes(
            (d / f"pairs/{SHARD}.done.json").read_bytes().replace(b'"file": "000001', b'"file": "000000')
        ), "error: marker differs",
    ),
    "marker: made from another base": (
        lambda d: edit_marker(d, "pairs", SHARD, input_digest="0" * 64), "error: made from another base",
    ),
    "marker: counts": (lambda d: edit_marker(d, "pairs", SHARD, counts={"pairs": 11}), "error: marker differs"),
    "markers: exchanged": (
        lambda d: swapped(d / "pairs/000000.done.json", d / "pairs/000001.done.json"), "error: marker differs",
    ),
    "config: another": (lambda d: edit_json(d / "pairs/config.json", lambda c: c.update(more=1)), "error: another config"),
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
    "tar: another suffix": (with_samples(lambda s: [(s[0][0], {"bin": b"x", **s[0][1]}), *s[1:]]), "warning: unknown suffix"),
    "tar: another image": (with_samples(lambda s: [(s[0][0], {**s[0][1], "png": made_dataset.png(99)}), *s[1:]]), "error: made from"),
    "tar: another text, not in the digests": (
        lambda d: replace_base(d, "000000", [(k, {**m, "txt": b"other"}) for k, m in samples("000000")], all_of_it=False),
        "error: marker differs",
    ),
    "index: another offset": (index_cell("offset", 1), "error: unreadable index"),
    "index: another key": (index_cell("key", "other"), "error: index differs"),
    "index: another suffix": (index_cell("suffixes", ["png", "json"]), "error: index differs"),
    "index: another size": (index_cell("member_sizes", [1, 2]), "error: index differs"),
    "quarantine: a row less": (quarantine_rows([("bad/0", "no_text", 3), ("bad/1", "no_text", 9)]), "error: conservation"),
    "quarantine: another reason": (
        quarantine_rows([("bad/0", "no_text", 3), ("bad/1", "link", 4), ("bad/2", "no_image", 5)]), "error: conservation",
    ),
    "quarantine: another sample": (
        quarantine_rows([("bad/0", "no_text", 3), ("bad/1", "no_text", 4), ("bad/2", "no_image", 6)]), "error: conservation",
    ),
    "pairs: exchanged with their markers": (lambda d: swapped_with_markers(d, "pairs"), "error: not aligned"),
    "regions: exchanged with their markers": (lambda d: swapped_with_markers(d, "regions"), "error: not aligned"),
    "pairs: keys in another order": (lambda d: change_column(d, "pairs", SHARD, "key", key_order), "error: not aligned"),
    "pairs: region": (lambda d: change_column(d, "pairs", SHARD, "region", set_inner(2, 1, 3)), "error: region out of range"),
    "pairs: attribute": (
        lambda d: change_column(d, "pairs", SHARD, "attribute", set_inner(2, 1, 5)), "error: attribute out of range",
    ),
    "pairs: negative attribute": (
        lambda d: change_column(d, "truth", SHARD, "attribute", set_inner(0, 0, -1)), "error: attribute out of range",
    ),
    "pairs: score": (lambda d: change_column(d, "pairs", SHARD, "score", set_inner(0, 0, INF)), "error: score not finite"),
    "pairs: a list shorter": (
        lambda d: change_column(d, "pairs", SHARD, "attribute", set_value(1, [1])), "error: lists of different length",
    ),
    "pairs: a pair twice": (lambda d: change_column(d, "pairs", SHARD, "region", set_value(0, [0, 0, 2]), attribute=[0, 0, 2]), "warning: pair twice"),
    "pairs: a null": (lambda d: change_column(d, "pairs", SHARD, "region", set_value(0, None)), "error: unreadable sidecar"),
    "pairs: box not finite": (
        lambda d: change_column(d, "pairs", SHARD, "boxes", set_inner(0, 0, [0, 0, np.nan, 1])), "error: box not finite",
    ),
    "pairs: box without area": (
        lambda d: change_column(d, "pairs", SHARD, "boxes", set_inner(0, 0, [3, 3, 3, 4])), "error: box without area",
    ),
    "pairs: box outside": (
        lambda d: change_column(d, "pairs", SHARD, "boxes", set_inner(3, 0, [0, 0, 21, 4])), "error: box outside the image",
    ),
    "regions: negative box": (
        lambda d: change_column(d, "regions", SHARD, "boxes", set_inner(3, 0, [-1, 0, 2, 4])), "error: box outside the image",
    ),
    "regions: width": (lambda d: change_column(d, "regions", SHARD, "width", set_value(0, 19)), "error: image size differs"),
    "regions: objectness": (
        lambda d: change_column(d, "regions", SHARD, "objectness", set_inner(0, 0, np.nan)), "error: objectness not finite",
    ),
    "regions: mentions twice": (
        lambda d: change_column(d, "regions", SHARD, "attributes", set_inner(0, 0, 1)), "error: attributes not ascending",
    ),
    "embeddings: row": (lambda d: change_column(d, "embeddings", SHARD, "row", set_value(11, 4)), "error: row out of range"),
    "embeddings: NaN": (
        lambda d: change_column(d, "embeddings", SHARD, "embedding", set_inner(0, 0, np.nan)), "error: embedding not finite",
    ),
    "vocabulary: count": (
        lambda d: change_column(d, "vocabulary", SHARD, "count", set_value(0, 5)), "error: phrase count out of range",
    ),
    "vocabulary: smaller than the ids": (
        lambda d: (d.parent / "vocabulary.parquet").write_bytes(
            sidecar.to_bytes(sidecar.table(made_dataset.VOCABULARY, {"attribute": [0, 1], "phrase": ["a", "b"]}))
        ), "error: attribute out of range",
    ),
    "vocabulary: damaged": (lambda d: cut(d.parent / "vocabulary.parquet", 50), "error: damaged vocabulary"),
    "stage: base gone": (lambda d: shutil.rmtree(d / "base"), "error: no base"),
}  # fmt: skip


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_is_found(name: str, dataset: Path) -> None:
    change, expected = CHANGES[name]
    change(dataset)
    found = verified(dataset).findings
    assert not found.clean
    assert any(k.startswith(expected) for k in kinds(found)), kinds(found)
    for finding in found:
        assert finding.place and finding.expected and finding.found and finding.remedy, finding


def test_there_are_enough_changes() -> None:
    assert len(CHANGES) >= 40


# ---- any byte of any file


def unverifiable(path: Path, before: bytes, after: bytes) -> bool:
    """Whether a flip changed only what nothing else records: timings, warnings, the name of a foreign source, the random
    name of an attempt; or nothing at all that a reader of the manifest sees."""
    if path.name == manifest.NAME:
        try:
            old, new = (sidecar.from_bytes(d, "", manifest.SCHEMA) for d in (before, after))
        except VillaError:
            return False
        return bool(old.equals(new))
    if not path.name.endswith(".done.json"):
        return False
    try:
        old, new = json.loads(before), json.loads(after)
    except ValueError:
        return False
    if not isinstance(new, dict):
        return False
    for value in (old, new):
        for name in ("seconds", "warnings"):
            value.pop(name, None)
        if path.parent.name == "base":
            value.pop("input_digest", None)
        for output in value.get("outputs", []):
            output.pop("attempt", None)
    return bool(old == new)


def flips(dataset: Path, rounds: int, seed: int) -> tuple[list[tuple[str, int, int]], int, int]:
    """(flips that were missed, flips that changed nothing verifiable, flips tried), one of each kind of file a round."""
    rng = random.Random(seed)
    by_kind: dict[str, list[Path]] = {}
    for path in (p for p in sorted(dataset.rglob("*")) if p.is_file()):
        ends = (".tar", ".idx", ".done.json", manifest.NAME, "config.json")
        by_kind.setdefault(next((e for e in ends if path.name.endswith(e)), ".parquet"), []).append(path)
    assert len(by_kind) == 6
    missed, passed_over, tried = [], 0, 0
    for _ in range(rounds):
        for chosen in by_kind.values():
            path = rng.choice(chosen)
            before = path.read_bytes()
            at, bit = rng.randrange(len(before)), 1 << rng.randrange(8)
            after = bytearray(before)
            after[at] ^= bit
            path.write_bytes(after)
            tried += 1
            if verified(dataset / path.relative_to(dataset).parts[0]).findings.clean:
                if unverifiable(path, before, bytes(after)):
                    passed_over += 1
                else:
                    missed.append((str(path.relative_to(dataset)), at, bit))
            path.write_bytes(before)
    return missed, passed_over, tried


def test_every_flipped_byte_is_found(dataset: Path) -> None:
    missed, passed_over, tried = flips(dataset, 25, 7)
    assert not missed
    assert passed_over < tried * 0.15
    assert verified(dataset).findings.clean


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_every_flipped_byte_is_found_at_length(dataset: Path, seed: int) -> None:
    missed, _, _ = flips(dataset, 300, seed)
    assert not missed


# ---- what crashes leave, and the rest of the command's promises


def test_leftovers_are_noted_and_no_error(dataset: Path) -> None:
    orphan = dataset / "base" / ATTEMPTS / "000007.host-1.ab12cd34"
    orphan.mkdir(parents=True)
    (orphan / "000007.tar").write_bytes(b"half")
    (dataset / "base" / ".000000.tar.host-1.ab12cd34ef56.tmp").write_bytes(b"")
    output = made_dataset.output_of(dataset, "pairs", SHARD, ".parquet")
    (dataset / "pairs" / output.attempt).parent.mkdir(parents=True)
    (dataset / "pairs" / output.file).rename(dataset / "pairs" / output.attempt)
    found = verified(dataset).findings
    assert found.clean
    assert kinds(found) == {"note: orphaned attempt", "note: half-moved attempt", "note: temporary file"}


def test_a_run_in_progress_is_incomplete_and_not_damaged(dataset: Path) -> None:
    folder = StageFolder(str(dataset), "pairs")
    folder.store.remove(manifest.NAME)
    folder.store.remove("000002.done.json")
    folder.store.remove("000002.parquet")
    found = verified(dataset).findings
    assert kinds(found) == {"warning: no manifest", "warning: incomplete stage"}


def test_findings_are_ordered_capped_and_counted(dataset: Path) -> None:
    def shift(values: list[Any]) -> None:
        for row in values:
            row[:] = [9] * len(row)

    for shard in made_dataset.SHARDS:
        change_column(dataset, "pairs", shard, "attribute", shift)
    flipped(dataset / "base" / "000000.tar", 3)
    found = verified(dataset).findings
    assert found.counts["error", "attribute out of range"] == 12
    order = [f.order for f in found]
    assert order == sorted(order)
    many = Findings()
    for n in random.Random(0).sample(range(1000), 1000):
        many.add("error", "kind", f"{n:03d}", expected=1, found=2, remedy="r")
    assert [f.place for f in many] == [f"{n:03d}" for n in range(CAP)]
    again = Findings.from_json(json.loads(json.dumps(many.to_json())))
    again.merge(many)
    assert again.total("error") == 2000
    assert "and 980 more" in list(lines(many))[-1]


def test_deep_decodes_every_sample(dataset: Path) -> None:
    made = samples("000000")
    image = made[2][1]["png"]
    made[2] = (made[2][0], {**made[2][1], "png": image[:60] + b"\0" * 20 + image[80:]})
    made[3] = (made[3][0], {**made[3][1], "txt": b"\xff"})
    replace_base(dataset, "000000", made, all_of_it=True)
    tar = made_dataset.output_of(dataset, "base", "000000", ".tar").sha256
    for stage in ("pairs", "regions", "embeddings", "vocabulary"):
        edit_marker(dataset, stage, "000000", input_digest=tar)
    assert verified(dataset).findings.clean
    deep = verified(dataset, deep=True).findings
    assert kinds(deep) == {"error: undecodable_image", "error: not_utf8"}
    assert {f.place.rsplit("'", 2)[1] for f in deep} == {"000000/002", "000000/003"}


def test_foreign_tars_are_verified(tmp_path: Path) -> None:
    tar, index = made_dataset.tar_and_index(samples("000000"))
    (tmp_path / "a.tar").write_bytes(tar)
    (tmp_path / "b.tar").write_bytes(tar[:-1024])
    (tmp_path / "c.tar").write_bytes(made_dataset.tar_and_index([*samples("000000"), samples("000000")[0]])[0])
    (tmp_path / "a.idx").write_bytes(index)
    (tmp_path / "c.idx").write_bytes(index)
    found = verified(tmp_path)
    assert (found.place.kind, found.shards) == ("tars", 3)
    assert kinds(found.findings) == {
        "error: damaged tar",
        "warning: refused member (incomplete_sample)",
        "warning: duplicate key",
        "error: index differs",
    }
    assert verified(tmp_path / "a.tar").findings.clean
    assert verified(f"{tmp_path}/[ab].tar").shards == 2
    assert verified(f"{tmp_path.parent}/*/a.tar").samples == 4


@pytest.mark.parametrize("name", ["nothing", "", "."])
def test_a_path_without_shards_is_an_error_that_names_it(name: str, tmp_path: Path) -> None:
    with pytest.raises(VillaError, match="name a data set"):
        verified(tmp_path / name)


def test_several_data_sets_are_named(dataset: Path) -> None:
    with pytest.raises(VillaError, match="several data sets.*train"):
        verified(dataset.parent)


def test_a_marker_with_a_field_of_another_type_is_refused_by_name(dataset: Path) -> None:
    from shards.marker_check import read_marker

    path = dataset / "base" / f"{SHARD}.done.json"
    good = StageFolder(str(dataset), "base").marker(SHARD)
    assert read_marker(path.read_bytes(), "m") == good
    for field in dataclasses.fields(good):
        value = json.loads(path.read_bytes())
        value[field.name] = None
        with pytest.raises(VillaError, match=f"{field.name}.*None"):
            read_marker(json.dumps(value).encode(), "m")
