"""Training on Ray: one worker a device through Ray Train, our function in each, our checkpoints.

Ray Train brings the ranks up and tears the group down when one fails. Resuming is ours: the next group starts from
the newest whole checkpoint, whatever Ray has registered. SIGTERM to the driver reaches the ranks as a file in the job's
folder, which each looks for: they run in threads, which get no signals, and on other machines.
"""

from __future__ import annotations

import logging
import tempfile
import threading
from pathlib import Path
from typing import Any

import ray
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer

from cluster.trouble import lost_ranks
from shards.errors import VillaError
from villa_dist.names import CHECKPOINTS
from villa_dist.train import signals
from villa_dist.train.checkpoint import reached
from villa_dist.train.elastic import GroupDied, with_restarts
from villa_dist.train.jobs import TrainRequest, run_request


def train_on_ray(request: TrainRequest) -> None:
    """Raises: VillaError from the training function, or after a group died too often; Preempted after SIGTERM."""
    workers = request.optim.workers
    gpus = ray.cluster_resources().get("GPU", 0.0) >= workers
    available = ray.cluster_resources().get("CPU", 0.0)
    if available < workers and not gpus:
        raise VillaError(
            f"training {request.job} wants {workers} workers and the cluster has {available:.0f} CPUs and fewer GPUs; set "
            "its workers lower or use a larger cluster"
        )
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
