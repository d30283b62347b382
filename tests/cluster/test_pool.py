"""The pool on a local Ray: workers that die, hang or fail, and never a shard lost or a job that waits for ever."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pool_child import UNITS
from pool_jobs import LOAD_SECONDS, Job

from shards.errors import VillaError
from villa_dist.config import RayConfig


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("pool")
    command = [sys.executable, str(Path(__file__).with_name("pool_child.py")), str(folder)]
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    ended = subprocess.run(command, capture_output=True, text=True, timeout=300, env=env)
    assert ended.returncode == 0, ended.stderr[-3000:]
    return folder, json.loads(ended.stdout.splitlines()[-1])


def scenario(found: tuple[Path, dict[str, Any]], name: str) -> tuple[Job, dict[str, Any]]:
    return Job(str(found[0] / name)), found[1][name]


def test_a_worker_killed_in_the_middle_costs_one_retry(found: tuple[Path, dict[str, Any]]) -> None:
    job, ended = scenario(found, "die")
    assert sorted(ended["told"]) == UNITS == job.committed(), "each unit is committed, and told once"
    assert ended["retries"] == [[UNITS[2], "ActorDiedError"]] and job.tries(UNITS[2]) == 2


def test_a_worker_stuck_for_ever_is_killed_at_the_deadline(found: tuple[Path, dict[str, Any]]) -> None:
    _, ended = scenario(found, "deadline")
    assert sorted(ended["told"]) == UNITS[:2]
    assert ended["retries"] == [[UNITS[0], "Deadline"]] and 3 < ended["seconds"] < 40


def test_a_straggler_is_repeated_by_an_idle_worker(found: tuple[Path, dict[str, Any]]) -> None:
    job, ended = scenario(found, "straggler")
    assert sorted(ended["told"]) == UNITS and ended["retries"] == [] and job.tries(UNITS[1]) == 2
    assert ended["seconds"] < 40, "it did not wait for the deadline"
    _, after = scenario(found, "after a straggler")
    assert sorted(after["told"]) == UNITS, "the one that hung is out of the way of the next job"


def test_tries_are_bounded_and_the_last_error_is_named_when_the_others_are_done(
    found: tuple[Path, dict[str, Any]],
) -> None:
    job, ended = scenario(found, "break")
    said = ended["raised"]
    assert f"shard {UNITS[3]} failed 3 times, last by RuntimeError: a fault of ours; `--set runner=local`" in said
    assert "7 of 8 shards are committed" in said
    assert job.tries(UNITS[3]) == 3 and job.committed() == [u for u in UNITS if u != UNITS[3]]
    assert ended["retries"] == [[UNITS[3], "RuntimeError"]] * 2


def test_what_fails_everywhere_is_not_tried_with_every_shard(found: tuple[Path, dict[str, Any]]) -> None:
    job, ended = scenario(found, "break all")
    assert "failed 3 times" in ended["raised"] and "So did" in ended["raised"] and "0 of 8" in ended["raised"]
    assert sum(job.tries(u) for u in UNITS) <= 3 * 3 + 2


def test_a_users_mistake_is_raised_at_once(found: tuple[Path, dict[str, Any]]) -> None:
    job, ended = scenario(found, "wrong")
    assert "give another" in ended["raised"] and job.tries(UNITS[3]) == 1


def test_what_a_worker_loads_first_is_no_shards_time(found: tuple[Path, dict[str, Any]]) -> None:
    job, ended = scenario(found, "slow to load")
    assert sorted(ended["told"]) == UNITS == job.committed() and ended["retries"] == []
    assert ended["seconds"] > LOAD_SECONDS


def test_the_next_shard_is_read_ahead(found: tuple[Path, dict[str, Any]]) -> None:
    job, ended = scenario(found, "undisturbed")
    ahead = {p.name.split("-")[1] for p in Path(job.folder).glob("ahead-*")}
    assert sorted(ended["told"]) == UNITS
    assert len(set(UNITS) - ahead) <= 2, "all but the first of each worker"


def test_starts_that_fail_end_the_job_only_in_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    from ray.exceptions import ActorDiedError

    from cluster.pool import START_FAILURES, ActorPool

    def get(call: str) -> str:
        if call == "lost":
            raise ActorDiedError
        return "node"

    def start(call: str) -> None:
        pool._starting[call] = (Ready(), 0.0)
        pool._started(call, Job("/nowhere"))
        for preparing in list(pool._preparing):
            pool._prepared(preparing)

    monkeypatch.setattr("ray.get", get)
    pool = ActorPool(workers=1, timeout=60.0, attempts=1)
    for _ in range(3):
        for call in ["lost"] * START_FAILURES + ["well"]:
            start(call)
    for _ in range(START_FAILURES):
        start("lost")
    with pytest.raises(VillaError, match=f"did not start {START_FAILURES + 1} times in a row.*ray status"):
        start("lost")


def test_actors_leave_cpus_free_and_share_gpus() -> None:
    from cluster.runner import pool_size

    eight = {"CPU": 9.0, "GPU": 2.0}
    assert pool_size(RayConfig(), {"CPU": 1.0}, on_device=False) == (1, 0.0)
    assert pool_size(RayConfig(), eight, on_device=False) == (8, 0.0)
    assert pool_size(RayConfig(), eight, on_device=True) == (2, 1.0)
    assert pool_size(RayConfig(gpus_per_worker=0.5), eight, on_device=True) == (4, 0.5)
    assert pool_size(RayConfig(workers=3), {"CPU": 9.0}, on_device=True) == (3, 0.0)


def test_actors_are_asked_for_before_there_is_room_for_them() -> None:
    """A head without CPUs, whose autoscaler starts nodes for what is asked for."""
    from cluster.runner import pool_size

    head = {"CPU": 0.0}
    assert pool_size(RayConfig(workers=64), head, on_device=False) == (64, 0.0)
    assert pool_size(RayConfig(workers=64), head, on_device=True) == (64, 0.0), "none is up, and auto asks for none"
    assert pool_size(RayConfig(workers=16, gpus=True), head, on_device=True) == (16, 1.0)
    assert pool_size(RayConfig(gpus=True), head, on_device=True) == (1, 1.0)
    assert pool_size(RayConfig(gpus=True), {"CPU": 9.0, "GPU": 2.0}, on_device=True) == (2, 1.0)
    assert pool_size(RayConfig(gpus=True), {"CPU": 9.0, "GPU": 2.0}, on_device=False) == (8, 0.0)
    assert pool_size(RayConfig(gpus=False), {"CPU": 9.0, "GPU": 2.0}, on_device=True) == (8, 0.0)


def test_the_first_worker_may_take_as_long_as_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    from cluster import pool

    monkeypatch.setattr(pool.ray, "kill", lambda actor: None)
    monkeypatch.setattr(pool.ray, "available_resources", lambda: {"CPU": 0.0})
    made = pool.ActorPool(1, 60.0, 2, 1.0, start_seconds=1800.0)
    made._starting["call"] = (Ready(), time.monotonic() - 1700.0)
    made._slow_starts()
    assert made._starting, "an image may still be pulled"
    made._starting["call"] = (Ready(), time.monotonic() - 1801.0)
    with pytest.raises(VillaError, match=r"within 1800 s: .*no free CPU and 1 GPU.*ray\.start_seconds higher"):
        made._slow_starts()


def request(*sets: str) -> Any:
    from villa_dist.config_file import as_given
    from villa_dist.train.jobs import TrainRequest

    return TrainRequest("villa", as_given(None, ["train.workers=4", *sets]), "")


def test_training_takes_the_devices_that_are_asked_for() -> None:
    from cluster.train import devices

    gpus, cpus = {"CPU": 8.0, "GPU": 4.0}, {"CPU": 8.0}
    assert devices(request(), gpus) and not devices(request(), cpus)
    assert devices(request("ray.gpus=true"), {}) and not devices(request("ray.gpus=false"), gpus)
    for sets, up in (((), {"CPU": 2.0, "GPU": 3.0}), (("ray.gpus=false",), {"CPU": 2.0, "GPU": 4.0})):
        with pytest.raises(VillaError, match="training villa wants 4 workers and the cluster has 2 CPUs"):
            devices(request(*sets), up)


@pytest.mark.parametrize("come", [True, False])
def test_training_asks_an_autoscaler_for_gpus_and_waits(monkeypatch: pytest.MonkeyPatch, come: bool) -> None:
    from cluster import train

    asked: list[Any] = []
    monkeypatch.setattr(train, "LOOK_SECONDS", 0.01)
    monkeypatch.setattr(train, "request_resources", lambda bundles: asked.append(bundles))
    monkeypatch.setattr(train.ray, "cluster_resources", lambda: {"GPU": 4.0 if come and asked else 1.0})
    wanted = request("ray.gpus=true", "ray.start_seconds=0.1")
    if come:
        train.await_gpus(wanted)
    else:
        with pytest.raises(VillaError, match=r"wants 4 GPUs, and 1 were up after 0 s.*ray\.start_seconds higher"):
            train.await_gpus(wanted)
    assert asked == [[{"CPU": 1, "GPU": 1}] * 4, []], "what is asked for is taken back, or its nodes would stay up"


class Ready:
    """An actor that was started before there was a use for it."""

    def __init__(self) -> None:
        self.node = SimpleNamespace(remote=object)
        self.prepare = SimpleNamespace(remote=lambda job: "prepared")


def test_actors_that_are_ready_are_taken_first_and_ended_with_the_pool(monkeypatch: pytest.MonkeyPatch) -> None:
    from cluster import pool

    killed: list[object] = []
    monkeypatch.setattr(pool.ray, "kill", lambda actor, no_restart: killed.append(actor))
    ready = [Ready(), Ready(), Ready()]
    made = pool.ActorPool(3, 60.0, 2, ready=ready)
    made._fill(2)
    assert {id(actor) for actor, _ in made._starting.values()} <= {id(actor) for actor in ready}
    assert len(made._starting) == 2
    made.close()
    assert {id(actor) for actor in killed} == {id(actor) for actor in ready}, "the third would hold a CPU for ever"


def test_actors_that_no_pool_has_taken_are_ended_before_training(monkeypatch: pytest.MonkeyPatch) -> None:
    from cluster import pool, runner

    killed: list[object] = []
    monkeypatch.setattr(runner.ray, "kill", lambda actor, no_restart: killed.append(actor))
    monkeypatch.setattr(pool, "READY", [Ready()])
    monkeypatch.setattr(runner, "train_on_ray", lambda request: killed.append(request))
    runner.RayRunner(RayConfig()).train("request")  # type: ignore[arg-type]
    assert len(killed) == 2 and killed[-1] == "request" and not pool.READY
