"""Training on Ray: one worker a device through Ray Train, our function in each, our checkpoints.

Ray Train brings the ranks up and tears the group down when one fails. Resuming is ours: the next group starts from
the newest whole checkpoint, whatever Ray has registered. SIGTERM to the driver reaches the ranks as a file in the job's
folder, which each looks for: they run in threads, which get no signals, and on other machines.
"""

from __future__ import annotations

import logging
import os
import tempfile
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ray
from ray.autoscaler.sdk import request_resources
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer

from cluster.trouble import lost_ranks
from shards.errors import VillaError
from villa_dist.names import CHECKPOINTS
from villa_dist.observe import LOG
from villa_dist.train import signals
from villa_dist.train.checkpoint import reached
from villa_dist.train.elastic import GroupDied, with_restarts
from villa_dist.train.jobs import TrainRequest, run_request

LOOK_SECONDS = 2.0


def train_on_ray(request: TrainRequest) -> None:
    """Raises: VillaError from the training function, or after a group died too often; Preempted after SIGTERM."""
    workers = request.optim.workers
    gpus = devices(request, ray.cluster_resources())
    if gpus:
        await_gpus(request)
    logging.getLogger("ray.train").setLevel(logging.ERROR)
    folder = Path(request.folder)
    asked = threading.Event()

    def stop() -> None:
        asked.set()
        signals.ask_ranks(folder)

    def group() -> None:
        with tempfile.TemporaryDirectory(prefix="villa-train-") as scratch:
            error = _fit(request, workers, gpus, scratch)
        mended = _cause(error)
        if mended is not None:
            raise mended
        if asked.is_set():
            raise signals.preempted(request.job, reached(folder / CHECKPOINTS))
        if error is not None:
            raise GroupDied(lost_ranks(error)) from error

    with signals.sigterm_calls(stop):
        with_restarts(request.job, folder, request.optim.restarts, group)


def devices(request: TrainRequest, up: Mapping[str, float]) -> bool:
    """Whether the ranks have a GPU each: those that are up, or with `ray.gpus: true` those that are to come.

    Raises: VillaError when there are neither GPUs nor CPUs enough.
    """
    wanted, workers = request.config.ray.gpus, request.optim.workers
    cpus, gpus = up.get("CPU", 0.0), up.get("GPU", 0.0)
    if wanted is True or (wanted == "auto" and gpus >= workers):
        return True
    if cpus < workers:
        others = "fewer GPUs" if wanted == "auto" else "ray.gpus is false"
        raise VillaError(
            f"training {request.job} wants {workers} workers and the cluster has {cpus:.0f} CPUs and {others}; set "
            "its workers lower or use a larger cluster; where an autoscaler is to start GPU nodes, --set ray.gpus=true"
        )
    if wanted == "auto" and (request.config.ray.address or os.environ.get("RAY_ADDRESS")):
        LOG.info("train %s: on CPUs, as %.0f GPUs are up for %d workers", request.job, gpus, workers)
    return False


def await_gpus(request: TrainRequest) -> None:
    """Until there is a GPU a rank, which an autoscaler is asked for. Raises: VillaError after `ray.start_seconds`."""
    workers, seconds = request.optim.workers, request.config.ray.start_seconds
    ends = time.monotonic() + seconds
    if (found := _gpus_up()) >= workers:
        return
    LOG.info("train %s: waits up to %.0f s for %d GPUs, %d are up", request.job, seconds, workers, found)
    request_resources(bundles=[{"CPU": 1, "GPU": 1}] * workers)
    try:
        while (found := _gpus_up()) < workers:
            if time.monotonic() > ends:
                raise VillaError(
                    f"training {request.job} wants {workers} GPUs, and {found} were up after {seconds:.0f} s; look at the "
                    "autoscaler (`ray status`), set ray.start_seconds higher, its workers lower, or ray.gpus to auto"
                )
            time.sleep(LOOK_SECONDS)
    finally:
        request_resources(bundles=[])


def _gpus_up() -> int:
    return int(ray.cluster_resources().get("GPU", 0.0))


def _fit(request: TrainRequest, workers: int, gpus: bool, scratch: str) -> Exception | None:
    trainer = TorchTrainer(
        _rank_main,
        train_loop_config={"request": request},
        torch_config=TorchConfig(backend="nccl" if gpus else "gloo"),
        scaling_config=ScalingConfig(num_workers=workers, use_gpu=gpus, resources_per_worker={"CPU": 1}),
        run_config=RunConfig(name=request.job, storage_path=scratch, failure_config=FailureConfig(max_failures=0)),
    )
    outcome: list[Exception | None] = []

    def fit() -> None:
        try:
            trainer.fit()
        except Exception as error:  # noqa: BLE001  Ray raises several kinds; the caller sorts them
            outcome.append(error)
        else:
            outcome.append(None)

    # On the main thread fit() would take over Ctrl-C and exit the process by itself.
    thread = threading.Thread(target=fit, name="villa-ray-train", daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(timeout=0.2)
    return outcome[0] if outcome else RuntimeError("Ray Train ended without a result")


def _rank_main(config: dict[str, Any]) -> None:
    if config["request"].config.ray.gpus is False:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # of a node that has some
    run_request(config["request"])


def _cause(error: BaseException | None) -> VillaError | None:
    """The VillaError inside what Ray Train raised, if that is what stopped a rank."""
    seen: set[int] = set()
    queue: list[Any] = [error]
    while queue:
        item = queue.pop()
        if item is None or id(item) in seen:
            continue
        seen.add(id(item))
        if isinstance(item, VillaError):
            return item
        failures = getattr(item, "worker_failures", None)
        queue += [getattr(item, "__cause__", None), getattr(item, "cause", None), getattr(item, "_cause", None)]
        queue += list(failures.values()) if isinstance(failures, dict) else []
    return None
