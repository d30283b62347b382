"""What the driver costs: CPU a shard of the real pool, of the queue and of the progress; efficiency on 1, 2 and 3 nodes.

    python -m benchmarks.driver_load queue               LeaseQueue at 1,000 to 1,000,000 shards: CPU a shard, memory
    python -m benchmarks.driver_load pool 1 2 4          the real pool on a local Ray, so many actors that only sleep
    python -m benchmarks.driver_load many 10 100 1000    the real driver's loop with so many calls out at a time
    python -m benchmarks.driver_load progress            reading a marker and telling the progress, a shard
    python -m benchmarks.driver_load nodes 1 2 3         the pool on three Ray nodes in network namespaces, as root
    … pool 3 --dies 4 | --slow 4.0                       with that many workers killed; with one slow worker

Prints one JSON object a measurement. Units sleep, so cores do not limit; efficiency is units x seconds by workers x clock,
from a pool whose workers are up. CPU is that of the driver's process, all its threads.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

from benchmarks.sleeping import SleepJob, names
from cluster.queue import LeaseQueue

ASYNC_HOSTS = 2  # processes that hold the calls of `many`


def tell(**told: Any) -> None:
    rounded = {k: round(v, 4) if isinstance(v, float) else v for k, v in told.items()}
    print(json.dumps({**rounded, "load": round(os.getloadavg()[0], 1)}), flush=True)


def resident() -> float:
    """MiB of this process now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def queue(workers: int = 1000, events: int = 20_000) -> None:
    """CPU of done + lease + hint, what a shard costs the queue; of one idle worker that looks for a straggler at the end."""
    for shards in (1_000, 30_000, 1_000_000):
        before, given = resident(), names(shards)
        listed, made = resident(), LeaseQueue(given, attempts=4)
        built, now = resident(), 0.0
        some = min(workers, shards // 2)
        for worker in range(some):
            made.lease(worker, now)
            made.hint(worker)
        steps, cpu = min(events, shards - 2 * some), time.process_time()
        for at in range(steps):
            now += 1.0
            made.done(at % some, now)
            made.lease(at % some, now)
            made.hint(at % some)
        a_shard = (time.process_time() - cpu) / max(steps, 1)
        while len(made.left) > some // 2:  # half of the workers are out with the last shards
            worker = next(w for w in made.leases)
            now += 1.0
            made.done(worker, now)
            made.lease(worker, now)
        full, cpu = resident(), time.process_time()
        for _ in range(100):
            made._straggler(now)
        tell(
            shards=shards,
            workers=some,
            us_a_shard=a_shard * 1e6,
            us_a_look_for_stragglers=(time.process_time() - cpu) / 100 * 1e6,
            names_MiB=listed - before,
            queue_MiB=built - listed,
            peak_of_queue_MiB=max(full, built) - listed,
        )


def measured(pool: Any, job: SleepJob, units: int, warm: bool = True) -> dict[str, Any]:
    """One run of the pool. warm: let the workers start, and begin when all of them are up."""
    warming = Path(job.folder, "warm")
    warming.mkdir(parents=True, exist_ok=True)
    if warm:
        began = time.monotonic()
        while len(pool._node) < pool.workers:
            pool.run(SleepJob(str(warming), 0.2), names(2 * pool.workers), lambda unit: None)
            for file in warming.iterdir():
                file.unlink()
            assert time.monotonic() - began < 120, f"{len(pool._node)} of {pool.workers} workers are up"
    told: list[float] = []
    retried: list[str] = []
    clock, wall, cpu = time.monotonic(), time.time(), time.process_time()
    pool.run(job, names(units), lambda unit: told.append(time.monotonic()), lambda unit, why: retried.append(why))
    seconds, cpu = time.monotonic() - clock, time.process_time() - cpu
    first = min(float(p.read_text()) for p in Path(job.folder).glob("*.try")) - wall
    return {
        "workers": pool.workers,
        "units": units,
        "unit_s": job.seconds,
        "seconds": seconds,
        "first_unit_after_s": first,
        "efficiency": units * job.seconds / pool.workers / seconds,
        "driver_CPU_ms_a_shard": cpu / units * 1e3,
        "driver_CPU_share": cpu / seconds,
        "retried": retried,
    }


def pool(workers: int, units: int, seconds: float, dies: int = 0, slow: float = 1.0, cold: bool = False) -> None:
    from cluster.session import RaySession
    from villa_dist.config import RayConfig

    with mock.patch("cluster.session.usable_cpus", return_value=workers), RaySession(RayConfig()):
        in_pool(workers, units, seconds, dies, slow, cold)


def in_pool(workers: int, units: int, seconds: float, dies: int = 0, slow: float = 1.0, cold: bool = False) -> None:
    """In a Ray that is up. dies: units spread evenly whose first try kills the worker."""
    from cluster.pool import ActorPool

    every = units // (dies + 1)
    victims = tuple(names(units)[every * (n + 1)] for n in range(dies))
    with tempfile.TemporaryDirectory() as folder:
        made = ActorPool(workers, timeout=600.0, attempts=4)
        found = measured(made, SleepJob(folder, seconds, victims, slow), units, warm=not cold)
        made.close()
    tell(**found, dies=dies, slow=slow, cold=cold)


class Call:
    """`actor.method.remote(…)` of an asynchronous actor."""

    def __init__(self, remote: Callable[..., Any]) -> None:
        self.remote = remote


class Seat:
    """Looks like an actor to the pool, and is one of many calls into an asynchronous one."""

    def __init__(self, host: Any) -> None:
        self.node = Call(host.node.remote)
        self.process = Call(host.process.remote)


class Host:
    def node(self) -> str:
        import ray

        return str(ray.get_runtime_context().get_node_id())

    async def process(self, job: SleepJob, shard: str, upcoming: str | None) -> None:
        import asyncio

        await asyncio.sleep(job.seconds)


def many(workers: int, units: int, seconds: float) -> None:
    """The loop of the real pool over `workers` calls, which a few processes hold: the driver's part of a large cluster."""
    from cluster.session import RaySession
    from villa_dist.config import RayConfig

    with mock.patch("cluster.session.usable_cpus", return_value=ASYNC_HOSTS), RaySession(RayConfig()) as ray:
        from cluster.pool import ActorPool

        hosts = [ray.remote(num_cpus=1, max_concurrency=2 * workers)(Host).remote() for _ in range(ASYNC_HOSTS)]
        node = ray.get([h.node.remote() for h in hosts])[0]
        made = ActorPool(workers, timeout=600.0, attempts=4)
        seats = [Seat(hosts[n % ASYNC_HOSTS]) for n in range(workers)]
        made._node = dict.fromkeys(seats, node)
        made._idle = list(seats)
        clock, cpu, told = time.monotonic(), time.process_time(), []
        middle: list[tuple[float, float]] = []

        def done(unit: str) -> None:
            told.append(unit)
            if len(told) in (workers, units - workers):  # neither the first leases nor the end
                middle.append((time.monotonic(), time.process_time()))

        made.run(SleepJob("", seconds), names(units), done)
        seconds_all, cpu = time.monotonic() - clock, time.process_time() - cpu
        (t0, c0), (t1, c1) = middle
        between = units - 2 * workers
        tell(
            workers=workers,
            units=units,
            unit_s=seconds,
            seconds=seconds_all,
            driver_CPU_ms_a_shard=cpu / units * 1e3,
            middle_CPU_ms_a_shard=(c1 - c0) / between * 1e3,
            middle_shards_a_second=between / (t1 - t0),
            middle_CPU_share=(c1 - c0) / (t1 - t0),
        )
        made._node, made._starting = {}, {}


def progress(markers: int = 2000) -> None:
    """`StageProgress.done` on a local folder: the marker is read, counted and told."""
    from shards.commit import SUFFIX, Marker, Output, StageFolder
    from villa_dist.stages.progress import StageProgress

    with tempfile.TemporaryDirectory() as folder:
        stage = StageFolder(folder, "pairs")
        outputs = (Output("x.parquet", ".attempts/x", 3, "0" * 64),)
        marker = Marker("x", "pairs", "f" * 16, "", 1000, "0" * 32, outputs, 1000, {"no_text": 3}, "0", "0", "0")
        for name in names(markers):
            stage.store.put(name + SUFFIX, marker.to_bytes())
        with StageProgress("pairs train", stage, markers, 0) as told:
            costs = []
            for name in names(markers):
                cpu = time.process_time()
                told.done(name)
                costs.append(time.process_time() - cpu)
    tell(markers=markers, ms_a_marker=statistics.mean(costs) * 1e3, median_ms=statistics.median(costs) * 1e3)


def nodes(workers: list[int], units: int, seconds: float, dies: int = 0, slow: float = 1.0) -> None:
    """Each of three raylets in a network namespace of its own, with one logical CPU; the driver is on the head's node."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "faults"))
    from nodes import Nodes, missing

    if why_not := missing():
        raise SystemExit(f"{why_not}; `pool` measures on one node")
    with Nodes() as three:
        for count in workers:
            given = ["drive", str(count), "--units", str(units), "--seconds", str(seconds), "--address", three.address]
            given += ["--dies", str(dies), "--slow", str(slow)]
            driver = three.start("head", [sys.executable, "-m", "benchmarks.driver_load", *given])
            if driver.wait(timeout=900):
                raise SystemExit("the driver failed")


def drive(address: str, work: Callable[[], None]) -> None:
    from cluster.session import RaySession
    from villa_dist.config import RayConfig

    with RaySession(RayConfig(address=address)):
        work()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["queue", "pool", "many", "progress", "nodes", "drive"])
    parser.add_argument("workers", type=int, nargs="*", default=[1])
    parser.add_argument("--units", type=int, default=90)
    parser.add_argument("--seconds", type=float, default=0.5)
    parser.add_argument("--dies", type=int, default=0)
    parser.add_argument("--slow", type=float, default=1.0)
    parser.add_argument("--cold", action="store_true", help="count the start of the workers")
    parser.add_argument("--address", default="", help="of a Ray cluster, for drive")
    given = parser.parse_args()
    faults = (given.dies, given.slow)
    if given.what == "queue":
        queue()
    elif given.what == "progress":
        progress()
    elif given.what == "nodes":
        nodes(given.workers, given.units, given.seconds, *faults)
    elif given.what == "drive":
        drive(given.address, partial(in_pool, given.workers[0], given.units, given.seconds, *faults, given.cold))
    elif len(given.workers) > 1:  # Ray joins one cluster a process
        options = [
            f"--units={given.units}",
            f"--seconds={given.seconds}",
            f"--dies={given.dies}",
            f"--slow={given.slow}",
        ]
        options += ["--cold"] if given.cold else []
        for workers in given.workers:
            command = [sys.executable, "-m", "benchmarks.driver_load", given.what, str(workers), *options]
            subprocess.run(command, check=True)
    elif given.what == "many":
        many(given.workers[0], given.units, given.seconds)
    else:
        pool(given.workers[0], given.units, given.seconds, *faults, given.cold)


if __name__ == "__main__":
    main()
