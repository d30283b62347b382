"""`villa shards reshard` from the command line: the result line, exit codes, what mistakes are told, the same on Ray."""

from __future__ import annotations

import io
import re
import sys
import tarfile
from pathlib import Path

import pytest
from runs import contents, result_line, villa

sys.path.append(str(Path(__file__).parents[1] / "shards"))

from reshard_data import Sample, data_set, read_shards, some_samples

SHARDS = some_samples(5, 6, 20)
FLAT: list[Sample] = [s for rows in SHARDS for s in rows]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> str:
    return data_set(tmp_path_factory.mktemp("reshard") / "src", SHARDS)


def test_the_result_line_and_what_a_person_reads(source: str, tmp_path: Path) -> None:
    given = (
        "shards",
        "reshard",
        source,
        str(tmp_path / "out"),
        "--where",
        "pairs >= 1",
        "--workers",
        "1",
        "--max-count",
    )
    ended = villa(*given, "7")
    result = result_line(ended)
    kept = [s for n, s in enumerate(FLAT) if n % 5 >= 1]
    expected = {
        "command": "shards reshard",
        "dataset": str(tmp_path / "out"),
        "samples_in": len(FLAT),
        "samples": len(kept),
        "filtered": len(FLAT) - len(kept),
        "duplicates": 0,
        "quarantined": {},
        "conserved": True,
        "proved_by": "content",
        "sidecars": ["pairs"],
        "shards": -(-len(kept) // 7),
    }
    assert {k: result[k] for k in expected} == expected
    assert [s for rows in read_shards(tmp_path / "out") for s in rows] == kept
    assert re.search(r"scan: 6/6 shards", ended.stderr) and re.search(r"write: \d+/\d+ MB", ended.stderr)
    assert result_line(villa(*given, "7")) == result
    stale = villa(*given, "8")
    assert stale.returncode == 2 and "reshard.max_count: 7 -> 8" in stale.stderr and "Traceback" not in stale.stderr


def test_ray_writes_the_same_bytes(source: str, tmp_path: Path) -> None:
    options = ("--max-count", "9", "--shuffle", "3", "--dedupe", "content")
    one = result_line(villa("shards", "reshard", source, str(tmp_path / "one"), *options, "--workers", "1"))
    on_ray = villa("shards", "reshard", source, str(tmp_path / "two"), *options, "--workers", "2")
    again = villa("shards", "reshard", source, str(tmp_path / "two"), *options, "--workers", "2")
    two = result_line(on_ray)
    assert "starting a local Ray" in on_ray.stderr and "starting a local Ray" not in again.stderr
    assert result_line(again) == two
    assert one["digest"] == two["digest"] and one["samples"] == two["samples"] > 0
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_mistakes_are_told_without_a_traceback(source: str, tmp_path: Path) -> None:
    (tmp_path / "rows").mkdir()
    with tarfile.open(tmp_path / "rows/a.tar", "w") as tar:  # only a link: nothing is left to write
        link = tarfile.TarInfo("a.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link, io.BytesIO())
    out = str(tmp_path / "out")
    for arguments, says in (
        ((str(tmp_path / "nowhere"), out), "does not exist"),
        (("ftp://host/x", out), "unknown kind 'ftp'"),
        ((source, f"{source}/inside"), "lies in the sources"),
        ((source, out, "--where", "pair >= 4"), "did you mean 'pairs'"),
        ((source, out, "--max-bytes", "12 parsecs"), "is not a size"),
        ((source, out, "--dedupe", "colour"), "choose key, content or image"),
        ((source, out, "--trust-digests", "--no-hash"), "exclude each other"),
    ):
        ended = villa("shards", "reshard", *arguments, "--workers", "1")
        told = " ".join(ended.stderr.replace("│", " ").split())
        assert ended.returncode == 2 and says in told, (arguments, ended.returncode, ended.stderr)
        assert "Traceback" not in ended.stderr and not ended.stdout.strip()
    damaged = villa("shards", "reshard", str(tmp_path / "rows"), out, "--workers", "1", "--max-refused-fraction", "0")
    assert damaged.returncode == 3 and "1 x link" in damaged.stderr and "Traceback" not in damaged.stderr
