"""Training on Ray: one worker a device through Ray Train, our function in each, our checkpoints.

Ray Train brings the ranks up and tears the group down when one fails. Resuming is ours: the next group starts from
the newest whole checkpoint, whatever Ray has registered.
"""

from __future__ import annotations

import logging
import tempfile
import threading
from typing import Any

import ray
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer

from shards.errors import VillaError
from villa_dist.observe import LOG
from villa_dist.train.jobs import TrainRequest, run_request

GROUP_FAILURES = 3  # times a group may die before training gives up


def train_on_ray(request: TrainRequest) -> None:
    """Raises: VillaError from the training function, or after a group died too often."""
    workers = request.optim.workers
    gpus = ray.cluster_resources().get("GPU", 0.0) >= workers
    available = ray.cluster_resources().get("CPU", 0.0)
    if available < workers and not gpus:
        raise VillaError(
            f"training {request.job} wants {workers} workers and the cluster has {available:.0f} CPUs and fewer GPUs; set "
            "its workers lower or use a larger cluster"
        )
    logging.getLogger("ray.train").setLevel(logging.ERROR)
    for attempt in range(1, GROUP_FAILURES + 1):
        with tempfile.TemporaryDirectory(prefix="villa-train-") as scratch:
            error = _fit(request, workers, gpus, scratch)
        if error is None:
            return
        mended = _cause(error)
        if mended is not None:
            raise mended
        reason = " ".join(str(error).split())[-400:]
        LOG.warning("training group of %s died (%d of %d): %s", request.job, attempt, GROUP_FAILURES, reason)
    raise VillaError(
        f"training {request.job} lost its workers {GROUP_FAILURES} times, last by: {reason}; look at the nodes, then run "
        "the same command again: it resumes from the newest checkpoint"
    )


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
