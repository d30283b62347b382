"""Resharding at scale: memory against the size and number of shards, two workers against one, a million markers.

    python -m benchmarks.reshard_scale memory [--folder /tmp]     1 and 8 GB; 10 and 10,000 shards; needs 20 GB of disk
    python -m benchmarks.reshard_scale workers [--folder /tmp]    one process against two Ray workers: clock and CPU
    python -m benchmarks.reshard_scale ray [--folder /tmp]        peak memory of two Ray workers, 1 and 8 GB
    python -m benchmarks.reshard_scale markers [--folder /tmp]    listing and planning 1,000,000 sources, resuming as many

Prints one JSON object a measurement. Peak memory is the largest resident set of the process, mapped pages included.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.reshard import no_meter
from shards import manifest, sidecar
from shards.commit import SUFFIX, Marker, Output, StageFolder
from shards.reshard.options import ReshardOptions
from shards.reshard.plan import cuts
from shards.reshard.run import reshard
from shards.reshard.scanned import Scanned
from shards.reshard.sources import resolve
from shards.reshard.units import Units, unit_name
from shards.tar import TarWriter
from shards.work import run_here

MILLION = 1_000_000


def make(folder: Path, total: int, shards: int, sample_bytes: int = 60_000) -> None:
    """`total` bytes in `shards` tars; contents differ in their first bytes."""
    block, key = random.Random(0).randbytes(sample_bytes), 0
    folder.mkdir(parents=True)
    for shard in range(shards):
        with open(folder / f"{shard:06d}.tar", "wb", buffering=1 << 20) as f:
            tar = TarWriter(f)
            while tar.offset < total / shards:
                tar.add(f"{key:09d}.jpg", b"%09d" % key + block)
                tar.add(f"{key:09d}.txt", b"a caption")
                key += 1
            tar.close()


def peak() -> float:
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1)


def alone(src: str, dst: str, **options: Any) -> dict[str, Any]:
    """One reshard in a process of its own: seconds and peak memory."""
    given = json.dumps({"src": src, "dst": dst, **options})
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.reshard_scale", "one", given], capture_output=True, text=True
    )
    if done.returncode:
        raise SystemExit(done.stderr)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def one(given: dict[str, Any]) -> dict[str, Any]:
    src, dst = given.pop("src"), given.pop("dst")
    before, start = peak(), time.perf_counter()
    result = reshard(src, ReshardOptions(dst, max_bytes=256 << 20, **given), run_here, no_meter)
    seconds = round(time.perf_counter() - start, 1)
    return {"samples": result["samples"], "seconds": seconds, "start MiB": before, "peak MiB": peak()}


def memory(root: Path) -> None:
    for total, shards, options in (
        (1, 5, {}),
        (8, 40, {}),
        (1, 5, {"shuffle": 1, "hashed": False}),
        (8, 40, {"shuffle": 1, "hashed": False}),
        (1, 10, {}),
        (1, 10_000, {}),
    ):
        src = root / f"src-{total}-{shards}"
        if not src.exists():
            make(src, total * 10**9, shards)
        found = alone(str(src), str(root / "out"), **options)
        print(json.dumps({"GB": total, "shards": shards, **options, **found}), flush=True)
        shutil.rmtree(root / "out")
        if options:
            shutil.rmtree(src)


def actors() -> dict[int, tuple[float, float]]:
    """(CPU seconds so far, peak resident MiB) of each worker process of the Ray below this process."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            line = (folder / "cmdline").read_bytes()
            if line.startswith(b"ray::") and os.getpid() in ancestors(int(folder.name)):
                spent = (folder / "stat").read_text().rpartition(")")[2].split()
                status = dict(row.split(":", 1) for row in (folder / "status").read_text().splitlines())
                seconds = (int(spent[11]) + int(spent[12])) / os.sysconf("SC_CLK_TCK")
                found[int(folder.name)] = (seconds, round(int(status["VmHWM"].split()[0]) / 1024, 1))
        except OSError:  # gone meanwhile
            continue
    return found


def ancestors(pid: int) -> Iterator[int]:
    while pid > 1:
        pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        yield pid


def workers(root: Path) -> None:
    """The CPU-bound reshard, contents hashed and proved, on foreign tars: by the clock, which others' work disturbs, and by
    the CPU that each worker takes. balance: CPU of all workers by that of the busiest, which bounds the speedup."""
    from cluster.work import units_on

    make(root / "src", 2 * 10**9, 10)
    make(root / "small", 10_000_000, 2)
    with units_on(2) as two:
        reshard(
            str(root / "small"), ReshardOptions(str(root / "warm"), max_bytes=2_000_000), two, no_meter
        )  # starts them
        for _ in range(3):
            told: dict[str, Any] = {}
            for count, run in ((1, run_here), (2, two)):
                before, clock, cpu = actors(), time.perf_counter(), time.process_time()
                reshard(str(root / "src"), ReshardOptions(str(root / "out"), max_bytes=200_000_000), run, no_meter)
                clock, cpu = time.perf_counter() - clock, time.process_time() - cpu
                spent = [seconds - before.get(pid, (0.0, 0.0))[0] for pid, (seconds, _) in actors().items()]
                told[f"clock {count}"], told[f"CPU {count}"] = round(clock, 2), round(cpu + sum(spent), 2)
                if count == 2:
                    told["workers"] = sorted((round(s, 2) for s in spent), reverse=True)[:2]
                    told["balance"] = round(sum(spent) / max(spent), 2)
                shutil.rmtree(root / "out")
            told["speedup"] = round(told["clock 1"] / told["clock 2"], 2)
            print(json.dumps({**told, "load": os.getloadavg()[0]}), flush=True)


def ray(root: Path) -> None:
    """Peak memory of each of two Ray workers; 8 GB are the tars of 1 GB again and again, under other names."""
    make(root / "src", 10**9, 5)
    for copies in (1, 8):
        for at in range(5, 5 * copies):
            os.link(root / f"src/{at % 5:06d}.tar", root / f"src/{at:06d}.tar")
        subprocess.run([sys.executable, "-m", "benchmarks.reshard_scale", "two", json.dumps(str(root))], check=True)
        shutil.rmtree(root / "out")


def two_workers(root: Path) -> None:
    """In a process of its own, since Ray joins one cluster a process."""
    from cluster.work import units_on

    start, options = time.perf_counter(), ReshardOptions(str(root / "out"), max_bytes=200_000_000)
    with units_on(2) as two:
        told = reshard(str(root / "src"), options, two, no_meter)
        peaks = sorted((mib for _, mib in actors().values()), reverse=True)[:2]
    told = {"GB": told["bytes"] / 1e9, "shards": told["shards"], "seconds": round(time.perf_counter() - start, 1)}
    print(json.dumps({**told, "workers' peak MiB": peaks, "driver's peak MiB": peak()}), flush=True)


def million(root: Path) -> None:
    """A data set of a million shards that is only its manifest; and a folder of a million markers, all alike."""
    base = StageFolder(str(root / "src"), "base")
    Path(base.store.path()).mkdir(parents=True)
    names = [f"{n:06d}" for n in range(MILLION)]
    columns = {
        "shard": names,
        "samples": np.full(MILLION, 4000),
        "bytes": np.full(MILLION, 400_000_000),
        "sha256": [f"{n:064x}" for n in range(MILLION)],
        "keys_digest": [f"{n:032x}" for n in range(MILLION)],
        "came_in": np.full(MILLION, 4000),
        "refused": np.zeros(MILLION, np.int64),
        "fingerprint": ["f" * 16] * MILLION,
    }
    base.store.put(manifest.NAME, sidecar.to_bytes(sidecar.table(manifest.SCHEMA, columns)))
    outputs = (Output("config.json", ".attempts/x/config.json", 3, "0" * 64),)
    counts = {"bytes": 400_000_000, "rows": 4000}
    done = StageFolder(str(root / "out"), "base")
    bound = done.claim({})
    made = Marker("000000", "base", bound, "", 4000, "0" * 32, outputs, 4000, {}, "0", "0", "0", counts)
    data = made.to_bytes()
    for name in range(MILLION):
        Path(done.store.path(unit_name(name) + SUFFIX)).write_bytes(data)


def markers(root: Path) -> None:
    """What a reshard of a million shards lists, plans and takes up again; and what a stage does."""
    subprocess.run([sys.executable, "-m", "benchmarks.reshard_scale", "million", json.dumps(str(root))], check=True)
    names, sizes = [unit_name(n) for n in range(MILLION)], np.full(MILLION, 400_000_000)
    done = StageFolder(str(root / "out"), "base")
    bound = done.bound_to()

    def timed(what: str, work: Any) -> Any:
        start, cpu = time.perf_counter(), time.process_time()
        found = work()
        seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
        told = {"what": what, "seconds": round(seconds, 1), "CPU seconds": round(cpu, 1), "peak MiB": peak()}
        print(json.dumps(told), flush=True)
        return found

    sources = timed("list the sources by their manifest", lambda: resolve(str(root / "src")))
    timed("their fingerprint, and the list for the workers", lambda: (sources.fingerprint, sources.to_bytes()))
    lengths = np.full(4000, 100_000)
    many = np.full(MILLION, 4000)
    timed("plan the new shards", lambda: sum(1 for _ in cuts(many, sizes, lambda at: lengths, 10_000, 512 << 20)))
    timed("finish moves, list what is done", lambda: (done.settle_all(), len(set(done.shards_done()))))
    listed = timed("a stage: list its files with their sizes", done.store.list_sizes)
    timed("a stage without a manifest: read all markers", lambda: manifest.sound(done, listed, bound, names))
    timed("the same again: by the table of them", lambda: manifest.sound(done, listed, bound, names))
    timed("write the manifest by that", lambda: manifest.write(done, names))
    timed("a complete stage: by its manifest", lambda: manifest.sound(done, listed, bound))
    timed("write the manifest from markers alone", lambda: manifest.write(done, names))
    del listed
    known = timed(
        "a reshard: sum up what was scanned, once", lambda: Scanned.read(done, Units(sizes.tolist())).to_bytes()
    )
    timed("a reshard: take that up again", lambda: Scanned.from_bytes(known, ""))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["memory", "workers", "ray", "markers", "million", "one", "two"])
    parser.add_argument("given", nargs="?", default="{}")
    parser.add_argument("--folder", default=None)
    chosen = parser.parse_args()
    if chosen.what == "one":
        print(json.dumps(one(json.loads(chosen.given))))
    elif chosen.what in ("million", "two"):
        {"million": million, "two": two_workers}[chosen.what](Path(json.loads(chosen.given)))
    else:
        with tempfile.TemporaryDirectory(dir=chosen.folder) as name:
            {"memory": memory, "workers": workers, "ray": ray, "markers": markers}[chosen.what](Path(name))
