"""`villa submit` of the quickstart's pipeline to three Ray nodes in network namespaces, its data on S3, while nodes, cables,
the driver, the head and the storage go: in the end the metrics and all files are those of an undisturbed run.

A client and the S3 server have a namespace of their own, `outside`. What strikes a stage is sure to strike in it: a worker
of the node is stopped first, with a shard (or a step) in its hands, so the stage cannot end before. One test a fault:

    python -m pytest -s -m nodes tests/faults/test_submitted.py -k 'raylet and vocabulary' --timeout 900
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from faults.proxy import Fault, Proxy
from faults.s3 import environment, serve
from nodes import NAMES, OUTSIDE, Nodes, address, command_line, missing
from watched import Watched

sys.path.insert(0, str(Path(__file__).parents[1] / "integration"))
sys.path.insert(0, str(Path(__file__).parents[1] / "villa_dist"))
from detection_run import COLOURS, write_data
from runs import ONE_TOWER, TINY, contents, sets

WHY_NOT = missing()
pytestmark = [pytest.mark.nodes, pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT)]

BUCKET, SHARDS = "data", 8
CONFIG = "configs/quickstart.yaml"
OWN = (
    *(o for o in TINY if not o.startswith(("runner=", "docmnist."))),
    *ONE_TOWER,
    f"data={{source: shards, train: s3://{BUCKET}/train, test: s3://{BUCKET}/test}}",
    f"vocabulary.attributes=[{', '.join(f'{{phrase: {c}, group: colour}}' for c in COLOURS)}]",
    *(f"{job}.{what}" for job in ("pretrain", "train", "mapping.fit") for what in ("steps=20", "workers=2")),
    "evaluate.detection={bootstrap: 20}",
    "ray.workers=3",
)
BOUND = 420.0  # seconds: what hangs is longer
PARTITION = 60.0
HELD = 1.0  # seconds that a stopped worker is left with what it was given
KNOWN = 1.0  # seconds for which a list of processes is good
STRUCK = ("two", "one")
SHARD, RANK = "ray::ShardWorker", "ray::RayTrainWorker"
# what says that a stage has begun, and what that it is done; the test split's, for which all workers are up
BEGUN = {
    "ingest": "test/base",
    "vocabulary": "train/vocabulary",
    "regions": "test/regions",
    "pairs": "test/pairs",
    "evaluate": "test/detect-villa",
}
JOBS = {"pretrain": "one_to_one", "fit-mapping": "mapping", "train": "villa"}


class Submitted(Watched):
    """One run of the whole pipeline, submitted from outside."""

    def __init__(self, nodes: Nodes, place: Path) -> None:
        super().__init__(place / "run", place / "stderr", BOUND)
        self.nodes, self.place = nodes, place
        self._known: dict[str, dict[int, str]] = {}
        self._looked = 0.0

    def begin(self) -> None:
        given = ["submit", CONFIG, "--address", self.nodes.jobs_url, *sets(f"run={self.run}", *OWN)]
        self.began = time.monotonic()
        with open(self.log, "wb") as log, open(self.place / "stdout", "wb") as out:
            command = [sys.executable, "-m", "cluster", *given]
            self.client = self.nodes.start(OUTSIDE, command, stdout=out, stderr=log)

    def reached(self, path: str) -> None:
        """Until a file of the run is there."""

        def there() -> bool:
            assert self.client.poll() is None, f"the submission ended before {path}: {self.tail()}"
            self._look()
            return (self.run / path).exists()

        self.until(there, path, pause=0.005)

    def strike(self, stage: str) -> tuple[str, list[int]]:
        """Stop what works on `stage` on a node that is not the head. Returns the node and what was stopped."""
        title, begun, done = SHARD, f"{BEGUN.get(stage)}/config.json", f"{BEGUN.get(stage)}/manifest.parquet"
        if stage in JOBS:
            job = f"models/{JOBS[stage]}"
            title, begun, done = RANK, f"{job}/checkpoints/step-00000002/villa.json", f"{job}/done.json"
        self.reached(begun)
        node, stopped = self._at_a_shard() if title == SHARD else self._stop_one(title)
        time.sleep(HELD)
        assert not (self.run / done).exists(), f"{stage} was over before it could be struck"
        return node, stopped

    def _at_a_shard(self) -> tuple[str, list[int]]:
        """Stop a worker that has a shard in its hands. The others are held up until then, so that they leave it some."""
        node, *_ = STRUCK
        held = _stopped(pid for other in NAMES if other != node for pid in self._workers(other))
        caught: list[int] = []

        def at_it() -> bool:
            if not self._workers(node):
                self._look()
            for pid in _stopped(self._workers(node)):
                if f"{SHARD}.process" in command_line(pid):
                    caught.append(pid)
                else:
                    go_on([pid])
            return bool(caught)

        self.until(at_it, f"worker at a shard on {node}", pause=0.005)
        go_on(held)
        return node, caught

    def _workers(self, node: str) -> list[int]:
        return [pid for pid, called in self._known.get(node, {}).items() if SHARD in called]

    def _stop_one(self, title: str) -> tuple[str, list[int]]:
        for node in STRUCK:
            known = [pid for pid, called in self._known.get(node, {}).items() if title in called]
            if stopped := _stopped(known or self.nodes.called(node, title)):
                return node, stopped
        return "", []

    def _look(self) -> None:
        """What runs where, so that no time is lost with it when it has to be stopped."""
        if time.monotonic() - self._looked > KNOWN:
            self._looked = time.monotonic()
            self._known = {n: {pid: command_line(pid) for pid in self.nodes.pids(n)} for n in NAMES}

    def hears(self, words: str) -> None:
        """Until the submission has passed them on."""
        self.until(lambda: words in self.log.read_text(), f"{words!r}")

    def driver(self) -> int:
        """The pid of the job's driver."""
        found = self.nodes.called("head", "-m cluster.probe run " + CONFIG)
        (one,) = [pid for pid in found if command_line(pid).split()[0].endswith("python")]
        return one

    def ended(self) -> tuple[int, str, dict[str, Any]]:
        """The submission's exit code, stderr and result line, where it has one."""
        self.until(lambda: self.client.poll() is not None, "end of the submission")
        self.seconds = time.monotonic() - self.began
        self.watch()
        lines = (self.place / "stdout").read_text().splitlines()
        assert len(lines) <= 1
        return self.client.returncode, self.told(), json.loads(lines[0]) if lines else {}

    def ended_well(self) -> str:
        code, told, line = self.ended()
        assert code == 0 and line["complete"] and line["missing"] == [], (line, told[-3000:])
        return told


def _signalled(pid: int, what: signal.Signals) -> bool:
    try:
        os.kill(pid, what)
    except ProcessLookupError:
        return False
    return True


def _stopped(pids: Iterable[int]) -> list[int]:
    return [pid for pid in pids if _signalled(pid, signal.SIGSTOP)]


def go_on(pids: list[int]) -> None:
    for pid in pids:
        _signalled(pid, signal.SIGCONT)


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Nodes, Proxy]]:
    """A cluster with a job server, and the proxy of the S3 server that holds the data."""
    data = tmp_path_factory.mktemp("data")
    write_data(data, SHARDS)
    with Nodes(jobs=True, up=False, GLOO_SOCKET_IFNAME="eth0") as nodes:
        server_at, client, server = nodes.inside(OUTSIDE, partial(serve, address(OUTSIDE)))
        proxy = nodes.inside(OUTSIDE, lambda: Proxy(server_at, address(OUTSIDE)).start())
        nodes.inside(OUTSIDE, partial(fill, client, data))
        nodes.env.update(environment(proxy.url))
        nodes.mend()
        yield nodes, proxy
        proxy.stop()
        nodes.inside(OUTSIDE, server.stop)


def fill(client: Any, data: Path) -> None:
    client.create_bucket(Bucket=BUCKET)
    for path in sorted(data.glob("*/*.tar")):
        client.put_object(Bucket=BUCKET, Key=str(path.relative_to(data)), Body=path.read_bytes())


@pytest.fixture
def submitted(three: tuple[Nodes, Proxy], tmp_path: Path) -> Iterator[Submitted]:
    nodes, proxy = three
    proxy.clear()
    nodes.mend()
    one = Submitted(nodes, tmp_path)
    yield one
    one.client.kill()
    one.client.wait()
    for pid in nodes.called("head", "cluster.probe run"):  # of a test that failed
        _signalled(pid, signal.SIGKILL)


@pytest.fixture(scope="module")
def undisturbed(three: tuple[Nodes, Proxy], tmp_path_factory: pytest.TempPathFactory) -> Submitted:
    one = Submitted(three[0], tmp_path_factory.mktemp("undisturbed"))
    one.begin()
    one.reached("train/base/000000.done.json")
    first = time.monotonic() - one.began
    one.ended_well()
    print(f"\nundisturbed: {one.seconds:.1f} s, the first shard after {first:.1f} s")
    return one


def same(one: Submitted, undisturbed: Submitted, name: str) -> None:
    """Shards, indexes, sidecars, manifests, weights and metrics, byte for byte."""
    theirs, mine = contents(undisturbed.run), contents(one.run)
    assert mine == theirs and "results.json" in theirs and len(theirs) > 100
    assert (one.run / "report.html").is_file()
    assert one.seen.keys() == undisturbed.seen.keys()
    print(f"\n{name}: {one.seconds - undisturbed.seconds:+.1f} s ({one.seconds:.1f} s)")


@pytest.mark.parametrize("stage", ["ingest", "vocabulary", "regions", "fit-mapping", "pairs", "train", "evaluate"])
def test_a_raylet_killed(submitted: Submitted, undisturbed: Submitted, stage: str) -> None:
    """What the node's worker had in its hands is with another by the time it goes on, and finds its raylet dead."""
    submitted.begin()
    node, stopped = submitted.strike(stage)
    submitted.nodes.kill_raylet(node)
    submitted.hears("workers of training" if stage in JOBS else "goes back to the queue")
    go_on(stopped)
    submitted.ended_well()
    same(submitted, undisturbed, f"a raylet killed in {stage}")


@pytest.mark.parametrize("stage", ["ingest", "train"])
def test_a_node_cut_off_for_a_minute(submitted: Submitted, undisturbed: Submitted, stage: str) -> None:
    """In ingest from the storage, too."""
    submitted.begin()
    node, stopped = submitted.strike(stage)
    submitted.nodes.cut(node)
    go_on(stopped)
    cut = time.monotonic()
    submitted.until(lambda: time.monotonic() - cut > PARTITION, "end of the partition")
    submitted.nodes.join(node)
    submitted.ended_well()
    same(submitted, undisturbed, f"cut off for {PARTITION:.0f} s in {stage}")


def test_the_driver_killed_and_submitted_again(submitted: Submitted, undisturbed: Submitted) -> None:
    spent = 0.0
    for stage in ("regions", "train"):
        submitted.begin()
        _, stopped = submitted.strike(stage)
        _signalled(submitted.driver(), signal.SIGKILL)
        go_on(stopped)
        code, told, line = submitted.ended()
        assert code != 0 and line["status"] == "FAILED" and line["missing"], told[-3000:]
        assert "the same command goes on from what is committed" in told
        spent += submitted.seconds
    submitted.begin()
    submitted.ended_well()
    submitted.seconds += spent
    same(submitted, undisturbed, "the driver killed twice")


def test_the_head_lost_and_submitted_to_a_new_cluster(submitted: Submitted, undisturbed: Submitted) -> None:
    submitted.begin()
    _, stopped = submitted.strike("fit-mapping")
    submitted.nodes.lose("head")
    go_on(stopped)
    submitted.nodes.mend()
    code, told, line = submitted.ended()
    assert code == 1 and not line and "error: the cluster that answers now does not know job" in told, told[-3000:]
    spent = submitted.seconds
    submitted.begin()
    submitted.ended_well()
    submitted.seconds += spent
    same(submitted, undisturbed, "the head lost")


def test_a_storage_that_fails_now_and_then(
    submitted: Submitted, undisturbed: Submitted, three: tuple[Nodes, Proxy]
) -> None:
    proxy = three[1]
    proxy.faults += [
        Fault("status", "GET", "tar", times=3),
        Fault("cut_response", "GET", "tar", times=3, keep=2000),
        Fault("lose_response", "GET", "tar", times=3),
        Fault("delay", "GET", "tar", times=2, seconds=2.0),
    ]
    submitted.begin()
    submitted.ended_well()
    assert all(fault.met >= fault.times for fault in proxy.faults)
    same(submitted, undisturbed, "503s, cuts, resets and delays of the storage")
