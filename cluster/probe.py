"""What the head and the nodes of a cluster have, asked on the cluster itself: `python -m cluster.probe run CONFIG …`.

The first part of a submitted job, which the variable ASKED tells what to look for. It writes a line that starts with MARK.
Where nothing is wrong, `villa run CONFIG …` follows in this process: connected, with the nodes' workers started.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import secrets
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

from cluster import session
from shards.errors import VillaError
from shards.store import Store

MARK = "villa-probe "
ASKED = "VILLA_ASKED"
RECORDS = ".submitted"
NODES = 32  # at most so many are asked
NODE_SECONDS = 60.0
LATER = ("torch", "deepspeed", "safetensors", "transformers")  # dear to import, and not needed by the first stage
EXCLUSIVE = (
    "the storage does not honour exclusive creation (If-None-Match: * on PUT), on which every commit rests; use AWS "
    "S3, "
    "MinIO, R2 or a file system"
)


def storage_trouble(url: str) -> str:
    """Why a run cannot be kept at `url`; empty if it can. Leaves nothing behind."""
    name = f".probe-{secrets.token_hex(8)}"
    try:
        store = Store(url)
        first, second = store.put_if_absent(name, b"1"), store.put_if_absent(name, b"2")
        kept = store.read(name)
        store.remove(name)
    except (VillaError, OSError) as error:
        return str(error)
    return "" if first and not second and kept == b"1" else f"{store.shown()}: {EXCLUSIVE}"


def node_trouble(url: str, name: str, python: str, villa: str) -> str:
    """What is wrong with the node this runs on: it must see the file `name` that the head has made in the run's folder."""
    from villa_dist import __version__

    here = sys.version.split()[0]
    if here.split(".")[:2] != python.split(".")[:2]:
        return f"Python {here}, and the head has {python}"
    if __version__ != villa:
        return f"villa {__version__}, and the head has {villa}"
    try:
        found = Store(url).find(name)
    except (VillaError, OSError) as error:
        return str(error)
    try:
        import villa_dist.stages.ingest  # noqa: F401  what workers load first, so that they find it loaded

        if missing := [name for name in LATER if find_spec(name) is None]:
            raise ImportError(f"No module named {missing[0]!r}")
    except ImportError as error:
        return f"a requirement is missing ({error}); install constraints/cpu.txt there, or use the image"
    if found is None:
        return f"{Store(url).shown()} is not the folder that the head sees; use storage that all nodes share"
    return storage_trouble(url)


def examine(asked: dict[str, Any]) -> dict[str, Any]:
    """`asked` has run, id, ray, villa, python, training (workers), data (workers or null), gpus (as `ray.gpus`), record. In
    the result, `problems` keep the job from starting and `remarks` do not."""
    from villa_dist import __version__

    problems: list[str] = []
    remarks: list[str] = []
    here = {"python": sys.version.split()[0], "villa": __version__, "ray": importlib.metadata.version("ray")}
    if here["ray"] != asked["ray"]:
        problems.append(
            f"the cluster has Ray {here['ray']}, and this machine {asked['ray']}: install the same one on both"
        )
    if here["python"].split(".")[:2] != asked["python"].split(".")[:2]:
        problems.append(
            f"the cluster has Python {here['python']}, and this machine {asked['python']}: use the same minor "
            "version on both"
        )
    if here["villa"] != asked["villa"]:
        problems.append(
            f"the cluster has villa {here['villa']}, and this machine {asked['villa']}: install the same on both"
        )
    if trouble := storage_trouble(asked["run"]):
        problems.append(f"the cluster's head cannot keep the run: {trouble}")
    else:
        Store(asked["run"]).put(f"{RECORDS}/{asked['id']}.json", json.dumps(asked["record"]).encode())
    return {**here, **_of_nodes(asked, here, problems, remarks), "problems": problems, "remarks": remarks}


def _of_nodes(asked: dict[str, Any], here: dict[str, Any], problems: list[str], remarks: list[str]) -> dict[str, Any]:
    import ray
    from ray.exceptions import RayError

    from cluster.pool import READY

    address = os.environ.get("RAY_ADDRESS", "auto")
    ray.init(address=address, log_to_driver=False, logging_level="ERROR")
    session.JOINED.append(address)
    resources = ray.cluster_resources()
    cpus, gpus = resources.get("CPU", 0.0), resources.get("GPU", 0.0)
    sized(asked, cpus, gpus, problems, remarks)
    data = asked["data"]
    nodes = [n for n in ray.nodes() if n["Alive"]]
    if not problems:
        given = (asked["run"], f"{RECORDS}/{asked['id']}.json", here["python"], here["villa"])
        calls = _ask(nodes[:NODES], int(data or max(cpus - session.DRIVER_SLACK, 1)), given)
        import villa_dist.pipeline  # noqa: F401  while the nodes start their workers

        ready, late = ray.wait(list(calls), num_returns=len(calls), timeout=NODE_SECONDS)
        for call in ready:
            place, worker = calls[call]
            try:
                trouble = ray.get(call)
            except RayError as error:
                trouble = " ".join(str(error).split())[-300:]
            if trouble:
                problems.append(f"node {place}: {trouble}")
            elif worker is not None:
                READY.append(worker)
        for call in late:
            place, worker = calls[call]
            remarks.append(f"node {place} has not answered within {NODE_SECONDS:.0f} s")
            if worker is not None:
                ray.kill(worker, no_restart=True)
    return {"nodes": len(nodes), "cpus": cpus, "gpus": gpus}


def sized(asked: dict[str, Any], cpus: float, gpus: float, problems: list[str], remarks: list[str]) -> None:
    """What the CPUs and GPUs that are up are too few for."""
    training, data, wanted = asked["training"], asked["data"], asked["gpus"]
    if wanted is True and gpus < training:
        remarks.append(
            f"training wants {training} GPUs and {gpus:.0f} are up: it will ask for the others, and wait for "
            "ray.start_seconds"
        )
    elif cpus < training and (wanted is False or gpus < training):
        problems.append(
            f"training wants {training} workers and the cluster has {cpus:.0f} CPUs and {gpus:.0f} GPUs: use a "
            "larger cluster or set pretrain.workers, train.workers and mapping.fit.workers lower; where an autoscaler is to "
            "start GPU nodes for it, --set ray.gpus=true"
        )
    if data and data > cpus:
        remarks.append(
            f"ray.workers={data} and the cluster has {cpus:.0f} CPUs: fewer will work at a time until it has more"
        )


def _ask(nodes: Sequence[dict[str, Any]], workers: int, given: tuple[str, ...]) -> dict[Any, tuple[str, Any]]:
    """Calls of `node_trouble` on each node, with the node's address and who is asked.

    That is a worker such as the first stage will want, so that it is up when the stage begins (Ray gives no process that has
    done a task to an actor), on as many nodes as there are to be workers; elsewhere, and where others use the cluster and
    it might not start, a task that needs no CPU, and None.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    from cluster.pool import remote_worker

    mine = ray.get_runtime_context().get_node_id()
    idle = ray.available_resources().get("CPU", 0.0) >= ray.cluster_resources().get("CPU", 0.0)
    task, actor = ray.remote(num_cpus=0, max_retries=0)(node_trouble), remote_worker()
    calls: dict[Any, tuple[str, Any]] = {}
    for node in sorted(nodes, key=lambda n: n["NodeID"] == mine):
        there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        worker = None
        if idle and workers > 0 and node["Resources"].get("CPU", 0.0) >= 1:
            workers -= 1
            worker = actor.options(scheduling_strategy=there).remote()
            call = worker.call.remote(node_trouble, *given)
        else:
            call = task.options(scheduling_strategy=there).remote(*given)
        calls[call] = (node["NodeManagerAddress"], worker)
    return calls


def main() -> None:
    for name, value in {**session.KEEPALIVE, **session.QUIET}.items():
        os.environ.setdefault(name, value)
    try:
        found = examine(json.loads(os.environ[ASKED]))
    except (VillaError, RuntimeError, ConnectionError, OSError) as error:
        found = {"problems": [str(error)], "remarks": []}
    print(MARK + json.dumps(found), flush=True)
    if found["problems"]:
        os._exit(3)
    from cluster import cli

    cli.main()


if __name__ == "__main__":
    main()
