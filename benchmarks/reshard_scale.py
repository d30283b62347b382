"""Resharding at scale: memory against the size and number of shards, two workers against one, a million markers.

    python -m benchmarks.reshard_scale memory [--folder /tmp]     1 and 8 GB; 10 and 10,000 shards; needs 20 GB of disk
    python -m benchmarks.reshard_scale workers [--folder /tmp]    --workers 1 and 2, seconds of the write pass
    python -m benchmarks.reshard_scale markers [--folder /tmp]    listing and planning 1,000,000 sources, resuming as many

Prints one JSON object a measurement. Peak memory is the largest resident set of the process, mapped pages included.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import shutil
import subprocess
import sys
import tempfile
import time
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


def workers(root: Path) -> None:
    """The CPU-bound reshard: contents hashed and proved, on foreign tars."""
    from cluster.shards_cli import units_on

    make(root / "src", 2 * 10**9, 10)
    make(root / "small", 10_000_000, 2)
    found: dict[int, list[float]] = {1: [], 2: []}
    with units_on(2) as two:
        reshard(str(root / "small"), ReshardOptions(str(root / "warm")), two, no_meter)  # workers are started by now
        for _ in range(3):
            for count, run in ((1, run_here), (2, two)):
                start = time.perf_counter()
                reshard(str(root / "src"), ReshardOptions(str(root / "out"), max_bytes=200_000_000), run, no_meter)
                found[count].append(time.perf_counter() - start)
                shutil.rmtree(root / "out")
    middle = {count: sorted(seconds)[1] for count, seconds in found.items()}
    told = {str(k): [round(s, 2) for s in v] for k, v in found.items()}
    print(json.dumps({"seconds": told, "speedup": round(middle[1] / middle[2], 2)}))


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
    for name in names:
        Path(done.store.path(name + SUFFIX)).write_bytes(data)


def markers(root: Path) -> None:
    """What a reshard of a million shards lists, plans and takes up again; and what a stage does."""
    subprocess.run([sys.executable, "-m", "benchmarks.reshard_scale", "million", json.dumps(str(root))], check=True)
    names = [f"{n:06d}" for n in range(MILLION)]
    done = StageFolder(str(root / "out"), "base")

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
    many, sizes = np.full(MILLION, 4000), np.full(MILLION, 400_000_000)
    timed("plan the new shards", lambda: sum(1 for _ in cuts(many, sizes, lambda at: lengths, 10_000, 512 << 20)))
    timed("finish moves, list what is done", lambda: (done.settle_all(), len(set(done.shards_done()))))
    listed = timed("a stage: list its files with their sizes", done.store.list_sizes)
    timed(
        "a stage: look at what is done, no manifest",
        lambda: [n for n in names if done.damaged(n, content=False, sizes=listed)],
    )
    del listed
    timed("write the manifest", lambda: manifest.write(done, names))
    timed("a stage: look at what is done by the manifest", lambda: manifest.sound(done, done.store.list_sizes(), "x"))
    known = timed("a reshard: sum up what was scanned, once", lambda: Scanned.read(done, names).to_bytes())
    timed("a reshard: take that up again", lambda: Scanned.from_bytes(known, ""))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["memory", "workers", "markers", "million", "one"])
    parser.add_argument("given", nargs="?", default="{}")
    parser.add_argument("--folder", default=None)
    chosen = parser.parse_args()
    if chosen.what == "one":
        print(json.dumps(one(json.loads(chosen.given))))
    elif chosen.what == "million":
        million(Path(json.loads(chosen.given)))
    else:
        with tempfile.TemporaryDirectory(dir=chosen.folder) as name:
            {"memory": memory, "workers": workers, "markers": markers}[chosen.what](Path(name))
