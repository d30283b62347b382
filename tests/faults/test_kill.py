"""SIGKILL at every stage, the same command again: the same bytes, and no committed shard done twice."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "integration"))
from runs import TINY, config_file, contents, markers, result_line, sets, villa

# A file whose appearance says that the run is inside this stage.
MOMENTS = {
    "ingest": "train/base/000001.done.json",
    "vocabulary": "train/vocabulary/000000.done.json",
    "pretrain": "models/one_to_one/checkpoints/step-00000002/villa.json",
    "saving": "models/one_to_one/checkpoints/step-00000004",
    "regions": "train/regions/000001.done.json",
    "fit-mapping": "models/mapping/checkpoints/step-00000004/villa.json",
    "pairs": "train/pairs/000001.done.json",
    "train": "models/villa/checkpoints/step-00000002/villa.json",
    "ground truth": "models/ground_truth/checkpoints/step-00000004/villa.json",
    "evaluate": "test/evaluate-villa/000000.done.json",
    "report": "results.json",
}


def start_and_kill_at(path: Path, command: list[str], how: signal.Signals = signal.SIGKILL) -> bool:
    """Start a run and send its whole process group a signal once `path` exists. False when the run ended before that."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True)
    deadline = time.monotonic() + 240
    while not path.exists():
        if process.poll() is not None:
            assert process.returncode == 0, process.stderr.read().decode()[-3000:] if process.stderr else ""
            return False
        assert time.monotonic() < deadline, f"{path} did not appear"
        time.sleep(0.002)
    os.killpg(process.pid, how)
    _, said = process.communicate(timeout=60)
    if how == signal.SIGTERM and process.returncode:  # it may have been too late
        assert process.returncode == 130 and b"the same command resumes" in said and b"Traceback" not in said, said
    return True


def chain(tmp_path: Path, runner: str, moments: list[str], how: signal.Signals = signal.SIGKILL) -> None:
    """One run killed at each moment in turn, then finished; another left alone."""
    config = config_file(tmp_path)
    tiny = [o for o in TINY if not o.startswith("runner=")] + [f"runner={runner}"]
    killed, alone = tmp_path / "killed", tmp_path / "alone"
    command = [sys.executable, "-m", "cluster", "run", config, *sets(f"run={killed}", *tiny)]
    committed: dict[str, tuple[int, int]] = {}
    struck = []
    for moment in moments:
        if start_and_kill_at(killed / MOMENTS[moment], command, how):
            struck.append(moment)
        now = markers(killed)
        assert committed.items() <= now.items(), f"a committed shard was done again before {moment}"
        committed = now
    assert len(struck) >= len(moments) - 1, f"killed only at {struck}"
    finished = result_line(villa("run", config, *sets(f"run={killed}", *tiny)))
    assert committed.items() <= markers(killed).items()
    undisturbed = result_line(villa("run", config, *sets(f"run={alone}", *tiny)))
    assert finished["metrics"] == undisturbed["metrics"]
    assert contents(killed) == contents(alone)
    assert not list(killed.rglob(".attempts")), "orphaned attempts are collected"
    steps = [json.loads(line)["step"] for line in (killed / "models/villa/metrics.jsonl").read_text().splitlines()]
    assert steps == sorted(set(steps)), "each step is logged once"


@pytest.mark.slow
def test_killed_at_every_stage(tmp_path: Path) -> None:
    chain(tmp_path, "local", list(MOMENTS))


@pytest.mark.slow
def test_asked_to_stop_in_every_data_stage(tmp_path: Path) -> None:
    """By SIGTERM; tests/train does so to training."""
    chain(tmp_path, "local", ["ingest", "regions", "pairs", "evaluate"], signal.SIGTERM)


@pytest.mark.slow
def test_killed_on_ray(tmp_path: Path) -> None:
    chain(tmp_path, "ray", ["ingest", "pretrain", "regions", "fit-mapping", "pairs", "train"])


def test_killed_twice_in_the_cheap_stages(tmp_path: Path) -> None:
    """The default suite's share of the above: ingest and the middle of pretrain."""
    config, run = config_file(tmp_path), tmp_path / "run"
    overrides = sets(f"run={run}", *TINY)
    for stage, moment in (("ingest", "ingest"), ("vocabulary", "vocabulary"), ("pretrain", "pretrain")):
        command = [sys.executable, "-m", "cluster", stage, config, *overrides]
        start_and_kill_at(run / MOMENTS[moment], command)
        before = markers(run)
        result_line(villa(stage, config, *overrides))
        assert before.items() <= markers(run).items()
    alone = tmp_path / "alone"
    for stage in ("ingest", "vocabulary", "pretrain"):
        result_line(villa(stage, config, *sets(f"run={alone}", *TINY)))
    assert contents(run) == contents(alone)


@pytest.mark.slow
def test_a_torn_newest_checkpoint_falls_back_and_ends_the_same(tmp_path: Path) -> None:
    config, run, alone = config_file(tmp_path), tmp_path / "run", tmp_path / "alone"
    overrides = sets(f"run={run}", *TINY)
    for stage in ("ingest", "vocabulary"):
        result_line(villa(stage, config, *overrides))
        result_line(villa(stage, config, *sets(f"run={alone}", *TINY)))
    command = [sys.executable, "-m", "cluster", "pretrain", config, *overrides]
    assert start_and_kill_at(run / MOMENTS["pretrain"].replace("step-00000002", "step-00000004"), command)
    newest = run / "models/one_to_one/checkpoints/step-00000004"
    part = next(newest.rglob("*optim_states.pt"))
    part.write_bytes(part.read_bytes()[:-100])
    resumed = villa("pretrain", config, *overrides)
    result_line(resumed)
    result_line(villa("pretrain", config, *sets(f"run={alone}", *TINY)))
    assert contents(run) == contents(alone)
