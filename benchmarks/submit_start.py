"""From `villa submit` to the first committed shard, on a cluster of nodes on this machine that is up.

    python -m benchmarks.submit_start 1 3       nodes; times, 3 by default

Each job is stopped when its first shard is committed. Prints one JSON object a job.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "cluster" / "local_three_nodes.sh"
VILLA = [sys.executable, "-m", "cluster", "submit"]
JOBS = ("pretrain", "train", "mapping.fit")
BOUND = 300.0  # seconds


@contextmanager
def cluster(place: Path, nodes: int) -> Iterator[dict[str, str]]:
    """The environment of a client of a cluster of `nodes`, of a CPU each."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    env = {**kept, "PYTHON": sys.executable, "VILLA_NODES_DIR": f"{place}/n", "VILLA_NODE_CPUS": "1"}
    try:
        up = subprocess.run([SCRIPT, "up", str(nodes)], env=env, capture_output=True, text=True, timeout=BOUND)
        if up.returncode:
            raise SystemExit(up.stderr)
        yield env | dict(line.removeprefix("export ").split("=", 1) for line in up.stdout.splitlines())
    finally:
        subprocess.run([SCRIPT, "down"], env=env, timeout=60, check=True)


def seconds_to_first_shard(env: dict[str, str], run: Path, workers: int) -> float:
    given = [f"run={run}", f"ray.workers={workers}", *(f"{job}.workers=1" for job in JOBS)]
    command = [*VILLA, "configs/quickstart.yaml", *(part for each in given for part in ("--set", each))]
    began = time.monotonic()
    client = subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    while not list(run.glob("train/base/*.done.json")):
        if client.poll() is not None or time.monotonic() - began > BOUND:
            client.kill()
            raise SystemExit(f"no shard was committed: {client.communicate()[1][-2000:]}")
        time.sleep(0.02)
    seconds = time.monotonic() - began
    client.terminate()
    named = re.search(r"--status (\S+)`", client.communicate()[1])
    if named:
        subprocess.run([*VILLA, "--stop", named[1]], cwd=ROOT, env=env, capture_output=True, timeout=BOUND)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("nodes", type=int)
    parser.add_argument("times", type=int, nargs="?", default=3)
    asked = parser.parse_args()
    place = Path(tempfile.mkdtemp(prefix="vs-", dir="/tmp"))  # sockets below it must stay under 107 bytes
    try:
        with cluster(place, asked.nodes) as env:
            for n in range(asked.times):
                load = round(os.getloadavg()[0], 1)
                seconds = seconds_to_first_shard(env, place / f"run-{n}", asked.nodes)
                told = {"nodes": asked.nodes, "job": n + 1, "first_shard_s": round(seconds, 1), "load": load}
                print(json.dumps(told), flush=True)
                time.sleep(5)  # for the workers of the stopped job to end
    finally:
        shutil.rmtree(place, ignore_errors=True)


if __name__ == "__main__":
    main()
