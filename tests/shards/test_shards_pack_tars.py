"""Packing tars of other writers: keys, damage, gzip, bombs, patterns, cuts; real and hostile ones."""

from __future__ import annotations

import csv
import gzip
import io
import resource
import shutil
import tarfile
from pathlib import Path

import pytest
from pack_samples import SHARED_DATA, contents, image, origins, pack, packing, photos, refused, samples, write
from shard_samples import archived, written

from shards.errors import ShardError, VillaError
from shards.reader import scan_tar
from shards.sources import gzipped
from shards.sources.find import braces
from shards.store import Store
from shards.tar import Scan
from shards.work import run_here

needs_data = pytest.mark.skipif(not SHARED_DATA.is_dir(), reason="real data is not part of the project")


def some(count: int, first: int = 0) -> list[tuple[str, dict[str, bytes]]]:
    return [(f"{i:04d}", {"png": image(i), "txt": b"text %d" % i}) for i in range(first, first + count)]


def test_equal_keys_of_two_tars_stay_apart(tmp_path: Path) -> None:
    twice = [*some(3), ("0001", {"png": image(50), "txt": b"again"})]
    write(tmp_path / "src", {"x/a.tar": written(twice), "y/a.tar": written(some(3)), "stats.json": "{}"})
    result = pack(tmp_path / "src", tmp_path / "dst")
    assert result["samples"] == 6 and result["refused"] == {"duplicate_key": 1} and result["shards"] == 1
    found = samples(tmp_path / "dst")
    assert sorted(found) == sorted(f"{tar}/a/000{i}" for tar in "xy" for i in range(3))
    assert found["x/a/0001"] == {"png": image(1), "txt": b"text 1"}
    assert origins(tmp_path / "dst")["y/a/0002"] == ("y/a.tar", "0002.png", None)


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("packed", [False, True])
def test_cut_or_whole_plain_or_gzipped_it_is_the_same(tmp_path: Path, form: int, packed: bool) -> None:
    content = [
        *some(20),
        ("0003", {"png": b"", "txt": b""}),
        ("sub.dir/ä", {"png": image(7), "txt": b"t", "cls": b"1"}),
    ]
    data = archived(content, form)
    src = write(tmp_path / "src", {"t.tgz" if packed else "t.tar": gzip.compress(data) if packed else data})
    whole = pack(src, tmp_path / "whole", kind="tars")
    assert whole["samples"] == 21 and whole["refused"] == {"duplicate_key": 1}
    assert any(".cls x 1" in w for w in whole["warnings"])
    if not packed:
        for options in ({"max_count": 4}, {"max_bytes": 700}, {"max_count": 1}):
            cut = pack(src, tmp_path / f"cut{options}", options, kind="tars")
            assert cut["shards"] > 4 and cut["refused"] == whole["refused"]
            assert samples(tmp_path / f"cut{options}") == samples(tmp_path / "whole")
            assert origins(tmp_path / f"cut{options}") == origins(tmp_path / "whole")


@pytest.mark.parametrize("cut", [None, {"max_count": 2}])
@pytest.mark.parametrize("packed", [False, True])
def test_a_cut_tar_keeps_what_came_before(tmp_path: Path, packed: bool, cut: dict[str, int] | None) -> None:
    data = written(some(8))[:-3000]
    data = gzip.compress(data) if packed else data
    src = write(tmp_path / "src", {"t.tar": data, "u.tar": written(some(2))})
    result = pack(src, tmp_path / "dst", cut)
    assert result["refused"] == {"damaged_shard": 1, "incomplete_sample": 1} and 7 <= result["samples"] <= 9
    assert any("t.tar" in w and "Fetch the tar again" in w for w in result["warnings"])


def test_a_gzip_stream_that_is_cut(tmp_path: Path) -> None:
    data = gzip.compress(written([(str(i), {"png": image(i, size=(99, 99)), "txt": b"t"}) for i in range(20)]))
    result = pack(write(tmp_path / "src", {"t.tar.gz": data[: len(data) // 2]}), tmp_path / "dst")
    assert result["refused"] in ({"damaged_shard": 1, "incomplete_sample": 1}, {"damaged_shard": 1})
    assert 3 < result["samples"] < 11
    assert "gzip stream is cut" in refused(tmp_path / "dst")["t/(end)"][1]


def test_every_cut_and_flip_of_a_gzipped_tar_ends(tmp_path: Path) -> None:
    content = some(3)
    data = gzip.compress(written(content))
    good = dict(content)
    for at in range(0, len(data), 97):
        for name, hurt in (("cut", data[:at]), ("flip", data[:at] + bytes([data[at] ^ 0x10]) + data[at + 1 :])):
            (tmp_path / "t.tgz").write_bytes(hurt)
            scan = Scan()
            if not gzipped.is_gzipped(str(tmp_path / "t.tgz")):
                continue
            with gzipped.gzipped_samples(str(tmp_path / "t.tgz"), scan, ("png", "txt")) as found:
                whole = {s.key: s.load() for s in found}
            assert scan.problem or name == "flip", f"{name} at {at} was not noticed"
            if name == "cut":
                assert all(good[key] == members for key, members in whole.items())


def test_a_bomb_is_refused_and_costs_nothing(tmp_path: Path) -> None:
    sink = io.BytesIO()
    with gzip.GzipFile(fileobj=sink, mode="wb", compresslevel=9) as packed:
        packed.write(written(some(2))[:-1024])
        info = tarfile.TarInfo("bomb.txt")
        info.size = 200 << 20
        packed.write(info.tobuf())
        for _ in range(200):
            packed.write(bytes(1 << 20))
    src = write(tmp_path / "src", {"t.tgz": sink.getvalue()})
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    result = pack(src, tmp_path / "dst")
    assert result["samples"] >= 1 and result["refused"]["decompression_bomb"] == 1
    assert "100 times its size" in refused(tmp_path / "dst")["t/(end)"][1]
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 150 << 10, "bounded memory, in KiB"
    assert sum(p.stat().st_size for p in (tmp_path / "dst").rglob("*") if p.is_file()) < 1 << 20


def test_patterns_and_brace_lists(tmp_path: Path) -> None:
    src = write(tmp_path / "src", {f"{i:05d}.tar": written(some(1, i)) for i in range(12)})
    assert pack(f"{src}/{{00000..00011}}.tar", tmp_path / "braces")["samples"] == 12
    assert pack(f"{src}/0000*.tar", tmp_path / "glob")["samples"] == 10
    assert pack(f"{src}/{{00000,00007}}.tar", tmp_path / "list")["samples"] == 2
    with pytest.raises(VillaError, match=r"lists 14 files and 2 are missing, such as .*00012.tar"):
        pack(f"{src}/{{00000..00013}}.tar", tmp_path / "missing")
    with pytest.raises(VillaError, match=r"'0000.tar' does not exist \(did you mean '00000.tar'\?\)|does not exist"):
        pack(f"{src}/0000.tar", tmp_path / "near")
    assert braces("a{8..11}{x,y}") == [f"a{n}{c}" for n in (8, 9, 10, 11) for c in "xy"]
    assert braces("{02..00}") == ["02", "01", "00"] and braces("{word}") == ["{word}"]
    with pytest.raises(VillaError, match="brace list"):
        braces("{0..9999}{0..9999}")


def test_a_tar_that_changes_after_it_was_planned(tmp_path: Path) -> None:
    src = write(tmp_path / "src", {"a.tar": written(some(3))})
    work = packing(src, tmp_path / "dst", {"max_count": 2})
    work.begin()
    (src / "a.tar").write_bytes(written(some(4)))
    with pytest.raises(ShardError, match=r"a.tar has changed, or is gone, since it was listed"):
        run_here(work.job, work.missing, work.account)
    assert list((tmp_path / "dst/base/.attempts").glob("*")) == []


def test_img2dataset_output(tmp_path: Path) -> None:
    photos_of = [(f"{i:09d}", {"jpg": image(i, "JPEG"), "json": b'{"caption": "c"}', "txt": b"c"}) for i in range(4)]
    src = write(tmp_path / "src", {"00000.tar": written(photos_of), "00000.parquet": b"PAR1", "00000_stats.json": "{}"})
    assert pack(src, tmp_path / "dst")["samples"] == 4
    assert samples(tmp_path / "dst")["00000/000000003"] == photos_of[3][1]


@needs_data
def test_a_real_web_shard(tmp_path: Path) -> None:
    src = SHARED_DATA / "shards/cc12m-train-0000.tar"
    assert pack(src, tmp_path / "dst")["samples"] == 32
    with tarfile.open(src) as tar:
        wanted = {m.name: tar.extractfile(m).read() for m in tar if m.isfile()}  # type: ignore[union-attr]
    found = {
        f"{key.rpartition('/')[2]}.{suffix}": data
        for key, members in samples(tmp_path / "dst").items()
        for suffix, data in members.items()
    }
    assert found == wanted


@needs_data
def test_other_peoples_test_shards(tmp_path: Path) -> None:
    with pytest.raises(VillaError, match="11 of 11 samples were refused"):
        pack(SHARED_DATA / "shards/clip_retrieval", tmp_path / "clip", {"max_refused_fraction": 0.5})
    assert {r for r, _ in refused(tmp_path / "clip").values()} == {"no_text"} and len(refused(tmp_path / "clip")) == 11
    with pytest.raises(VillaError, match="no sample could be used"):
        pack(SHARED_DATA / "shards/webdataset_testdata", tmp_path / "wds")
    reasons = [r for r, _ in refused(tmp_path / "wds").values()]
    assert reasons.count("no_text") == 90, "the .tgz has images with .cls alone"
    assert set(reasons) == {"no_text", "no_image"}


@needs_data
@pytest.mark.timeout(120)
def test_hostile_tars_are_read_or_refused(tmp_path: Path) -> None:
    """Every tar gives the samples that the reader finds, in quarantine since none has images; plain and gzipped alike."""
    folder = SHARED_DATA / "odd_tars"
    with open(folder / "python_tarfile_verdicts.tsv", encoding="utf-8") as file:
        names = [row["file"] for row in csv.DictReader(file, delimiter="\t")]
    src = write(tmp_path / "src", {"good.tar": written(some(2))})
    for name in names:
        (src / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(folder / name, src / name)
    plain = {n for n in names if n.endswith(".tar")}
    result = pack(src, tmp_path / "dst")
    assert result["samples"] == 2 and result["conserved"]
    seen = refused(tmp_path / "dst")
    for name in sorted(plain):
        scan = Scan()
        count = len(list(scan_tar(Store(str(src)), name, scan)))
        prefix = next((k for k, (_, detail) in seen.items() if f"({name}" in detail), None)
        assert prefix is not None or (count == 0 and not scan.refused and not scan.problem), name
    assert contents(tmp_path / "dst")


@needs_data
def test_hostile_tars_gzipped(tmp_path: Path) -> None:
    """The streaming reader ends on each, and finds the members that the plain one finds."""
    different = {}
    for path in sorted((SHARED_DATA / "odd_tars").rglob("*.tar")):
        plain, streamed = Scan(), Scan()
        wanted = [(s.key, s.suffixes) for s, _ in scan_tar(Store(str(path.parent)), path.name, plain)]
        (tmp_path / "t.tgz").write_bytes(gzip.compress(path.read_bytes(), 1))
        with gzipped.gzipped_samples(str(tmp_path / "t.tgz"), streamed, ()) as found:
            mine = [(s.key, s.suffixes) for s in found]
        if (
            path.name == "pax-global-records.tar"
        ):  # an empty record takes a global one back; tarfile takes it for a name
            assert mine[: len(wanted)] == wanted and len(mine) == len(wanted) + len(plain.refused)
        elif mine != wanted and not (plain.problem or streamed.problem):
            different[path.name] = (wanted, mine)
    assert not different


@needs_data
@pytest.mark.filterwarnings("ignore:::PIL")
@pytest.mark.parametrize("convert", [False, True])
@pytest.mark.timeout(60)
def test_hostile_images_are_read_or_refused(tmp_path: Path, convert: bool) -> None:
    """Against what Pillow says of each: what it loads is packed where the format is allowed, what it does not is refused."""
    folder = SHARED_DATA / "odd_images"
    with open(folder / "pillow_13_verdicts.tsv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    src = tmp_path / "src"
    for row in rows:
        stem = row["file"].replace(".", "~")  # one text each, though stems are shared
        write(
            src, {f"{stem}.{row['file'].rpartition('.')[2]}": (folder / row["file"]).read_bytes(), f"{stem}.txt": "t"}
        )
    pack(src, tmp_path / "dst", {"convert": convert})
    kept = {file.rpartition(".")[0].replace("~", ".") for file, _, _ in origins(tmp_path / "dst").values()}
    refusals = {detail for _, detail in refused(tmp_path / "dst").values()}
    assert len(kept) + len(refusals) == len(rows) == 93
    always, on_request = ("JPEG", "PNG", "WEBP", "MPO"), ("BMP", "GIF", "TIFF", "PPM")
    wanted = set()
    for row in rows:
        form = row["opened_as"].partition(" ")[0]
        if row["pillow_verdict"] == "ok" and form in always + (on_request if convert else ()):
            wanted.add(row["file"])
    assert kept == wanted
    for key, members in samples(tmp_path / "dst").items():
        original = folder / origins(tmp_path / "dst")[key][0].rpartition(".")[0].replace("~", ".")
        (suffix,) = set(members) - {"txt"}
        assert members[suffix] == original.read_bytes() or convert


def test_16_bit_images_keep_their_depth(tmp_path: Path) -> None:
    import numpy as np
    from PIL import Image

    pixels = np.arange(0, 60000, 1000, dtype=np.uint16).reshape(6, 10)
    deep = pixels.astype(np.int32) * 1000
    for name, values in (("grey", pixels), ("deep", deep)):
        sink = io.BytesIO()
        Image.fromarray(values).save(sink, "TIFF")
        write(tmp_path / "src", {f"{name}.tif": sink.getvalue(), f"{name}.txt": "t"})
    pack(photos(tmp_path / "src", 1), tmp_path / "dst", {"convert": True})
    found = samples(tmp_path / "dst")
    assert (np.asarray(Image.open(io.BytesIO(found["grey"]["png"]))) == pixels).all()
    stretched = np.asarray(Image.open(io.BytesIO(found["deep"]["png"]))).astype(np.int64)
    assert stretched.min() == 0 and stretched.max() == 65535 and (np.diff(stretched.reshape(-1)) > 0).all()
