"""The offline stages on three Ray nodes, each in a network namespace: workers, nodes, cables and the driver go while they
run, and what is committed is what an undisturbed run commits, byte for byte, each marker written once, in bounded time.

The figures that `docs/reliability.md` quotes are printed: `make test-nodes`.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from nodes import METRICS, NAMES, Nodes, address, missing
from watched import Watched

sys.path.insert(0, str(Path(__file__).parents[1] / "integration"))
from faulty import asks
from runs import ONE_TOWER, TINY, config_file, contents, markers, sets

WHY_NOT = missing()
pytestmark = [pytest.mark.nodes, pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT)]

STAGES = ("regions", "embeddings", "pairs")
SETTINGS = [
    *(o for o in TINY if not o.startswith(("runner=", "docmnist.shard_images="))),
    *("docmnist.shard_images=8", *ONE_TOWER, "mapping.encoder=frozen"),
]
PACE = 0.4  # seconds added to every shard, so that there is a middle of a stage
PARTITION = 60.0
BOUND = 240.0  # seconds: what hangs is longer


class Offline(Watched):
    """One run of the stages regions and pairs, from a copy of the prepared folder, by a driver on the head."""

    def __init__(self, nodes: Nodes, made: Path, place: Path) -> None:
        super().__init__(place / "run", place / "stderr", BOUND)
        self.nodes, self.place, self.faults = nodes, place, place / "faults"
        shutil.copytree(made, self.run)
        self.faults.mkdir()
        (self.faults / "pace").write_text(str(PACE))

    def begin(self, *settings: str, stages: str = "regions,pairs") -> None:
        own = (f"run={self.run}", "runner=ray", f"ray.address={self.nodes.address}", "ray.workers=3")
        command = [sys.executable, str(Path(__file__).with_name("faulty_villa.py")), "stages", stages]
        command += [config_file(self.place), *sets(*SETTINGS, *own, *settings)]
        env = {**self.nodes.env, "VILLA_TEST_FAULTS": str(self.faults)}
        self.began = time.monotonic()
        with open(self.log, "ab") as log, open(self.place / "stdout", "wb") as out:
            self.driver = self.nodes.start("head", command, env=env, stdout=out, stderr=log)

    def done(self, stage: str) -> int:
        return len(list(self.run.glob(f"*/{stage}/*.done.json")))

    def at(self, stage: str, shards: int) -> None:
        """Until so many shards of a stage are committed."""

        def there() -> bool:
            assert self.driver.poll() is None, f"the driver ended: {self.tail()}"
            return self.done(stage) >= shards

        self.until(there, f"{shards} shards of {stage}")

    def tries(self, unit: str = "*") -> list[tuple[str, int]]:
        """(STAGE-SPLIT-SHARD, pid) of every try, the latest last."""
        found = sorted(self.faults.glob(f"try-{unit}-*"), key=lambda p: p.stat().st_mtime_ns)
        named = [p.name.removeprefix("try-").rpartition("-") for p in found]
        return [(name, int(pid)) for name, _, pid in named]

    def in_the_middle(self, node: str) -> None:
        """Until a worker of this node has just begun a shard."""
        known = len(self.tries())
        there = set()

        def begun() -> bool:
            there.update(self.nodes.pids(node))
            return any(pid in there for _, pid in self.tries()[known:])

        self.until(begun, f"shard begun on {node}")

    def end(self) -> tuple[int, str]:
        """The driver's exit code and stderr."""
        self.until(lambda: self.driver.poll() is not None, "end of the run")
        self.seconds = time.monotonic() - self.began
        self.watch()
        told = self.told()
        assert max(map(len, told.splitlines())) < 500
        return self.driver.returncode, told

    def end_well(self) -> str:
        code, told = self.end()
        assert code == 0, told[-3000:]
        lines = (self.place / "stdout").read_text().splitlines()
        assert len(lines) == 1 and json.loads(lines[0])["command"] == "stages"
        return told


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """A run up to fit-mapping without its regions, and the contents of one that went on to pairs, all in one process."""
    place = tmp_path_factory.mktemp("made")
    run = place / "run"
    command = [sys.executable, str(Path(__file__).with_name("faulty_villa.py")), "stages"]
    command += ["ingest,vocabulary,pretrain,regions,fit-mapping,pairs", config_file(place)]
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    ended = subprocess.run(
        [*command, *sets(*SETTINGS, "runner=local", f"run={run}")], capture_output=True, text=True, timeout=600, env=env
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
    whole = contents(run)
    assert sum(name.startswith("train/base/") and name.endswith(".tar") for name in whole) >= 8
    for stage in STAGES:
        for folder in run.glob(f"*/{stage}"):
            shutil.rmtree(folder)
    return run, whole


@pytest.fixture(scope="module")
def cluster() -> Iterator[Nodes]:
    with Nodes() as nodes:
        yield nodes


@pytest.fixture
def offline(cluster: Nodes, made: tuple[Path, dict[str, str]], tmp_path: Path) -> Iterator[Offline]:
    cluster.mend()
    one = Offline(cluster, made[0], tmp_path)
    yield one
    one.driver.kill()
    one.driver.wait()


@pytest.fixture(scope="module")
def undisturbed(cluster: Nodes, made: tuple[Path, dict[str, str]], tmp_path_factory: pytest.TempPathFactory) -> Offline:
    one = Offline(cluster, made[0], tmp_path_factory.mktemp("undisturbed"))
    one.begin()
    one.end_well()
    assert contents(one.run) == made[1], "three nodes write what one process writes"
    assert len({pid for _, pid in one.tries()}) >= 3
    print(f"\nundisturbed: {one.seconds:.1f} s, {len(one.tries())} shards")
    return one


def same(one: Offline, undisturbed: Offline, name: str) -> None:
    assert contents(one.run) == contents(undisturbed.run)
    assert markers(one.run).keys() == markers(undisturbed.run).keys()
    print(f"\n{name}: {one.seconds - undisturbed.seconds:+.1f} s ({one.seconds:.1f} s)")


def scraped(url: str) -> str:
    with urllib.request.urlopen(url, timeout=5) as answer:
        return answer.read().decode()


def counted(cluster: Nodes, name: str, label: str) -> dict[str, float]:
    """A counter by one of its labels, over the Prometheus endpoints of all nodes."""
    found: dict[str, float] = {}
    for node in NAMES:
        text = cluster.inside(node, partial(scraped, f"http://{address(node)}:{METRICS}/metrics"))
        for labels, value in re.findall(rf"^ray_villa_{name}\{{(.*)\}} (\S+)$", text, re.M):
            of = re.search(rf'{label}="(\w+)"', labels)
            assert of
            found[of[1]] = found.get(of[1], 0) + float(value)
    return found


def becomes(cluster: Nodes, name: str, label: str, wanted: dict[str, float]) -> None:
    """What a process counted last is exported as it ends."""
    ends = time.monotonic() + 20
    while counted(cluster, name, label) != wanted and time.monotonic() < ends:
        time.sleep(0.5)
    assert counted(cluster, name, label) == wanted


def test_counters_of_all_nodes_add_up_to_the_markers(cluster: Nodes, undisturbed: Offline) -> None:
    made = {
        stage: [json.loads(p.read_text()) for p in undisturbed.run.glob(f"*/{stage}/*.done.json")]
        for stage in ("regions", "pairs")
    }
    becomes(cluster, "shards_total", "stage", {stage: len(m) for stage, m in made.items()})
    becomes(cluster, "images_total", "stage", {stage: sum(x["samples"] for x in m) for stage, m in made.items()})
    for count in ("regions", "decoded"):
        by_stage = {stage: sum(x["counts"].get(count, 0) for x in m) for stage, m in made.items()}
        becomes(cluster, f"{count}_total", "stage", {stage: n for stage, n in by_stage.items() if n})
    becomes(cluster, "pairs_total", "stage", {"pairs": sum(x["counts"]["pairs"] for x in made["pairs"])})
    seconds = counted(cluster, "seconds_total", "part")
    for part in ("read", "embed", "write"):
        spent = sum(x["seconds"].get(part, 0.0) for m in made.values() for x in m)
        assert seconds[part] == pytest.approx(spent, rel=1e-3)


def test_workers_killed_several_times(offline: Offline, undisturbed: Offline) -> None:
    before = counted(offline.nodes, "retries_total", "reason")
    offline.begin()
    for stage, shards in (("regions", 2), ("regions", 9), ("pairs", 2), ("pairs", 9)):
        offline.at(stage, shards)
        os.kill(offline.tries()[-1][1], signal.SIGKILL)
    told = offline.end_well()
    died, cut_off = told.count(": its worker died"), told.count(": its worker cannot be reached")
    assert 3 <= died + cut_off <= 4 + cut_off, "one may have been killed right after its commit"
    reasons = {"ActorDiedError": died, "ActorUnavailableError": cut_off}
    wanted = {kind: before.get(kind, 0) + n for kind, n in reasons.items()}
    becomes(offline.nodes, "retries_total", "reason", {kind: n for kind, n in wanted.items() if n})
    same(offline, undisturbed, "workers killed 4 times")


def test_a_raylet_killed_in_mid_stage(offline: Offline, undisturbed: Offline) -> None:
    offline.begin()
    offline.at("regions", 3)
    offline.in_the_middle("two")
    offline.nodes.kill_raylet("two")
    told = offline.end_well()
    assert "goes back to the queue" in told
    same(offline, undisturbed, "a raylet killed")


def test_a_partition_that_heals(offline: Offline, undisturbed: Offline) -> None:
    """The stage cannot end before: every try at one shard waits for the end of the partition."""
    asks(offline.faults, "gate", "regions-train-000001", times=9)
    offline.begin()
    offline.at("regions", 3)
    offline.in_the_middle("one")
    offline.nodes.cut("one")
    cut = time.monotonic()
    offline.until(lambda: time.monotonic() - cut > PARTITION, "end of the partition")
    offline.nodes.join("one")
    healed = time.monotonic()
    (offline.faults / "open").touch()
    told = offline.end_well()
    noticed = "goes back to the queue" in told  # depends on Ray's own timeouts, and on how busy the machine is
    print(f"\nended {time.monotonic() - healed:.1f} s after the partition; noticed before it healed: {noticed}")
    same(offline, undisturbed, "a partition of 60 s")


def test_a_partition_that_never_heals(offline: Offline, undisturbed: Offline) -> None:
    offline.begin()
    offline.at("regions", 3)
    offline.in_the_middle("one")
    offline.nodes.cut("one")
    offline.end_well()
    same(offline, undisturbed, "a partition for good")


def test_a_killed_driver_is_run_again(offline: Offline, undisturbed: Offline) -> None:
    spent = 0.0
    for stage in ("regions", "pairs"):
        offline.begin()
        offline.at(stage, 4)
        offline.driver.kill()
        offline.driver.wait()
        spent += time.monotonic() - offline.began
        offline.watch()
    offline.begin()
    offline.end_well()
    offline.seconds += spent
    same(offline, undisturbed, "the driver killed twice")
    assert not list(offline.run.rglob(".attempts/*")), "orphaned attempts are collected"


def test_a_worker_stuck_for_ever(offline: Offline, undisturbed: Offline) -> None:
    asks(offline.faults, "stuck", "pairs-train-000002")
    offline.begin("ray.shard_timeout_seconds=4")  # before an idle worker would repeat it
    told = offline.end_well()
    assert "no result after 4 s" in told and "shard 000002 goes back to the queue" in told
    tried = [pid for _, pid in offline.tries("pairs-train-000002")]
    assert len(tried) == 2 and not Path(f"/proc/{tried[0]}").exists(), "the one that was stuck is ended"
    same(offline, undisturbed, "a worker stuck for ever")


def test_a_worker_out_of_memory_once(offline: Offline, undisturbed: Offline) -> None:
    asks(offline.faults, "memory", "regions-train-000002")
    offline.begin()
    told = offline.end_well()
    assert "shard 000002 goes back to the queue" in told and "MemoryError" in told
    assert len(offline.tries("regions-train-000002")) == 2
    same(offline, undisturbed, "out of memory once")


def test_a_shard_that_is_always_out_of_memory(offline: Offline, undisturbed: Offline) -> None:
    asks(offline.faults, "memory", "regions-train-000002", times=9)
    offline.begin("ray.attempts=2")
    code, told = offline.end()
    assert code == 2 and len(offline.tries("regions-train-000002")) == 2
    said = told.strip().splitlines()[-1]
    assert said.startswith("error: ") and "shard 000002" in said and "MemoryError" in said
    assert "ray.workers" in said and "regions.batch_images" in said, "the remedy"
    every = len(list(offline.run.glob("train/base/*.done.json")))
    assert len(list(offline.run.glob("train/regions/*.done.json"))) == every - 1, "the others are committed"
    (offline.faults / "pace").write_text("0")
    for asked in offline.faults.glob("memory-*"):
        asked.unlink()
    offline.begin()
    offline.end_well()
    same(offline, undisturbed, "out of memory every time, then the same command with more of it")
