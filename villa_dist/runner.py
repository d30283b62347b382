"""Where work runs: the protocol, and the runner that uses this process. `cluster` has the one that uses Ray.

Both run the same stage objects and the same training function, so their output is the same byte for byte.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from torch.multiprocessing.spawn import ProcessExitedException, ProcessRaisedException, start_processes

from shards.errors import VillaError
from shards.work import Again, Job, run_here
from villa_dist.train.jobs import TrainRequest, run_request


class Runner(Protocol):
    """Raises what the work raises: VillaError for what a user can mend."""

    def shards(self, job: Job, shards: Sequence[str], done: Callable[[str], None], again: Again | None = None) -> None:
        """Process `shards`, in any order; `done(shard)` after each commit, `again(shard, why)` before each retry."""
        ...

    def train(self, request: TrainRequest) -> None: ...

    def close(self) -> None: ...


class LocalRunner:
    """Everything in this process; training with several workers spawns them on this host."""

    def shards(self, job: Job, shards: Sequence[str], done: Callable[[str], None], again: Again | None = None) -> None:
        run_here(job, shards, done)

    def train(self, request: TrainRequest) -> None:
        world = request.optim.workers
        port = free_port()
        failed: Any = multiprocessing.get_context("spawn").SimpleQueue()
        context = start_processes(
            _rank_main, args=(world, port, request, failed), nprocs=world, join=False, start_method="spawn"
        )
        assert context is not None
        try:
            while not context.join(timeout=1.0):
                pass
        except ProcessExitedException as error:
            raise VillaError(
                f"a rank of training {request.job} died ({error}; out of memory, or killed); give it more memory or a "
                "smaller batch_images if that was it, and run the same command again: it resumes"
            ) from error
        except ProcessRaisedException as error:
            if not failed.empty():
                raise failed.get()[1] from None
            raise RuntimeError(f"training {request.job} failed: {error}") from error
        finally:
            for process in context.processes:
                if process.is_alive():
                    process.kill()

    def close(self) -> None:
        pass


def _rank_main(rank: int, world: int, port: int, request: TrainRequest, failed: Any) -> None:
    die_with_parent()
    set_rank_environment(rank, world, "127.0.0.1", port)
    try:
        run_request(request)
    except BaseException as error:
        failed.put((rank, error))
        raise


def die_with_parent() -> None:
    """On Linux: SIGKILL this process when its parent ends, however that ends, so that no rank trains on unattended."""
    if sys.platform != "linux":
        return
    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
    if os.getppid() == 1:
        os._exit(1)  # the parent was gone before


def set_rank_environment(rank: int, world: int, host: str, port: int) -> None:
    values = {"RANK": rank, "WORLD_SIZE": world, "LOCAL_RANK": rank, "MASTER_ADDR": host, "MASTER_PORT": port}
    os.environ.update({k: str(v) for k, v in values.items()})


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])
