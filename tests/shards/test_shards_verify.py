"""`verify` finds every change that means something, and nothing in a correct data set."""

from __future__ import annotations

import dataclasses
import json
import random
import shutil
from pathlib import Path
from typing import Any

import made_dataset
import pytest
from made_dataset import change_column, edit_marker, make, replace_base, samples
from verify_changes import CHANGES, SHARD, flipped

from shards import manifest, sidecar
from shards.commit import ATTEMPTS, StageFolder
from shards.errors import VillaError
from shards.findings import CAP, Findings, lines
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
    with pytest.raises(VillaError, match=r"several data sets.*train"):
        verified(dataset.parent)


def test_a_marker_with_a_field_of_another_type_is_refused_by_name(dataset: Path) -> None:
    from shards.marker_check import read_marker

    path = dataset / "base" / f"{SHARD}.done.json"
    good = StageFolder(str(dataset), "base").marker(SHARD)
    assert read_marker(path.read_bytes(), "m") == good
    for field in dataclasses.fields(good):
        value = json.loads(path.read_bytes())
        value[field.name] = None
        with pytest.raises(VillaError, match=rf"{field.name}.*None"):
            read_marker(json.dumps(value).encode(), "m")
