"""What markers say of a run while it goes on: rates, time left, retries, refusals, and what holds it up."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from shards import manifest
from shards.collect import commit_rows
from shards.commit import StageFolder
from villa_dist.profile import binding, worker_seconds
from villa_dist.stages.progress import StageProgress
from villa_dist.status import lines, recent, status

START = 1_000_000.0
KEYS = [f"k{n}" for n in range(100)]


def commit(run: Path, stage: str, shard: int, at: float, seconds: dict[str, float] | None = None) -> None:
    """A shard of 100 images and 900 regions, committed `at` seconds after the start."""
    name = f"{shard:06d}"
    with StageFolder(f"{run}/train", stage).attempt(name) as attempt:
        attempt.write(f"{name}.parquet", b"rows")
        commit_rows(
            attempt,
            name,
            stage=stage,
            fingerprint="a" * 16,
            keys=KEYS,
            input_digest="x",
            seconds=seconds or {},
            counts={"regions": 900},
        )
    os.utime(run / "train" / stage / f"{name}.done.json", (START + at, START + at))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Ten shards, six of which have regions: one each 20 s."""
    for shard in range(10):
        commit(tmp_path, "base", shard, 0.0)
    manifest.write(StageFolder(f"{tmp_path}/train", "base"), [f"{n:06d}" for n in range(10)])
    for shard in range(6):
        commit(tmp_path, "regions", shard, 20.0 * (shard + 1), {"wait": 1.0, "decode": 3.0, "embed": 7.0, "write": 2.0})
    return tmp_path


def test_rates_and_time_left_of_a_stage_that_runs(run: Path) -> None:
    found = status(str(run), now=START + 125.0)["stages"]["train/regions"]
    assert (found["shards"], found["of"]) == (6, {"shards": 10, "samples": 1000})
    assert found["images_per_second"] == 5.0 and found["regions_per_second"] == 45.0
    assert found["seconds_left"] == 400 / 5.0 - 5.0 and found["seconds_since_commit"] == 5.0
    assert not found["complete"] and found["binding"] == {"resource": "device, embedding", "share": 0.7}


def test_a_finished_stage_has_no_time_left(run: Path) -> None:
    found = status(str(run))["stages"]["train/base"]
    assert found["complete"] and "seconds_left" not in found


def test_a_job_taken_up_after_a_night_is_timed_by_itself(run: Path) -> None:
    night = 40_000.0
    commit(run, "regions", 6, night)
    commit(run, "regions", 7, night + 10)
    found = status(str(run), now=START + night + 10)["stages"]["train/regions"]
    assert found["images_per_second"] == 10.0 and found["seconds_left"] == 20.0


def test_retries_are_kept_beside_the_markers_and_told(run: Path) -> None:
    folder = StageFolder(f"{run}/train", "regions")
    progress = StageProgress("regions train", folder, 10, 6)
    for reason in ("Deadline", "ActorDiedError", "Deadline"):
        progress.again("000006", reason)
    commit(run, "regions", 6, 140.0)
    progress.done("000006")
    assert "retried 3" in progress.note() and "images/s" in progress.note() and "regions/s" in progress.note()
    assert progress.progress.done == 7
    found = status(str(run), now=START + 140)
    assert found["stages"]["train/regions"]["retried"] == {"ActorDiedError": 1, "Deadline": 2}
    told = next(line for line in lines(found) if line.startswith("train/regions"))
    assert "7/10 shards" in told and "retried 3 (ActorDiedError 1, Deadline 2)" in told and "left" in told
    (run / "train/regions/retried.json").write_text("{")
    assert status(str(run))["stages"]["train/regions"]["retried"] == {}


@pytest.mark.parametrize(
    ("times", "kept"),
    [
        ({"a": 0.0}, ["a"]),
        ({"a": 5.0, "b": 1.0, "c": 3.0}, ["b", "c", "a"]),
        ({"a": 0.0, "b": 10.0, "c": 90_000.0, "d": 90_010.0}, ["c", "d"]),
        ({"a": 0.0, "b": 10.0, "c": 90_000.0}, ["a", "b", "c"]),  # what came of the new job is not known yet
        ({"a": 1.0, "b": 1.0}, ["a", "b"]),
    ],
)
def test_the_rate_is_of_the_commits_since_the_last_pause(times: dict[str, float], kept: list[str]) -> None:
    assert recent(times) == kept


@pytest.mark.parametrize(
    ("seconds", "resource", "share", "total"),
    [
        (
            {"embed": 6.0, "map": 2.0, "wait": 1.0, "write": 1.0, "read": 3.0, "decode": 9.0},
            "device, embedding",
            0.6,
            10,
        ),
        ({"embed": 2.0, "wait": 8.0, "read": 3.0, "decode": 9.0}, "CPU, decoding images", 0.8, 10),
        ({"embed": 2.0, "wait": 8.0, "read": 13.0, "decode": 9.0}, "storage, reading", 0.8, 10),
        ({"read": 1.0, "decode": 3.0}, "CPU, decoding images", 0.75, 4),  # in turn, nothing beside
        ({"other": 1.0}, "other", 1.0, 1),
    ],
)
def test_the_binding_resource_of_a_profile(
    seconds: dict[str, float], resource: str, share: float, total: float
) -> None:
    assert binding(seconds) == (resource, share) and worker_seconds(seconds) == total


def test_nothing_timed_binds_nothing() -> None:
    assert binding({}) is None and binding({"embed": 0.0}) is None
