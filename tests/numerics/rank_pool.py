"""Processes that act as the ranks of a gloo group of any size up to four, started once for all tests."""

from __future__ import annotations

import os
import tempfile
import traceback
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

LARGEST = 4
SECONDS = 60.0


def serve(rank: int, pipe: Any) -> None:
    torch.set_num_threads(1)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    while (task := pipe.recv()) is not None:
        job, world, meeting, arguments = task
        try:
            dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=world)
            try:
                pipe.send((True, job(rank, world, *arguments)))
            finally:
                dist.destroy_process_group()
        except BaseException:
            pipe.send((False, traceback.format_exc()))


class RankPool:
    """`run(job, world, *arguments)`: the list of what `job(rank, world, *arguments)` returns on each rank."""

    def __init__(self) -> None:
        self.folder = tempfile.TemporaryDirectory(prefix="villa-ranks-")
        self.count = 0
        self.workers: list[tuple[Any, Any]] = []

    def start(self) -> None:
        context = mp.get_context("spawn")
        for rank in range(LARGEST):
            ours, theirs = context.Pipe()
            process = context.Process(target=serve, args=(rank, theirs), daemon=True)
            process.start()
            theirs.close()
            self.workers.append((process, ours))

    def run(self, job: Callable[..., Any], world: int, *arguments: Any) -> list[Any]:
        if not self.workers:
            self.start()
        self.count += 1
        chosen = self.workers[:world]
        for _, pipe in chosen:
            pipe.send((job, world, f"{self.folder.name}/{self.count}", arguments))
        results, failed = [], []
        for rank, (process, pipe) in enumerate(chosen):
            try:
                good, value = pipe.recv() if pipe.poll(SECONDS) else (False, "no answer")
            except EOFError:
                process.join(5)
                good, value = False, f"the process died with exit code {process.exitcode}"
            results.append(value)
            failed += [] if good else [f"rank {rank} of {world}: {value[-600:]}"]
        if failed:
            self.stop()  # the next test gets fresh ranks
        assert not failed, "\n".join(failed)
        return results

    def stop(self) -> None:
        for process, pipe in self.workers:
            try:
                pipe.send(None)
            except OSError:
                pass
            process.join(1)
            if process.is_alive():
                process.kill()
        self.workers = []

    def close(self) -> None:
        self.stop()
        self.folder.cleanup()


def averaged(value: torch.Tensor) -> torch.Tensor:
    """What an engine that averages gradients over ranks ends with."""
    total = value.clone()
    dist.all_reduce(total)
    return total / dist.get_world_size()
