"""What is seen of a job while it trains: one line every LOG_STEPS steps in metrics.jsonl, and in a tracker.

Rates are of the steps since the last line, without the time that validation took.
"""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from villa_dist.config_train import OptimConfig
from villa_dist.data.loader import PairBatch
from villa_dist.distributed import rank, world_size
from villa_dist.names import METRICS
from villa_dist.observe import LOG
from villa_dist.train import trackers
from villa_dist.train.journal import MetricsFile

LOG_STEPS = 10
SIDE = {"cpu": 1024, "cuda": 4096}  # of the matrices by whose product a device's peak is measured
ROUNDS = 5


class Trains(Protocol):
    """What is asked of an engine."""

    @property
    def device(self) -> torch.device: ...

    @property
    def grad_norm(self) -> float | None: ...


class Meter:
    """Counts on every rank, writes on rank 0. vlm: the model with the temperature, where there is one.

    stage: the sidecar that is learnt from, which says what a positive is; None: whole images.
    Raises: VillaError when the tracker that is asked for is not installed.
    """

    def __init__(
        self,
        engine: Trains,
        vlm: Any,
        config: OptimConfig,
        folder: Path,
        *,
        stage: str | None,
        start: int,
        steps: int,
    ) -> None:
        trackers.check(config.track)
        self.engine, self.vlm, self.config, self.stage = engine, vlm, config, stage
        self.first, self.steps = min((start // LOG_STEPS + 1) * LOG_STEPS, steps), steps
        self.file = MetricsFile(folder / METRICS, start) if rank() == 0 else None
        made = trackers.make(config.track, folder, start, config.model_dump(mode="json")) if self.file else None
        self.tracker = made
        self.flops = 0.0  # of one step of this rank
        dtype = getattr(engine, "dtype", torch.float32)
        self.peak = peak_flops(engine.device.type, torch.get_num_threads(), dtype) if self.file else 0.0
        self.found: dict[str, float] = {}  # by validation, for the next line
        self.cpu = time.process_time()
        self.waited = 0.0
        self._restart()

    def _restart(self) -> None:
        self.clock, self.paused = time.perf_counter(), 0.0
        self.done, self.regions, self.pairs, self.images = 0, 0, 0, 0

    @contextmanager
    def counting(self, step: int) -> Iterator[None]:
        """Count the floating-point operations of the block, in the step of the first line and on rank 0 alone."""
        if self.file is None or step + 1 != self.first:
            yield
            return
        with FlopCounterMode(display=False) as counter:
            yield
        self.flops += float(counter.get_total_flops())

    @contextmanager
    def aside(self) -> Iterator[None]:
        """A block whose time counts for no rate."""
        begun = time.perf_counter()
        try:
            yield
        finally:
            self.paused += time.perf_counter() - begun

    def validated(self, found: Mapping[str, float]) -> None:
        self.found.update(found)

    def after(self, step: int, loss: Tensor, learning_rate: float, batch: PairBatch, waited: float) -> None:
        """Take in a finished step, and write a line where one is due. waited: seconds for data, since the beginning."""
        self.done += 1
        self.regions += len(batch.boxes)
        self.pairs += len(batch.attribute)
        self.images += batch.images
        if self.file is None or not ((step + 1) % LOG_STEPS == 0 or step + 1 == self.steps or self.found):
            return
        seconds = max(time.perf_counter() - self.clock - self.paused, 1e-9)
        values = {"loss": round(loss.item(), 6), "learning_rate": learning_rate}
        values |= self._of_model() | self._of_batches() | self._of_speed(seconds)
        values["data_wait"] = round((waited - self.waited) / seconds, 4)
        values["memory_bytes"] = float(peak_memory(self.engine.device))
        values["cpu_seconds"] = round(time.process_time() - self.cpu, 2)
        values |= self.found
        self.file.write(step=step + 1, **values)
        if self.tracker:
            try:
                self.tracker.write(step + 1, values)
            except Exception as error:  # noqa: BLE001  a full disk or a service that is gone ends no training
                LOG.warning("track: %s stops at step %d (%s)", self.config.track, step + 1, error)
                self.tracker = None
        self.found, self.waited = {}, waited
        self._restart()

    def _of_model(self) -> dict[str, float]:
        found: dict[str, float] = {}
        norm, log_scale = self.engine.grad_norm, getattr(self.vlm, "log_scale", None)
        if norm is not None:
            found["gradient_norm"] = round(norm, 6)
        if log_scale is not None and log_scale.numel():  # under ZeRO-3 it may be elsewhere
            found["scale"] = round(float(self.vlm.scale.detach()), 4)
        return found

    def _of_batches(self) -> dict[str, float]:
        if self.stage in ("pairs", "truth") and self.regions:
            return {"positives_per_region": round(self.pairs / self.regions, 4)}
        if self.stage == "regions" and self.images:
            return {"mentions_per_image": round(self.pairs / self.images, 4)}
        return {}

    def _of_speed(self, seconds: float) -> dict[str, float]:
        found = {
            "images_per_second": round(self.done * self.config.batch_images / seconds, 2),
            "regions_per_second": round(self.regions * world_size() / seconds, 2),
        }
        if self.flops:
            found["mfu"] = round(self.flops * self.done / seconds / self.peak, 4)
        return found

    def close(self) -> None:
        if self.tracker:
            self.tracker.close()


@cache
def peak_flops(device: str, threads: int, dtype: torch.dtype = torch.float32) -> float:
    """Floating-point operations a second in products of large matrices, the best of some: measured once a process.

    threads: of this process, on which a CPU's peak depends.
    """
    side = SIDE.get(device, SIDE["cpu"])
    a = torch.ones(side, side, device=device, dtype=dtype)
    best = float("inf")
    for _ in range(ROUNDS):
        _wait(device)
        begun = time.perf_counter()
        a @ a
        _wait(device)
        best = min(best, time.perf_counter() - begun)
    return 2.0 * side**3 / max(best, 1e-9)


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def peak_memory(device: torch.device) -> int:
    """Bytes: the most that was allocated on a GPU, else the most that this process has held."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return held if sys.platform == "darwin" else held * 1024
