"""Packing a folder: what becomes a sample under which key, what is refused and why, claims, resuming, budgets."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pack_samples import contents, image, origins, pack, packing, photos, refused, samples, write
from reshard_data import run as resharded

from shards import manifest, plan
from shards.commit import StageFolder
from shards.errors import BudgetError, ShardError, StaleStageError, VillaError
from shards.plan import Row, cut
from shards.sources.names import Names, safe_key
from shards.store import Store
from shards.work import run_here


def test_images_are_copied_byte_for_byte_with_their_texts(tmp_path: Path) -> None:
    files = {
        "a/one.jpg": image(1, "JPEG"),
        "a/one.txt": b"\xef\xbb\xbfa byte order mark",
        "a/two.webp": image(2, "WEBP"),
        "a/two.json": '{"caption": "from json"}',
        "three.png": image(3),
        "three.txt": "both",
        "three.json": "{}",
    }
    result = pack(write(tmp_path / "src", files), tmp_path / "dst")
    assert result["samples"] == 3 and result["refused"] == {} and result["conserved"]
    assert samples(tmp_path / "dst") == {
        "three": {"png": files["three.png"], "txt": b"both", "json": b"{}"},
        "a/one": {"jpg": files["a/one.jpg"], "txt": b"a byte order mark"},
        "a/two": {"webp": files["a/two.webp"], "json": b'{"caption": "from json"}'},
    }
    assert origins(tmp_path / "dst")["a/one"] == ("a/one.jpg", "", None)


REFUSED = {
    "no_text": {"x.png": image(1)},
    "no_text ": {"x.png": image(1), "x.txt": " \n"},
    "no_text  ": {"x.png": image(1), "x.json": '{"title": "no caption field"}'},
    "not_utf8": {"x.png": image(1), "x.txt": b"caf\xe9"},
    "bad_json": {"x.png": image(1), "x.json": "{caption"},
    "undecodable_image": {"x.png": image(1)[:-40], "x.txt": "cut"},
    "undecodable_image ": {"x.jpg": b"\xff\xd8\xffnothing", "x.txt": "t"},
    "undecodable_image  ": {"x.heic": b"no such thing", "x.txt": "t"},
    "unsupported_format": {"x.bmp": image(1, "BMP"), "x.txt": "t"},
    "too_many_pixels": {"x.png": image(1, size=(400, 300)), "x.txt": "t"},
    "no_image": {"x.txt": "alone"},
}


@pytest.mark.parametrize("reason", REFUSED)
def test_what_cannot_be_used_is_refused_with_a_reason(tmp_path: Path, reason: str) -> None:
    src = write(tmp_path / "src", {"good.png": image(9), "good.txt": "good", **REFUSED[reason]})
    result = pack(src, tmp_path / "dst", {"max_pixels": 100_000})
    assert result["refused"] == {reason.strip(): 1} and result["samples"] == 1 and result["conserved"]
    (key, (_, detail)) = next(iter(refused(tmp_path / "dst").items()))
    assert key == "x" and "x." in detail


def test_links_that_lead_nowhere_or_in_circles(tmp_path: Path) -> None:
    src = photos(tmp_path / "src", 3)
    (src / "loop").symlink_to(src, target_is_directory=True)
    (src / "self.png").symlink_to(src / "self.png")
    (src / "gone.png").symlink_to(src / "nothing.png")
    os.mkfifo(src / "pipe.png")
    for name in ("self", "gone", "pipe"):
        (src / f"{name}.txt").write_text("t")
    result = pack(src, tmp_path / "dst")
    assert result["refused"] == {"unreadable_file": 3} and result["samples"] == 3
    assert any("link to a folder x 1" in w for w in result["warnings"])


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that other users reach, which pytest's own are not."""
    folder = Path(tempfile.mkdtemp(prefix="villa-open-"))
    folder.chmod(0o777)
    yield folder
    os.seteuid(0)
    shutil.rmtree(folder)


@pytest.mark.skipif(os.geteuid() != 0, reason="dropping privileges needs root")
def test_an_unreadable_file_is_refused_and_an_unreadable_folder_is_an_error(open_folder: Path) -> None:
    src, dst = photos(open_folder / "src", 6), open_folder / "dst"
    (src / "a/000.png").chmod(0)
    os.seteuid(65534)
    result = pack(src, dst)
    assert result["refused"] == {"unreadable_file": 1} and "Permission denied" in refused(dst)["a/000"][1]
    os.seteuid(0)
    (src / "b").chmod(0)
    os.seteuid(65534)
    with pytest.raises(VillaError, match=r"cannot list .*src/b/: Permission denied"):
        pack(src, open_folder / "dst2")


def test_keys_stay_apart_and_can_be_traced(tmp_path: Path) -> None:
    names = [
        "a b.png",
        "a_b.png",
        "a.b.png",
        "ä.png",
        "写真.png",
        "写 真.png",
        ".hidden.png",
        "x.png",
        "x.jpg",
        "x-png.gif",
    ]
    src = write(tmp_path / "src", {f"fold er/{n}": image(i) for i, n in enumerate(names)})
    write(src, {f"fold er/{n.rpartition('.')[0]}.txt": n for n in names})
    result = pack(src, tmp_path / "dst", {"convert": True, "check": "none"})
    found = samples(tmp_path / "dst")
    assert len(found) == len(names) - 1 and result["refused"] == {}
    for key, (file, _, _) in origins(tmp_path / "dst").items():
        assert key.startswith("fold_er-") and set(key) <= set("abcdefghijklmnopqrstuvwxyz0123456789/_-"), key
        assert found[key]["png"] == (src / file).read_bytes()
    assert any("hidden file x 2" in w for w in result["warnings"])


@given(st.lists(st.text(min_size=1, max_size=12), max_size=30))
def test_equal_keys_are_never_given(names: list[str]) -> None:
    given_keys = Names()
    keys = [given_keys.give(name) for name in names]
    assert len(set(keys)) == len(keys)
    allowed = set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-/")
    assert all(set(key) <= allowed and not key.startswith("/") and "//" not in key for key in keys)
    assert all(safe_key(key) == key for key in keys)


@given(st.lists(st.integers(0, 50), max_size=60), st.integers(1, 9), st.integers(1, 120))
def test_shards_keep_to_both_targets_and_lose_no_row(sizes: list[int], most: int, room: int) -> None:
    rows = [Row("file", str(i), "", size=size) for i, size in enumerate(sizes)]
    shards = list(cut(rows, most, room))
    assert [row for shard in shards for row in shard] == rows
    for shard in shards:
        assert len(shard) <= most and (len(shard) == 1 or sum(r.size for r in shard) <= room)
    for one, other in zip(shards, shards[1:], strict=False):
        assert len(one) == most or sum(r.size for r in one) + other[0].size > room


@settings(max_examples=20)
@given(
    st.lists(
        st.tuples(st.binary(max_size=8), st.none() | st.binary(max_size=9), st.none() | st.integers(0, 9)), min_size=1
    )
)
def test_a_plan_is_read_as_it_was_written(rows: list) -> None:
    with tempfile.TemporaryDirectory() as folder:
        store = Store(folder)
        wanted = [Row("file", str(i), os.fsdecode(p), txt=t, row=n, size=i) for i, (p, t, n) in enumerate(rows)]
        made = plan.write(store, cut(wanted, 3, 10**9), ["left out"])
        assert plan.read(store) == made and made.samples == len(rows)
        assert [row for unit in made.units for row in plan.rows_of(store, unit)] == wanted


def test_the_bytes_do_not_depend_on_the_order_of_work(tmp_path: Path) -> None:
    src = photos(tmp_path / "src", 20)
    options = {"max_count": 3}
    forward, backward = pack(src, tmp_path / "one", options), pack(src, tmp_path / "two", options, order=-1)
    assert forward["shards"] == 7 and forward["digest"] == backward["digest"]
    one, two = contents(tmp_path / "one"), contents(tmp_path / "two")
    assert one == two and len(one) > 7 * 4
    assert manifest.read(StageFolder(str(tmp_path / "one"), "base")).total == 20


def test_resuming_does_what_is_missing(tmp_path: Path) -> None:
    src, dst = photos(tmp_path / "src", 10), tmp_path / "dst"
    work = packing(src, dst, {"max_count": 2})
    work.begin()
    run_here(work.job, work.missing[:2], work.account)
    kept = (dst / "base/000000.done.json").stat().st_ino
    assert pack(src, dst, {"max_count": 2})["done"] == ["000002", "000003", "000004"]
    assert (dst / "base/000000.done.json").stat().st_ino == kept
    assert pack(src, dst, {"max_count": 2})["done"] == []


def test_another_source_or_option_is_refused_by_name(tmp_path: Path) -> None:
    src, dst = photos(tmp_path / "src", 4), tmp_path / "dst"
    pack(src, dst)
    before = contents(dst)
    with pytest.raises(StaleStageError, match=r"(?s)options.max_pixels: 64000000 -> 5.*--force"):
        pack(src, dst, {"max_pixels": 5})
    write(src, {"d/new.png": image(77), "d/new.txt": "new"})
    with pytest.raises(StaleStageError, match=r"(?s)source.files: 8 -> 10.*another DST"):
        pack(src, dst)
    assert contents(dst) == before
    assert pack(src, dst, force=True)["samples"] == 5
    with pytest.raises(StaleStageError, match=r"source.kind"):
        pack(src / "a", dst, kind="tars") if write(src, {"a/t.tar": b""}) else None


def test_files_of_others_are_not_overwritten(tmp_path: Path) -> None:
    src = photos(tmp_path / "src", 2)
    write(tmp_path / "dst", {"base/000000.tar": b"precious"})
    with pytest.raises(StaleStageError, match=r"000000.tar that no packing has claimed"):
        pack(src, tmp_path / "dst")
    assert (tmp_path / "dst/base/000000.tar").read_bytes() == b"precious"


def test_force_clears_what_was_made_of_the_other_samples_and_nothing_else(tmp_path: Path) -> None:
    first, second, dst = photos(tmp_path / "first", 3), photos(tmp_path / "second", 4), tmp_path / "dst"
    pack(first, dst)
    resharded(str(dst), tmp_path / "again")
    write(tmp_path / "again", {"model/config.json": b'{"architectures": []}', "model/weights": b"precious"})
    assert (tmp_path / "again/reshard.json").exists() and (tmp_path / "again/origin").exists()
    write(tmp_path / "again", {"regions/000000.done.json": b"{}", "regions/000000.parquet": b"of other samples"})
    with pytest.raises(StaleStageError, match="another DST"):
        pack(second, tmp_path / "again")
    assert pack(second, tmp_path / "again", force=True)["samples"] == 4
    assert contents(tmp_path / "again/base") == contents(_packed(second, tmp_path / "fresh") / "base")
    assert not (tmp_path / "again/reshard.json").exists() and not (tmp_path / "again/regions").exists()
    assert (tmp_path / "again/model/weights").read_bytes() == b"precious"


def _packed(src: Path, dst: Path) -> Path:
    pack(src, dst)
    return dst


def test_a_damaged_shard_is_named_and_redone_by_force(tmp_path: Path) -> None:
    src, dst = photos(tmp_path / "src", 6), tmp_path / "dst"
    pack(src, dst, {"max_count": 2})
    before = contents(dst)
    tar = dst / "base/000001.tar"
    tar.write_bytes(tar.read_bytes()[:-512])
    with pytest.raises(ShardError, match=r"000001.tar has .* bytes, its marker says"):
        pack(src, dst, {"max_count": 2})
    assert pack(src, dst, {"max_count": 2}, force=True)["done"] == ["000001"]
    assert contents(dst) == before


def test_the_budget_names_the_reasons(tmp_path: Path) -> None:
    src = write(photos(tmp_path / "src", 8), {f"d/{i}.png": image(i) for i in range(4)})
    with pytest.raises(BudgetError, match=r"4 of 12 samples were refused \(4 x no_text\).*--max-refused-fraction 0.25"):
        pack(src, tmp_path / "dst", {"max_refused_fraction": 0.25})
    assert not (tmp_path / "dst/base/manifest.parquet").exists()
    assert pack(src, tmp_path / "dst", {"max_refused_fraction": 0.5})["done"] == []


def test_a_hopeless_source_is_given_up_early(tmp_path: Path) -> None:
    src = write(tmp_path / "src", {f"{i}.png": image(i) for i in range(10)})
    with pytest.raises(BudgetError, match="2 of 10 samples"):
        pack(src, tmp_path / "dst", {"max_refused_fraction": 0.1, "max_count": 2})
    assert len(list((tmp_path / "dst/base").glob("*.done.json"))) == 1
    with pytest.raises(BudgetError, match="no sample could be used"):
        pack(src, tmp_path / "dst", {"max_refused_fraction": 1.0, "max_count": 2})


BAD_SOURCES = {
    "does not exist": lambda src: src / "nothing",
    "no images in": lambda src: write(src / "notes", {"a.csv": "x"}) and src / "notes",
    "no files at all": lambda src: (src / "empty").mkdir() or src / "empty",
    "nothing matches": lambda src: src / "*.tar",
    "nothing that can be packed": lambda src: write(src, {"a.zip": b"PK"}) / "a.zip",
    "only local files": lambda src: "https://example.org/a.tar",
    "or run": lambda src: "pipe:cat a.tar",
    "both images and tars": lambda src: write(src / "mix", {"a.png": b"", "a.tar": b""}),
}


@pytest.mark.parametrize("message", BAD_SOURCES)
def test_a_source_of_no_use_is_one_clear_error(tmp_path: Path, message: str) -> None:
    src = tmp_path / "src"
    src.mkdir()
    with pytest.raises(VillaError, match=message):
        pack(BAD_SOURCES[message](src), tmp_path / "dst")
    assert not (tmp_path / "dst/plan/config.json").exists(), "it must not bind DST"
    assert pack(photos(tmp_path / "good", 2), tmp_path / "dst")["samples"] == 2


@pytest.mark.parametrize("below", [".", "out", "a/out"])
def test_a_data_set_in_its_own_source(tmp_path: Path, below: str) -> None:
    src = photos(tmp_path / "src", 3)
    with pytest.raises(VillaError, match="lies in the source"):
        pack(src, src / below)
    (tmp_path / "link").symlink_to(src)
    with pytest.raises(VillaError, match="lies in the source"):
        pack(src, tmp_path / "link" / below)
    with pytest.raises(VillaError, match="which packing writes"):
        pack(write(tmp_path / "d/base/in", {"a.png": b""}), tmp_path / "d")


def test_a_source_that_changes_after_it_was_planned(tmp_path: Path) -> None:
    src = photos(tmp_path / "src", 6)
    work = packing(src, tmp_path / "dst")
    work.begin()
    (src / "a/000.png").unlink()
    shutil.copy(src / "b/001.png", src / "a/003.png")
    run_here(work.job, work.missing, work.account)
    result = work.finish()
    assert result["refused"] == {"unreadable_file": 1} and result["samples"] == 5


@pytest.mark.parametrize("check", ["full", "header", "none"])
def test_how_closely_images_are_looked_at(tmp_path: Path, check: str) -> None:
    files = {
        "cut.png": image(1)[:-40],
        "cut.txt": "pixels are missing",
        "head.png": image(1)[:20],
        "head.txt": "the head is missing",
        "wrong.jpg": image(2, "WEBP"),
        "wrong.txt": "another format than its name says",
    }
    pack(write(tmp_path / "src", files), tmp_path / "dst", {"check": check})
    found = samples(tmp_path / "dst")
    assert sorted(found) == {"full": ["wrong"], "header": ["cut", "wrong"], "none": ["cut", "head", "wrong"]}[check]
    assert found["wrong"]["webp"] == files["wrong.jpg"]
