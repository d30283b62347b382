"""Hostile tars and images as a whole: bounded memory, nothing executed, and each difference from other readers explained."""

from __future__ import annotations

import csv
import json
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
from made_dataset import png
from shard_samples import written

from shards.decode import DecodeError, decode_image
from shards.indexing import index_tars
from shards.places import open_tar
from shards.stats import stats
from shards.store import Store
from shards.tar import Scan, group, walk
from shards.verify import verify
from shards.work import run_here

pytestmark = pytest.mark.filterwarnings("ignore")
ROOT = Path(__file__).resolve().parents[2]
SHARED_DATA = ROOT.parent / "shared" / "data"
TARS, IMAGES, SHARDS = (SHARED_DATA / n for n in ("odd_tars", "odd_images", "shards"))
needs_data = pytest.mark.skipif(not TARS.is_dir(), reason=f"no {TARS}: real data is not part of the project")

MIB = 1 << 20
LIMIT = 2048 * MIB  # of address space, libraries included; some tars claim 60 GB
GROWTH = 200 * MIB  # of resident memory, for the largest image of the set with its conversions

# Reads all files of a folder and prints how resident memory grew.
CHILD = """
import json, resource, sys
from pathlib import Path
from shards.decode import DecodeError, decode_image
from shards.places import open_tar
from shards.store import Store
from shards.tar import Scan, group, walk
resource.setrlimit(resource.RLIMIT_AS, (int(sys.argv[3]),) * 2)
before, seen = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, 0
for path in sorted(p for p in Path(sys.argv[1]).rglob("*") if p.is_file()):
    seen += 1
    if sys.argv[2] == "images":
        try:
            decode_image(path.read_bytes())
        except DecodeError as error:
            assert error.reason in ("undecodable_image", "too_many_pixels")
        continue
    with open_tar(Store(str(path.parent)), path.name) as (view, file):
        for sample in group(walk(view, file, Scan()), Scan()):
            for member in sample.members:
                bytes(view[member.offset : member.offset + member.size])
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(json.dumps({"seen": seen, "growth": (after - before) * 1024}))
"""


@needs_data
@pytest.mark.parametrize(("folder", "kind", "files"), [(TARS, "tars", 90), (IMAGES, "images", 93), (SHARDS, "tars", 9)])
def test_memory_is_bounded_and_nothing_hangs(folder: Path, kind: str, files: int, tmp_path: Path) -> None:
    command = [sys.executable, "-W", "ignore", "-c", CHILD, str(folder), kind, str(LIMIT)]
    env = {"PYTHONPATH": str(ROOT), "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=tmp_path, env=env)
    assert ended.returncode == 0, ended.stderr[-2000:]
    found = json.loads(ended.stdout)
    assert found["seen"] >= files
    assert found["growth"] < GROWTH
    assert list(tmp_path.iterdir()) == [], "something was extracted"


# ---- other readers' verdicts

NO_END = "the end-of-archive blocks are missing"  # tarfile passes over that in silence; members may be lost
COMPRESSED = "compressed by"  # tarfile unpacks; a shard is a plain tar, mapped into memory
DIFFERENT = {
    **dict.fromkeys(
        (f"go_archive_tar/{n}.tar" for n in (
            "gnu-incremental", "gnu-multi-hdrs", "nil-uid", "pax-bad-hdr-file", "pax-bad-mtime-file", "pax-multi-hdrs",
            "pax-pos-size-file", "ustar-file-reg",
        )), NO_END,
    ),
    "tar_rs/empty_filename.tar": NO_END,
    "tar_stream/gnu-long-path.tar": NO_END,
    "go_archive_tar/pax-bad-hdr-large.tar.bz2": COMPRESSED,
    "tar_stream/invalid.tgz": COMPRESSED,
    "tar_split_asm/1c51fc286aa95d9413226599576bafa38490b1e292375c90de095855b64caea6": COMPRESSED,
    **{f"tar_split_asm/{n}.tar.gz": COMPRESSED for n in (
        "extranils", "fatlonglink", "iso-8859", "longlink", "notenoughnils", "t",
    )},
}  # fmt: skip


@needs_data
def test_each_difference_from_tarfile_is_explained() -> None:
    """Where both read all of a tar, test_shards_odd_tars compares member by member."""
    found = {}
    for row in csv.DictReader((TARS / "python_tarfile_verdicts.tsv").open(encoding="utf-8"), delimiter="\t"):
        scan = Scan()
        with open_tar(Store(str(TARS)), row["file"]) as (view, file):
            list(group(walk(view, file, scan), scan))
        theirs = row["cpython_3.11_tarfile"] == "ok"
        if theirs != (not scan.problem):
            found[row["file"]] = scan.problem
    assert set(found) == set(DIFFERENT)
    assert {name for name, problem in found.items() if DIFFERENT[name] not in problem} == set()


@needs_data
def test_each_difference_from_pillow_is_a_format_that_is_not_allowed() -> None:
    kept = ("JPEG", "PNG", "WEBP", "MPO")  # MPO: a JPEG with more pictures behind the first
    for row in csv.DictReader((IMAGES / "pillow_13_verdicts.tsv").open(encoding="utf-8"), delimiter="\t"):
        allowed = row["opened_as"].split(" ")[0] in kept
        try:
            decode_image((IMAGES / row["file"]).read_bytes())
            mine = True
        except DecodeError:
            mine = False
        assert mine == (row["pillow_verdict"] == "ok" and allowed), row


@needs_data
def test_shards_of_others_are_read_or_refused_with_reasons(tmp_path: Path) -> None:
    for folder, shards, samples in (("", 1, 32), ("webdataset_testdata", 4, 1203), ("clip_retrieval", 4, 11)):
        assert verify(str(SHARDS / folder), run_here).samples == samples
        done = index_tars(str(SHARDS / folder), run_here, out=str(tmp_path / f"index-{folder}"))
        assert (done.tars, done.written, done.samples) == (shards, shards, samples)
    deep = verify(str(SHARDS / "clip_retrieval"), run_here, deep=True).findings
    assert deep.counts == {("error", "no_text"): 11}
    assert verify(str(SHARDS), run_here, deep=True).findings.clean


# ---- nothing is executed


class Canary:
    """Unpickling this creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return open, (str(self.path), "w")


def test_no_member_is_unpickled(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    code = pickle.dumps(Canary(canary))
    pickle.loads(code).close()
    assert canary.exists(), "the canary sings"
    canary.unlink()
    suffixes = ("pyd", "pkl", "pth", "pt", "npy", "txt", "json", "png", "jpg", "idx")
    shard = written(
        [
            ("a", {"png": png(0), "txt": b"fine", **dict.fromkeys(suffixes[:5], code)}),
            ("b", dict.fromkeys(suffixes, code)),
        ]
    )
    folder = tmp_path / "tars"
    folder.mkdir()
    (folder / "x.tar").write_bytes(shard)
    (folder / "x.idx").write_bytes(code)
    assert not verify(str(folder), run_here, deep=True).findings.clean
    assert index_tars(str(folder), run_here).refused == 1
    assert stats(str(folder), run_here).tally.numbers["tars/samples"] == 2
    assert not canary.exists()
