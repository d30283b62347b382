"""One group of ranks on this host, each a process of this one: started, watched, asked to stop, ended."""

from __future__ import annotations

import ctypes
import multiprocessing
import multiprocessing.connection
import os
import pickle
import signal
import socket
import sys
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shards.errors import VillaError
from villa_dist.names import CHECKPOINTS
from villa_dist.observe import LOG
from villa_dist.train import signals
from villa_dist.train.checkpoint import reached
from villa_dist.train.elastic import GroupDied
from villa_dist.train.jobs import TrainRequest, run_request

GRACE_SECONDS = 5.0  # for the other ranks to say what they know, once one has ended by an error
# What a node, a network or a disk does to a rank; anything else that is raised is a mistake that would come back.
PASSING = (RuntimeError, OSError, EOFError)


@dataclass
class Rank:
    """A rank's process, and where it says why it failed."""

    number: int
    process: Any
    says: Any
    error: BaseException | None = None
    trace: str = ""

    def hear(self) -> None:
        try:
            while self.says.poll():
                pickled, self.trace = self.says.recv()
                self.error = pickle.loads(pickled)
        except (EOFError, OSError):
            pass

    @property
    def end(self) -> str:
        code = self.process.exitcode
        if code is not None and code < 0:
            return f"rank {self.number} was ended by {signal.Signals(-code).name} (killed, or out of memory)"
        said = f": {self.error!r}" if self.error else ""
        return f"rank {self.number} ended with exit code {code}{said}"


def run_group(request: TrainRequest) -> None:
    """Train one job by `workers` processes. SIGTERM to this process is passed on to them, once; the second ends them.

    Raises: VillaError of a rank; Preempted; GroupDied; RuntimeError with a rank's traceback for a mistake in the program.
    """
    ranks: list[Rank] = []
    asked: list[float] = []

    def pass_on() -> None:
        asked.append(time.monotonic())
        for rank in ranks:
            if rank.process.is_alive():
                os.kill(rank.process.pid, signal.SIGTERM if len(asked) == 1 else signal.SIGKILL)

    with signals.sigterm_calls(pass_on):
        try:
            _start(request, ranks)
            _wait(ranks)
        finally:
            for rank in ranks:
                if rank.process.is_alive():
                    rank.process.kill()
                rank.process.join()
                rank.hear()
        _raise(request, ranks, bool(asked))


def _start(request: TrainRequest, ranks: list[Rank]) -> None:
    context, port, world = multiprocessing.get_context("spawn"), free_port(), request.optim.workers
    for number in range(world):
        ours, theirs = context.Pipe(duplex=False)
        process = context.Process(target=_rank_main, args=(number, world, port, request, theirs))
        process.start()
        theirs.close()
        ranks.append(Rank(number, process, ours))


def _wait(ranks: list[Rank]) -> None:
    """Until all have ended, or one has by an error and the others had time to say theirs."""
    until = float("inf")
    while any(r.process.is_alive() for r in ranks) and time.monotonic() < until:
        multiprocessing.connection.wait([r.process.sentinel for r in ranks if r.process.is_alive()], timeout=0.5)
        for rank in ranks:
            rank.hear()
        if until == float("inf") and any(r.process.exitcode for r in ranks):
            until = time.monotonic() + GRACE_SECONDS


def _raise(request: TrainRequest, ranks: list[Rank], asked: bool) -> None:
    """What the ends of the ranks mean, together."""
    mend = [r.error for r in ranks if isinstance(r.error, VillaError)]
    if mend:
        raise mend[0]
    failed = [r for r in ranks if r.process.exitcode]
    if asked:
        raise signals.preempted(request.job, reached(Path(request.folder) / CHECKPOINTS))
    if not failed:
        return
    died = [r for r in failed if r.error is None]
    mistakes = [r for r in failed if r.error is not None and not isinstance(r.error, PASSING)]
    if mistakes and not died:
        raise RuntimeError(f"training {request.job} failed on rank {mistakes[0].number}:\n{mistakes[0].trace}")
    if not died:
        LOG.info("rank %d of %s failed:\n%s", failed[0].number, request.job, failed[0].trace)
    raise GroupDied("; ".join(r.end for r in died or failed))


def _rank_main(rank: int, world: int, port: int, request: TrainRequest, says: Any) -> None:
    signals.listen()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole terminal group; the driver ends its ranks
    die_with_parent()
    set_rank_environment(rank, world, "127.0.0.1", port)
    code = 0
    try:
        run_request(request)
    except BaseException as error:  # noqa: BLE001  told to the driver, which knows what the others say
        says.send((_pickled(error), traceback.format_exc()))
        code = getattr(error, "exit_code", 1)  # what there is to tell the driver tells
    leave(code)


def leave(code: int) -> None:
    """End this process at once: threads of its process group now and then abort one that winds up by itself."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _pickled(error: BaseException) -> bytes:
    try:
        data = pickle.dumps(error)
        pickle.loads(data)
    except Exception:  # noqa: BLE001  an error of any library may not survive it
        kind = RuntimeError if isinstance(error, PASSING) else TypeError
        return pickle.dumps(kind(f"{type(error).__name__}: {error}"))
    return data


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
