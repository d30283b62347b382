"""Ranks that meet through DeepSpeed, forked from a process that has imported it."""

from __future__ import annotations

import multiprocessing
import pickle
import sys
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

SECONDS = 120.0


def run_ranks(job: Callable[..., Any], world: int, *arguments: Any) -> list[Any]:
    """What `job(*arguments)` returns on each of `world` ranks of a group."""
    from villa_dist.train.local import free_port

    sys.path.insert(0, str(Path(__file__).parent))
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["preload"])
    port, started = free_port(), []
    for rank in range(world):
        ours, theirs = context.Pipe()
        process = context.Process(target=serve, args=(rank, world, port, theirs, job, arguments), daemon=True)
        process.start()
        theirs.close()
        started.append((process, ours))
    results, failed = [], []
    for rank, (process, pipe) in enumerate(started):
        try:
            good, value = pipe.recv() if pipe.poll(SECONDS) else (False, "no answer")
        except EOFError:
            process.join(5)
            good, value = False, f"exit code {process.exitcode}"
        results.append(pickle.loads(value) if good else value)
        failed += [] if good else [f"rank {rank} of {world}: {value}"]
    for process, _ in started:
        process.join(0 if failed else 10)
        if process.is_alive():
            process.kill()
    assert not failed, "\n".join(failed)
    return results


def serve(rank: int, world: int, port: int, pipe: Any, job: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    import torch

    from villa_dist.train.engine import init_process_group
    from villa_dist.train.local import set_rank_environment

    torch.set_num_threads(1)
    warnings.simplefilter("ignore", FutureWarning)
    set_rank_environment(rank, world, "127.0.0.1", port)
    try:
        init_process_group()
        value = pickle.dumps(job(*arguments))  # by value: a tensor would be shared with a process that has ended
        pipe.send((True, value))
    except BaseException:
        pipe.send((False, traceback.format_exc()[-3000:]))
