"""`villa shards pack` from the command line: the result line, exit codes, resuming after a kill, Ray, and use by ingest."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from runs import contents, result_line, sets, villa

from cluster.commands.pack import size_of
from shards.errors import VillaError


def photos(folder: Path, count: int, bad: int = 0) -> Path:
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(count):
        sink = io.BytesIO()
        Image.fromarray(rng.integers(0, 255, (24, 24, 3), dtype=np.uint8)).save(sink, "PNG")
        (folder / f"{i:04d}.png").write_bytes(sink.getvalue())
        if i >= bad:
            (folder / f"{i:04d}.txt").write_text("a red thing" if i % 2 else "a blue thing")
    return folder


def pack(*arguments: object) -> subprocess.CompletedProcess[str]:
    return villa("shards", "pack", *map(str, arguments))


def test_the_result_line_and_what_a_person_reads(tmp_path: Path) -> None:
    src, dst = photos(tmp_path / "src", 20, bad=1), tmp_path / "dst"
    ended = pack(src, dst, "--max-count", 8, "--workers", 1)
    result = result_line(ended)
    assert {k: result[k] for k in ("command", "shards", "samples", "refused", "conserved", "dataset")} == {
        "command": "shards pack",
        "shards": 3,
        "samples": 19,
        "refused": {"no_text": 1},
        "conserved": True,
        "dataset": str(dst),
    }
    assert result["bytes"] == sum(p.stat().st_size for p in (dst / "base").glob("*.tar"))
    assert "3/3 shards" in ended.stderr and "samples/s" in ended.stderr and "MB/s" in ended.stderr
    assert "1 samples refused (1 x no_text)" in ended.stderr
    again = result_line(pack(src, dst, "--max-count", 8))
    assert again["digest"] == result["digest"]


@pytest.mark.parametrize("kind", ["folder", "table"])
def test_what_was_packed_verifies_clean(tmp_path: Path, kind: str) -> None:
    src, dst = photos(tmp_path / "src", 9), tmp_path / "dst"
    if kind == "table":
        rows = [f"src/{n:04d}.png,a red thing" for n in range(9)]
        src = tmp_path / "listing.csv"
        src.write_text("\n".join(["path,text", *rows]) + "\n")
    columns = ["--image-column", "path", "--text-column", "text", "--images", tmp_path] if kind == "table" else []
    result_line(pack(src, dst, "--max-count", 4, "--workers", 1, *columns))
    line = result_line(villa("shards", "verify", str(dst)))
    assert line["clean"], line["kinds"]
    assert set(line["stages"]) == {"base", "origin"}


def test_ray_writes_the_same_bytes(tmp_path: Path) -> None:
    src = photos(tmp_path / "src", 12, bad=1)
    one = result_line(pack(src, tmp_path / "one", "--max-count", 3, "--workers", 1))
    two = result_line(pack(src, tmp_path / "two", "--max-count", 3, "--workers", 2))
    assert one["digest"] == two["digest"]
    assert contents(tmp_path / "one") == contents(tmp_path / "two") != {}


def test_exit_codes_and_messages(tmp_path: Path) -> None:
    src = photos(tmp_path / "src", 10, bad=4)
    over = pack(src, tmp_path / "dst")
    assert over.returncode == 3 and over.stdout == "" and "4 of 10 samples were refused (4 x no_text)" in over.stderr
    assert result_line(pack(src, tmp_path / "dst", "--max-refused-fraction", "0.5"))["samples"] == 6
    stale = pack(src, tmp_path / "dst", "--max-refused-fraction", "0.5", "--check", "none")
    assert stale.returncode == 2 and "options.check: full -> none" in stale.stderr and "--force" in stale.stderr
    cases = [
        ([tmp_path / "srcc", tmp_path / "d"], "did you mean 'src'"),
        ([src, src / "d"], "lies in the source"),
        ([src, tmp_path / "d", "--check", "half"], "full, header, none"),
        ([src, tmp_path / "d", "--kind", "zip"], "folder, coco, table, tars"),
        ([src, tmp_path / "d", "--max-bytes", "much"], "such as 512MiB"),
        ([src, tmp_path / "d", "--max-count", "0"], "at least 1"),
    ]
    for arguments, message in cases:
        ended = pack(*arguments)
        assert ended.returncode == 2 and ended.stdout == "" and message in ended.stderr, ended.stderr
        assert "Traceback" not in ended.stderr
    for ended in (over, stale):
        assert "Traceback" not in ended.stderr


def test_a_killed_packing_resumes_to_the_same_bytes(tmp_path: Path) -> None:
    src = photos(tmp_path / "src", 60)
    result_line(pack(src, tmp_path / "whole", "--max-count", 2, "--workers", 1))
    command = [sys.executable, "-m", "cluster", "shards", "pack", str(src), str(tmp_path / "dst"), "--max-count", "2"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    process = subprocess.Popen(
        [*command, "--workers", "1"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment
    )
    deadline = time.monotonic() + 120
    while not (tmp_path / "dst/base/000003.done.json").exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    result_line(pack(src, tmp_path / "dst", "--max-count", 2, "--workers", 1))
    assert contents(tmp_path / "dst") == contents(tmp_path / "whole")


def test_what_was_packed_is_ingested_whole(tmp_path: Path) -> None:
    result_line(pack(photos(tmp_path / "src", 20), tmp_path / "dst", "--max-count", 9, "--workers", 1))
    (tmp_path / "c.yaml").write_text("seed: 0\n")
    overrides = sets(
        f"run={tmp_path}/run",
        "runner=local",
        "data.source=shards",
        f"data.train={tmp_path}/dst/base",
        f"data.validation={tmp_path}/dst/base",
        'evaluate.splits=["validation"]',
    )
    ended = villa("ingest", str(tmp_path / "c.yaml"), *overrides)
    result = result_line(ended)
    assert result["images"]["train"] == 20 and result["quarantined"] == {}


@pytest.mark.parametrize(("text", "size"), [("512MiB", 512 << 20), ("1GB", 10**9), ("1.5k", 1500), ("2 Ki", 2048)])
def test_sizes(text: str, size: int) -> None:
    assert size_of(text) == size
    with pytest.raises(VillaError):
        size_of(f"{text} of cake")


def test_a_table_and_a_coco_file(tmp_path: Path) -> None:
    src = photos(tmp_path / "src", 4)
    (tmp_path / "t.csv").write_text("path,title,colour\n0000.png,shirt,red\n0001.png,skirt,\n")
    arguments = [
        tmp_path / "t.csv",
        tmp_path / "table",
        "--images",
        src,
        "--image-column",
        "path",
        "--text-column",
        "title",
    ]
    assert result_line(pack(*arguments, "--text-column", "colour", "--keep-columns", "colour, title"))["samples"] == 2
    wrong = pack(*arguments, "--text-column", "color")
    assert wrong.returncode == 2 and "no column 'color' (did you mean 'colour'?)" in wrong.stderr
    coco = {"images": [{"id": 1, "file_name": "0000.png"}], "annotations": [{"image_id": 1, "caption": "one"}]}
    (tmp_path / "captions.json").write_text(json.dumps(coco))
    given = [tmp_path / "captions.json", tmp_path / "coco", "--coco", tmp_path / "captions.json", "--images", src]
    assert result_line(pack(*given))["samples"] == 1
