"""Resharding against readers that share no code with it: every sample once, in the order that was asked for."""

from __future__ import annotations

import hashlib
import itertools
import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset
from hypothesis import given, settings
from hypothesis import strategies as st
from reshard_data import data_set, foreign_tar, pairs_by_key, read_shards, read_tar, run, some_samples

from shards import manifest
from shards.commit import StageFolder
from shards.errors import BudgetError, ShardError, StaleStageError, VillaError
from shards.reader import BaseShard
from shards.reshard import bucket, dedupe, predicate
from shards.reshard.plan import cuts, rank
from shards.reshard.scan import HASH
from shards.store import Store

SHARDS = some_samples(3, 9, 40)
FLAT = [s for rows in SHARDS for s in rows]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> str:
    return data_set(tmp_path_factory.mktemp("reshard") / "src", SHARDS)


def flat(root: str | Path) -> list[Any]:
    return [s for rows in read_shards(root) for s in rows]


def tree(root: Path) -> dict[str, str]:
    """Contents without markers' attempt names and timings."""
    kept = [p for p in root.rglob("*") if p.is_file() and p.suffix in (".tar", ".idx", ".parquet")]
    kept = [p for p in kept if p.name != "manifest.parquet"]  # it names the claim, so also the sources
    return {str(p.relative_to(root)): hashlib.sha256(p.read_bytes()).hexdigest() for p in kept}


@pytest.mark.parametrize(
    "options", [{}, {"max_count": 7}, {"max_bytes": 6000}, {"max_bytes": 9000, "max_count": 5}, {"hashed": False}]
)
def test_without_a_shuffle_samples_keep_their_order(source: str, tmp_path: Path, options: dict[str, Any]) -> None:
    result = run(source, tmp_path / "out", **options)
    assert flat(tmp_path / "out") == FLAT
    assert (result["samples_in"], result["samples"], result["conserved"]) == (len(FLAT), len(FLAT), True)
    assert not (tmp_path / "out/.work").exists()
    for path in (tmp_path / "out/base").glob("*.tar"):
        rows = read_tar(path)
        assert len(rows) <= options.get("max_count", 10_000)
        assert path.stat().st_size - 1024 <= options.get("max_bytes", 1 << 30) or len(rows) == 1
    pairs = pairs_by_key(source)
    assert len(pairs) == len(FLAT) and pairs_by_key(tmp_path / "out") == pairs


def test_a_greedy_cut_leaves_no_room_for_the_next_sample(source: str, tmp_path: Path) -> None:
    run(source, tmp_path / "out", max_bytes=9000, max_count=5)
    shards = read_shards(tmp_path / "out")
    size = {key: sum(512 + -(-len(d) // 512) * 512 for d in members.values()) for key, members in FLAT}
    for rows, following in itertools.pairwise(shards):
        total = sum(size[k] for k, _ in rows) + size[following[0][0]]
        assert len(rows) == 5 or total > 9000


def test_the_output_is_a_data_set_in_itself(source: str, tmp_path: Path) -> None:
    run(source, tmp_path / "one", max_count=11)
    base = StageFolder(str(tmp_path / "one"), "base")
    rows = []
    for shard in manifest.read(base).shards:
        opened = BaseShard(base, shard)
        assert opened.index.hashed
        rows += list(opened.samples())
        assert [opened.sample(i) for i in range(len(opened))] == [m for _, m in opened.samples()]
    assert rows == FLAT
    again = run(f"{tmp_path}/one", tmp_path / "two", max_count=1000)
    direct = run(source, tmp_path / "three", max_count=1000)
    assert tree(tmp_path / "two") == tree(tmp_path / "three") and again["digest"] == direct["digest"]
    urls = [str(p) for p in sorted((tmp_path / "one/base").glob("*.tar"))]
    read = [s["__key__"] for s in webdataset.WebDataset(urls, shardshuffle=False)]
    assert read == [k for k, _ in FLAT]


@pytest.mark.parametrize("hashed", [True, False])
def test_a_shuffle_is_a_permutation_that_only_the_seed_decides(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hashed: bool
) -> None:
    first = run(source, tmp_path / "a", shuffle=1, max_count=9, hashed=hashed)
    assert sorted(flat(tmp_path / "a")) == sorted(FLAT) and flat(tmp_path / "a") != FLAT
    assert pairs_by_key(tmp_path / "a") == pairs_by_key(source)
    assert first["conserved"] and max(len(rows) for rows in read_shards(tmp_path / "a")) <= 9
    run(source, tmp_path / "b", shuffle=2, max_count=9, hashed=hashed)
    assert [k for k, _ in flat(tmp_path / "a")] != [k for k, _ in flat(tmp_path / "b")]
    monkeypatch.setattr(bucket, "GROUP_BYTES", 3000)  # many small groups instead of one
    run(source, tmp_path / "c", shuffle=1, max_count=9, hashed=hashed)
    assert tree(tmp_path / "a") == tree(tmp_path / "c")


def test_a_shuffle_mixes_all_shards(source: str, tmp_path: Path) -> None:
    run(source, tmp_path / "a", shuffle=5, max_count=1000)
    order = [k for k, _ in flat(tmp_path / "a")]
    place = {k: i for i, (k, _) in enumerate(FLAT)}
    moved = np.array([place[k] for k in order])
    assert abs(np.corrcoef(moved, np.arange(len(moved)))[0, 1]) < 0.25
    ranks = rank(5, 0, np.arange(100_000))
    assert len(np.unique(ranks)) == 100_000
    assert abs(np.corrcoef(ranks.astype(float), np.arange(100_000))[0, 1]) < 0.02
    assert np.bincount(bucket.bucket_of(ranks, 10), minlength=10).min() > 9_600


@pytest.mark.parametrize(
    ("where", "keep"),
    [
        ("pairs >= 4", lambda n, key, members: n % 5 >= 4),
        ("pairs.attribute < 2 and not base.key == 's/00003'", lambda n, key, members: n % 5 < 2 and key != "s/00003"),
        ("0 < pairs <= 2", lambda n, key, members: 0 < n % 5 <= 2),
        ("pairs == 0 or pairs == 3", lambda n, key, members: n % 5 in (0, 3)),
    ],
)
@pytest.mark.parametrize("shuffle", [None, 4])
def test_a_predicate_keeps_what_it_says(source: str, tmp_path: Path, where: str, keep: Any, shuffle: Any) -> None:
    result = run(source, tmp_path / "out", where=where, max_count=8, shuffle=shuffle)
    expected = [s for n, s in enumerate(FLAT) if keep(n, *s)]
    found = flat(tmp_path / "out")
    assert (found if shuffle is None else sorted(found)) == expected
    assert result["filtered"] == len(FLAT) - len(expected) and result["samples"] == len(expected)


def test_lists_of_keys(source: str, tmp_path: Path) -> None:
    (tmp_path / "wanted").write_text("".join(f"{k}\n" for k, _ in FLAT[::3]))
    (tmp_path / "unwanted").write_text("\n".join(k for k, _ in FLAT[::6]))
    include, exclude = str(tmp_path / "wanted"), str(tmp_path / "unwanted")
    run(source, tmp_path / "out", include=include, exclude=exclude)
    assert flat(tmp_path / "out") == FLAT[3::6]
    (tmp_path / "wanted").write_text("s/00001\n")
    with pytest.raises(StaleStageError, match="include"):
        run(source, tmp_path / "out", include=include, exclude=exclude)


@pytest.mark.parametrize(("dedupe_by", "same"), [("content", lambda m: m), ("image", lambda m: m["jpg"])])
@pytest.mark.parametrize("shuffle", [None, 4])
def test_the_first_of_equal_samples_stays(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dedupe_by: str, same: Any, shuffle: Any
) -> None:
    monkeypatch.setattr(dedupe, "PART_BYTES", 1000)  # several parts of the hash space
    assert len(dedupe.parts(len(FLAT))) > 2
    expected, seen = [], []
    for sample in FLAT:
        if same(sample[1]) not in seen:
            seen.append(same(sample[1]))
            expected.append(sample)
    result = run(source, tmp_path / "out", dedupe=dedupe_by, max_count=13, shuffle=shuffle)
    found = flat(tmp_path / "out")
    assert (found if shuffle is None else sorted(found)) == expected
    assert result["duplicates"] == len(FLAT) - len(expected) > 20 and result["conserved"]
    assert set(pairs_by_key(tmp_path / "out")) == {k for k, _ in expected}


def test_foreign_tars_with_equal_keys_and_links_between_members(tmp_path: Path) -> None:
    rows = [("a", {"jpg": b"1" * 700, "txt": b"one"}), ("b", {"jpg": b"2", "txt": b"two"})]
    (tmp_path / "src").mkdir()
    foreign_tar(tmp_path / "src/x.tar", rows, between=["b"])
    foreign_tar(tmp_path / "src/y.tar", [*rows, ("long/" + "k" * 120, {"jpg": b"3", "txt": b"three"})])
    long = ("long/" + "k" * 120, {"jpg": b"3", "txt": b"three"})
    for at, options in enumerate(({}, {"shuffle": 3}, {"hashed": False}, {"hashed": False, "shuffle": 3})):
        result = run(str(tmp_path / "src"), tmp_path / f"out{at}", budget=1.0, prefix_keys=True, **options)
        both = [(f"{stem}/{k}", m) for stem, k, m in (*(("x", *r) for r in rows), *(("y", *r) for r in (*rows, long)))]
        found = flat(tmp_path / f"out{at}")
        assert sorted(found) == both and (found == both or "shuffle" in options)
        assert result["quarantined"] == {"link": 1} and result["samples_in"] == 6
        assert len(list((tmp_path / f"out{at}/base/quarantine").iterdir())) == 1
    with pytest.raises(VillaError, match="two samples with the key 'a'"):
        run(str(tmp_path / "src"), tmp_path / "same", budget=1.0)
    for at, pattern in enumerate((f"{tmp_path}/src/{{y,x}}.tar", f"{tmp_path}/src/*.tar")):
        run(pattern, tmp_path / f"p{at}", budget=1.0, max_count=2)
        expected = [*rows, long, *rows] if at == 0 else [*rows, *rows, long]
        assert flat(tmp_path / f"p{at}") == expected
    result = run(str(tmp_path / "src"), tmp_path / "once", budget=1.0, dedupe="key")
    assert flat(tmp_path / "once") == [*rows, long] and result["duplicates"] == 2


def test_a_damaged_foreign_tar_gives_what_is_good_and_counts_the_rest(tmp_path: Path) -> None:
    (tmp_path / "src").mkdir()
    foreign_tar(tmp_path / "src/x.tar", FLAT[:30])
    foreign_tar(tmp_path / "src/y.tar", FLAT[30:60])
    whole = (tmp_path / "src/y.tar").read_bytes()
    (tmp_path / "src/y.tar").write_bytes(whole[: len(whole) // 2 // 512 * 512 + 100])
    result = run(str(tmp_path / "src"), tmp_path / "out", budget=0.5)
    assert result["quarantined"]["damaged_shard"] == 1 and 30 < result["samples"] < 60
    assert flat(tmp_path / "out") == FLAT[: result["samples"]]
    with pytest.raises(BudgetError, match="max-refused-fraction"):
        run(str(tmp_path / "src"), tmp_path / "none", budget=0.0)
    assert not list((tmp_path / "none/base").glob("*.tar"))


def test_a_source_that_changed_is_named(tmp_path: Path) -> None:
    root = data_set(tmp_path / "src", SHARDS[:3])
    tar = tmp_path / "src/base/000001.tar"
    raw = bytearray(tar.read_bytes())
    raw[600] ^= 1
    tar.write_bytes(raw)
    # the fixture's index has no digests, so its content is read, and held against the marker
    with pytest.raises(ShardError, match=r"000001\.tar no longer has the content"):
        run(root, tmp_path / "out")
    hashed = run(data_set(tmp_path / "good", SHARDS[:3]), tmp_path / "mid", max_count=20)
    assert hashed["shards"] > 1
    tar = tmp_path / "mid/base/000001.tar"
    raw = bytearray(tar.read_bytes())
    row = next(
        r
        for r in BaseShard(StageFolder(f"{tmp_path}/mid", "base"), "000001").index.table.to_pylist()
        if r["length"] > 2500
    )
    raw[row["member_offsets"][0] + 100] ^= 1
    tar.write_bytes(raw)
    with pytest.raises(ShardError, match=rf"mid/base/000001\.tar: sample '{row['key']}' no longer has the content"):
        run(f"{tmp_path}/mid", tmp_path / "late")
    raw[row["member_offsets"][0] + 100] ^= 1
    raw[row["offset"] + 3] ^= 1  # in a header, which no digest covers
    tar.write_bytes(raw)
    with pytest.raises(ShardError, match="bad header checksum"):
        run(f"{tmp_path}/mid", tmp_path / "later")


@pytest.mark.parametrize("shuffle", [None, 3])
def test_digests_that_are_taken_over_are_the_same_and_unread(source: str, tmp_path: Path, shuffle: int | None) -> None:
    whole = run(source, tmp_path / "whole", max_count=20, shuffle=shuffle)
    taken = run(source, tmp_path / "taken", max_count=20, shuffle=shuffle, trusted=True)
    assert tree(tmp_path / "whole") == tree(tmp_path / "taken") and whole["digest"] == taken["digest"]
    assert (whole["proved_by"], taken["proved_by"]) == ("content", "recorded content")
    outputs = StageFolder(f"{tmp_path}/taken", "base").marker("000000").outputs
    assert all(o.sha256 for o in outputs)
    tar = tmp_path / "whole/base/000001.tar"
    raw = bytearray(tar.read_bytes())
    row = next(
        r
        for r in BaseShard(StageFolder(f"{tmp_path}/whole", "base"), "000001").index.table.to_pylist()
        if r["length"] > 2500
    )
    raw[row["member_offsets"][0] + 100] ^= 1
    tar.write_bytes(raw)
    run(f"{tmp_path}/whole", tmp_path / "late", trusted=True)  # nothing is held against the contents
    with pytest.raises(ShardError, match="no longer has the content"):
        run(f"{tmp_path}/late", tmp_path / "later")
    foreign = run(str(tmp_path / "taken/base/{000000,000001}.tar"), tmp_path / "foreign", trusted=True)
    assert foreign["proved_by"] == "keys" and foreign["samples"] == sum(
        len(r) for r in read_shards(tmp_path / "taken")[:2]
    )
    assert not BaseShard(StageFolder(f"{tmp_path}/foreign", "base"), "000000").index.hashed


def test_another_run_on_the_same_folder(source: str, tmp_path: Path) -> None:
    first = run(source, tmp_path / "out", max_count=10)
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "out").rglob("*") if p.is_file()}
    assert run(source, tmp_path / "out", max_count=10) == first
    assert before == {p: p.stat().st_mtime_ns for p in (tmp_path / "out").rglob("*") if p.is_file()}
    with pytest.raises(StaleStageError, match=r"reshard\.max_count: 10 -> 11"):
        run(source, tmp_path / "out", max_count=11)
    run(source, tmp_path / "out", max_count=11, force=True)
    assert [len(r) for r in read_shards(tmp_path / "out")][:-1] == [11] * (len(FLAT) // 11)


@pytest.mark.parametrize(
    ("where", "says"),
    [
        ("pair >= 4", "did you mean 'pairs'"),
        ("pairs.regio > 1", "no column 'regio'"),
        ("pairs >=", "not an expression"),
        ("__import__('os').system('x')", "not understood"),
        ("pairs > (lambda: 1)()", "neither a column nor a constant"),
        ("base.key > 3", "compares a text with a number"),
        ("pairs + 1 > 3", "neither a column"),
    ],
)
def test_predicates_that_are_refused(source: str, tmp_path: Path, where: str, says: str) -> None:
    with pytest.raises(VillaError, match="--where") as error:
        run(source, tmp_path / "out", where=where)
    assert says in str(error.value)


def test_what_is_given_wrongly(source: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "half/base").mkdir(parents=True)
    (tmp_path / "half/base/000000.done.json").write_text("{}")
    (tmp_path / "other/base").mkdir(parents=True)
    (tmp_path / "other/base/000000.tar").write_bytes(b"")
    for src, dst, says in (
        (f"{tmp_path}/nowhere", "out", "does not exist"),
        (f"{tmp_path}/empty", "out", "holds no .tar"),
        (f"{tmp_path}/half", "out", "not complete"),
        (f"{tmp_path}/{{a,b", "out", "brace"),
        (f"{tmp_path}/{{a,a}}.tar", "out", "twice"),
        (f"{tmp_path}/no.tar", "out", "does not exist"),
        (f"{tmp_path}/{{x,y}}.tar", "out", "does not exist"),
        (source, f"{source}/inside", "lies in the sources"),
        (source, source, "lies in the sources"),
        (source, f"{tmp_path}/other", "something else"),
    ):
        with pytest.raises(VillaError) as error:
            run(src, tmp_path / dst)
        assert says in str(error.value), (src, str(error.value))
    for options, says in (
        ({"max_bytes": 5}, "--max-bytes is 5"),
        ({"max_count": 0}, "--max-count is 0"),
        ({"shuffle": -1}, "--shuffle is -1"),
        ({"dedupe": "content", "hashed": False}, "--no-hash"),
        ({"where": "pairs > 99"}, "no sample of"),
        ({"include": f"{tmp_path}/nokeys"}, "nokeys does not exist"),
    ):
        with pytest.raises(VillaError) as error:
            run(source, tmp_path / "out", **options)
        assert says in str(error.value), (options, str(error.value))


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.lists(st.integers(1, 60), max_size=8), max_size=8),
    st.integers(1, 9),
    st.integers(1, 150),
)
def test_cuts_equal_a_greedy_loop(lengths: list[list[int]], max_count: int, max_bytes: int) -> None:
    expected: list[list[int]] = []
    room = 0
    for size in itertools.chain(*lengths):
        if not expected or len(expected[-1]) == max_count or size > room:
            expected.append([])
            room = max_bytes
        expected[-1].append(size)
        room -= size
    arrays = [np.array(x, np.int64) for x in lengths]
    found = list(cuts([len(x) for x in lengths], [sum(x) for x in lengths], arrays.__getitem__, max_count, max_bytes))
    assert [(c.samples, c.bytes) for c in found] == [(len(x), sum(x)) for x in expected]
    starts = np.concatenate([[0], np.cumsum([len(x) for x in lengths])]).astype(int)
    place = [int(starts[c.first[0]]) + c.first[1] for c in found]
    ends = [int(starts[c.stop[0]]) + c.stop[1] for c in found]
    assert place[1:] == ends[:-1] and (not found or (place[0], ends[-1]) == (0, int(starts[-1])))


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 4)), max_size=40), st.randoms())
def test_duplicates_are_all_but_the_first(pairs: list[tuple[int, int]], rng: random.Random) -> None:
    """pairs: (identity, source); rows are numbered within a source; records come in any order."""
    rows: Counter[int] = Counter()
    known = []
    for identity, source in sorted(pairs, key=lambda p: p[1]):
        known.append((source, rows[source], identity))
        rows[source] += 1
    seen: set[int] = set()
    expected = [(s, r) for s, r, i in known if i in seen or seen.add(i)]  # type: ignore[func-returns-value]
    rng.shuffle(known)
    records = np.zeros(len(known), HASH)
    records["low"], records["row"] = [i for *_, i in known], [r for _, r, _ in known]
    sources = np.array([s for s, *_ in known], np.uint32)
    again = dedupe.duplicates(records, sources)
    assert list(zip(sources[again].tolist(), records["row"][again].tolist(), strict=True)) == expected


def test_the_stages_of_a_predicate() -> None:
    assert predicate.stages("pairs >= 4 and regions.width > 2 or not base.key == 'x'") == ["base", "pairs", "regions"]


def test_the_result_is_kept_beside_the_shards(source: str, tmp_path: Path) -> None:
    result = run(source, tmp_path / "out", max_count=50)
    assert json.loads(Store(str(tmp_path / "out")).read("reshard.json")) == result
