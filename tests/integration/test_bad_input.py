"""What a user gets wrong, and what is wrong with their data: each has a message with value, place and remedy."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from runs import ONE_TOWER, TINY, config_file, contents, result_line, sets, villa

from shards import sidecar
from shards.tar import TarWriter

GRID = ["regions.proposals=grid", "regions.grid=[2, 2]"]
WORDS = "vocabulary.attributes=[{phrase: red, group: colour}, {phrase: blue, group: colour}]"


def png(seed: int) -> bytes:
    sink = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(sink, "PNG")
    return sink.getvalue()


def write_tar(path: Path, members: list[tuple[str, bytes]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "wb") as file:
        tar = TarWriter(file)
        for name, data in members:
            tar.add(name, data)
        tar.close()


def good(start: int, count: int) -> list[tuple[str, bytes]]:
    text = ("a red thing", "a blue thing", "red and blue")
    return [
        m for i in range(start, start + count) for m in ((f"s{i}.png", png(i)), (f"s{i}.txt", text[i % 3].encode()))
    ]


def source(folder: Path, extra: list[tuple[str, bytes]] | None = None) -> list[str]:
    """Two shards of good samples, `extra` members in the second; the overrides that point a run at them."""
    write_tar(folder / "data/a.tar", good(0, 16))
    write_tar(folder / "data/b.tar", good(16, 12) + (extra or []))
    return sets(
        f"run={folder}/run",
        *TINY,
        *ONE_TOWER,
        *GRID,
        WORDS,
        "data.source=shards",
        f"data.train={folder}/data",
        "evaluate.ground_truth=false",
    )


def refused_rows(run: Path) -> list[dict]:
    found = sorted((run / "train/base/quarantine").glob("*.parquet"))
    return [row for path in found for row in sidecar.from_bytes(path.read_bytes(), str(path)).to_pylist()]


BAD_SAMPLES = {
    "undecodable_image": [("bad.png", b"\x89PNG\r\n\x1a\nnot really"), ("bad.txt", b"red")],
    "not_utf8": [("bad.png", png(900)), ("bad.txt", b"caf\xe9 red")],
    "no_text": [("bad.png", png(901)), ("bad.cls", b"3")],
    "no_image": [("bad.txt", b"red")],
    "duplicate_key": [
        ("s0.png", png(902)),
        ("s0.txt", b"red"),
        ("s0b.png", png(903)),
        ("s0b.txt", b"red"),
        ("s0.png", png(904)),
        ("s0.txt", b"blue"),
    ],
    "bad_json": [("bad.png", png(905)), ("bad.json", b"{caption")],
    "unsafe_key": [("../bad.png", png(906)), ("../bad.txt", b"red")],
}


@pytest.mark.parametrize("reason", sorted(BAD_SAMPLES))
def test_a_bad_sample_is_quarantined_and_the_run_goes_on(tmp_path: Path, reason: str) -> None:
    overrides = source(tmp_path, BAD_SAMPLES[reason])
    result = result_line(villa("ingest", config_file(tmp_path), *overrides))
    assert reason in result["quarantined"], result
    rows = refused_rows(tmp_path / "run")
    assert reason in {row["reason"] for row in rows}
    assert all(row["detail"] and row["key"] for row in rows)
    kept = 28 + (2 if reason == "duplicate_key" else 0)
    assert result["images"]["train"] == kept


def test_the_whole_pipeline_runs_on_foreign_shards_with_a_bad_sample(tmp_path: Path) -> None:
    result = result_line(villa("run", config_file(tmp_path), *source(tmp_path, BAD_SAMPLES["undecodable_image"])))
    assert result["quarantined"] == {"undecodable_image": 1} and result["metrics"] == {}
    assert Path(result["report"]).is_file()


def test_truncated_shard_keeps_the_good_part_and_says_so(tmp_path: Path) -> None:
    overrides = source(tmp_path)
    whole = (tmp_path / "data/b.tar").read_bytes()
    (tmp_path / "data/b.tar").write_bytes(whole[: len(whole) // 2])
    ended = villa("ingest", config_file(tmp_path), *overrides)
    result = result_line(ended)
    assert result["quarantined"]["damaged_shard"] == 1
    assert "b.tar" in ended.stderr and "cut at byte" in ended.stderr and "--force" in ended.stderr
    assert 16 < result["images"]["train"] < 28


def test_not_a_tar_at_all(tmp_path: Path) -> None:
    overrides = source(tmp_path)
    (tmp_path / "data/c.tar").write_bytes(b"this is no tar " * 100)
    (tmp_path / "data/d.tar").write_bytes(b"")
    result = result_line(villa("ingest", config_file(tmp_path), *overrides))
    assert result["quarantined"]["damaged_shard"] == 2 and result["images"]["train"] == 28


def test_too_many_bad_samples_fail_with_the_reasons_counted(tmp_path: Path) -> None:
    bad = [m for i in range(15) for m in ((f"x{i}.png", b"junk"), (f"x{i}.txt", b"red"))]
    ended = villa("ingest", config_file(tmp_path), *source(tmp_path, bad))
    assert ended.returncode == 3 and ended.stdout == ""
    assert "15 x undecodable_image" in ended.stderr and "max_quarantine_fraction" in ended.stderr


def test_nothing_usable_is_an_error(tmp_path: Path) -> None:
    write_tar(tmp_path / "data/a.tar", [("a.png", b"junk"), ("a.txt", b"red")])
    overrides = sets(f"run={tmp_path}/run", *TINY, "data.source=shards", f"data.train={tmp_path}/data")
    ended = villa("ingest", config_file(tmp_path), *overrides)
    assert ended.returncode == 3 and "no sample of split 'train'" in ended.stderr


@pytest.mark.parametrize("make", [lambda p: None, lambda p: p.mkdir()], ids=["missing", "empty"])
def test_missing_or_empty_folder(tmp_path: Path, make) -> None:
    make(tmp_path / "data")
    overrides = sets(f"run={tmp_path}/run", *TINY, "data.source=shards", f"data.train={tmp_path}/data")
    ended = villa("run", config_file(tmp_path), *overrides)
    assert ended.returncode == 2 and f"{tmp_path}/data" in ended.stderr and "Traceback" not in ended.stderr


def test_annotations_without_known_boxes(tmp_path: Path) -> None:
    overrides = [*source(tmp_path), "--set", "regions.proposals=annotations"]
    ended = villa("run", config_file(tmp_path), *overrides)
    assert ended.returncode == 2 and "regions.proposals=grid" in ended.stderr


@pytest.mark.parametrize(
    ("text", "arguments", "expected"),
    [
        ("trian: {steps: 3}\n", [], ["unknown key 'trian'", "did you mean 'train'"]),
        ("train: {setps: 3}\n", [], ["unknown key 'train.setps'", "did you mean 'train.steps'"]),
        ("train: {steps: many}\n", [], ["train.steps = 'many'", "integer"]),
        ("seed: 0\n", ["--set", "train.stepz=3"], ["--set train.stepz=3", "did you mean 'train.steps'"]),
        ("seed: 0\n", ["--set", "train.steps"], ["KEY=VALUE"]),
        ("seed: [\n", [], ["not valid YAML"]),
        ("- a\n", [], ["expected sections"]),
        ("train: {batch_images: 7}\n", [], ["train.batch_images=7 is not divisible"]),
    ],
)
def test_mistakes_in_a_config(tmp_path: Path, text: str, arguments: list[str], expected: list[str]) -> None:
    path = config_file(tmp_path, text)
    ended = villa("run", path, *arguments)
    assert ended.returncode == 2 and ended.stdout == "" and "Traceback" not in ended.stderr
    for part in [*expected, *([] if "--set" in arguments else [path])]:
        assert part in ended.stderr, ended.stderr


def test_missing_config_names_the_nearest(tmp_path: Path) -> None:
    config_file(tmp_path)
    ended = villa("run", str(tmp_path / "confg.yaml"))
    assert ended.returncode == 2 and "does not exist" in ended.stderr and "config.yaml" in ended.stderr


def test_unknown_stage_and_a_stage_before_its_time(tmp_path: Path) -> None:
    unknown = villa("pretrian", config_file(tmp_path))
    assert unknown.returncode == 2 and "pretrian" in unknown.stderr and "Traceback" not in unknown.stderr
    early = villa("pairs", config_file(tmp_path), *sets(f"run={tmp_path}/run", *TINY))
    assert (early.returncode == 2 and "not finished" in early.stderr) or "not complete" in early.stderr


def test_a_shard_cut_after_it_was_committed(tmp_path: Path) -> None:
    config, overrides = config_file(tmp_path), source(tmp_path)
    result_line(villa("ingest", config, *overrides))
    tar = tmp_path / "run/train/base/000000.tar"
    tar.write_bytes(tar.read_bytes()[:-2048])
    ended = villa("vocabulary", config, *overrides)
    assert ended.returncode == 2 and "000000.tar" in ended.stderr and "marker says" in ended.stderr
    refused = villa("ingest", config, *overrides)
    assert refused.returncode == 2 and "--force" in refused.stderr
    other = (tmp_path / "run/train/base/000001.done.json").stat().st_ino
    result_line(villa("ingest", config, *overrides, "--force"))
    assert (tmp_path / "run/train/base/000001.done.json").stat().st_ino == other, "only the damaged shard is redone"
    result_line(villa("vocabulary", config, *overrides))


def test_unreachable_ray_is_one_clear_line(tmp_path: Path) -> None:
    overrides = sets(f"run={tmp_path}/run", *TINY, "runner=ray", "ray.address=127.0.0.1:1")
    ended = villa("ingest", config_file(tmp_path), *overrides)
    assert ended.returncode == 2 and "127.0.0.1:1" in ended.stderr and "runner=local" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_two_drivers_on_one_run_refuse_each_other(tmp_path: Path) -> None:
    from shards.lock import lock

    held = lock(f"{tmp_path}/run", "use another run")
    ended = villa("ingest", config_file(tmp_path), *sets(f"run={tmp_path}/run", *TINY))
    assert ended.returncode == 2 and f"pid {os.getpid()}" in ended.stderr
    del held


@pytest.mark.parametrize("runner", ["local", "ray"])
def test_interrupt_stops_at_once_and_the_same_command_resumes(tmp_path: Path, runner: str) -> None:
    overrides = [*sets(f"run={tmp_path}/run", *TINY), "--set", f"runner={runner}", "--set", "pretrain.steps=2000"]
    command = [sys.executable, "-m", "cluster", "run", config_file(tmp_path), *overrides]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    checkpoint = tmp_path / "run/models/one_to_one/checkpoints/step-00000002/villa.json"
    wait_for(checkpoint, process)
    asked = time.monotonic()
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert time.monotonic() - asked < 15, "Ctrl-C must stop the run at once"
    assert process.returncode == 130 and out == "" and "resumes" in err and "Traceback" not in err, err[-2000:]
    assert not processes_of(process.pid), "nothing may be left running"


def wait_for(path: Path, process: subprocess.Popen, seconds: float = 120.0) -> None:
    deadline = time.monotonic() + seconds
    while not path.exists():
        assert process.poll() is None, process.communicate()[1][-3000:]
        assert time.monotonic() < deadline, f"{path} did not appear"
        time.sleep(0.02)


def processes_of(group: int) -> list[str]:
    """Command lines of the live processes of a session."""
    deadline = time.monotonic() + 10
    while True:
        found = []
        for stat in Path("/proc").glob("[0-9]*/stat"):
            try:
                fields = stat.read_text().rsplit(")", 1)[1].split()
            except OSError:
                continue
            if int(fields[3]) == group and fields[0] != "Z":
                found.append(stat.parent.name)
        if not found or time.monotonic() > deadline:
            return found
        time.sleep(0.2)


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small file system needs root")
def test_no_space_left_is_named_and_the_same_command_resumes(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=192k", "tmpfs", str(disk)], capture_output=True).returncode:
        pytest.skip("this machine does not let a test mount a tmpfs")
    try:
        overrides = sets(f"run={disk}/run", *TINY)
        full = villa("ingest", config_file(tmp_path), *overrides)
        assert full.returncode == 4 and "no space left" in full.stderr and str(disk) in full.stderr
        assert "Traceback" not in full.stderr
        for marker in disk.rglob("*.done.json"):
            assert (marker.parent / marker.name.replace(".done.json", ".tar")).exists() or marker.parent.name == "truth"
        subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True)
        result_line(villa("ingest", config_file(tmp_path), *overrides))
        undisturbed = sets(f"run={tmp_path}/other", *TINY)
        result_line(villa("ingest", config_file(tmp_path), *undisturbed))
        assert contents(disk / "run") == contents(tmp_path / "other")
    finally:
        subprocess.run(["umount", str(disk)], check=False)


def test_damaged_models_and_manifests_are_mended_by_what_the_message_says(tmp_path: Path) -> None:
    config, overrides = config_file(tmp_path), sets(f"run={tmp_path}/run", *TINY)
    stages = ("ingest", "vocabulary", "pretrain")
    for stage in stages:
        result_line(villa(stage, config, *overrides))
    model = tmp_path / "run/models/one_to_one"
    before = contents(tmp_path / "run")
    (tmp_path / "run/train/base/manifest.parquet").write_bytes(b"")
    result_line(villa("ingest", config, *overrides))  # derived, so made anew
    (model / "model.safetensors").write_bytes(b"cut")
    refused = villa("regions", config, *overrides, *sets(*ONE_TOWER, "mapping.encoder=frozen"))
    assert refused.returncode == 2 and "--force" in refused.stderr and "Traceback" not in refused.stderr
    result_line(villa("pretrain", config, *overrides, "--force"))
    (model / "done.json").write_bytes(b"")
    result_line(villa("pretrain", config, *overrides))
    (tmp_path / "run/train/base/config.json").write_bytes(b"{")
    refused = villa("ingest", config, *overrides)
    assert refused.returncode == 2 and "--force" in refused.stderr
    result_line(villa("ingest", config, *overrides, "--force"))
    assert contents(tmp_path / "run") == before


def test_a_model_left_by_a_cut_off_clear_is_not_adopted(tmp_path: Path) -> None:
    config, overrides = config_file(tmp_path), sets(f"run={tmp_path}/run", *TINY)
    for stage in ("ingest", "vocabulary", "pretrain"):
        result_line(villa(stage, config, *overrides))
    (tmp_path / "run/models/one_to_one/config.json").unlink()
    refused = villa("pretrain", config, *overrides, "--set", "pretrain.steps=8")
    assert refused.returncode == 2 and "weights of another config" in refused.stderr


def test_a_stage_refuses_what_another_config_made_upstream(tmp_path: Path) -> None:
    config, overrides = config_file(tmp_path), sets(f"run={tmp_path}/run", *TINY)
    for stage in ("ingest", "vocabulary"):
        result_line(villa(stage, config, *overrides))
    for stage, other, named in (
        ("pretrain", "docmnist.target=7", ["train/truth", "docmnist.target: 16 -> 7", "villa ingest CONFIG --force"]),
        ("regions", "seed=4", ["train/truth", "seed: 0 -> 4"]),
        ("regions", "vocabulary.attributes=[{phrase: red}]", ["train/vocabulary", "phrases:"]),
    ):
        ended = villa(stage, config, *overrides, "--set", other)
        assert ended.returncode == 2 and "Traceback" not in ended.stderr
        assert f"{stage} builds on" in ended.stderr and all(part in ended.stderr for part in named), ended.stderr
    assert not (tmp_path / "run/models").exists()
    result_line(villa("pretrain", config, *overrides))
    redone = sets("docmnist.budget={train: 900, validation: 300, test: 400}")
    result_line(villa("ingest", config, *overrides, *redone, "--force"))
    ended = villa("fit-mapping", config, *overrides, *redone)
    assert ended.returncode == 2 and "train/vocabulary" in ended.stderr and "base:" in ended.stderr, ended.stderr


def test_a_vocabulary_that_few_texts_mention(tmp_path: Path) -> None:
    """Batches in which no text mentions any attribute train on, rather than end in NaN."""
    rare = "vocabulary.attributes=[{phrase: unicorn}, {phrase: red}]"
    write_tar(
        tmp_path / "data/a.tar",
        [m for i in range(40) for m in ((f"s{i}.png", png(i)), (f"s{i}.txt", b"red" if i == 0 else b"plain"))],
    )
    overrides = sets(
        f"run={tmp_path}/run", *TINY, *ONE_TOWER, *GRID, rare, "data.source=shards", f"data.train={tmp_path}/data"
    )
    small = [part for job in ("pretrain", "train", "mapping.fit") for part in ("--set", f"{job}.batch_images=4")]
    result_line(villa("run", config_file(tmp_path), *overrides, *small))
    ended = villa("train", config_file(tmp_path), *overrides, *small, "--set", "vocabulary.min_count=2")
    assert ended.returncode == 2 and "vocabulary.min_count: 1 -> 2" in ended.stderr, ended.stderr


def test_exit_codes_of_commands_that_typer_ends(tmp_path: Path) -> None:
    helped = villa("--help")
    assert helped.returncode == 0 and "quickstart" in helped.stdout
    assert villa("run").returncode == 2
