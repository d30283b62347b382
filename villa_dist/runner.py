"""Where work runs: the protocol, and the runner that uses this process. `cluster` has the one that uses Ray.

Both run the same stage objects and the same training function, so their output is the same byte for byte.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Protocol

from shards.work import Again, Job, run_here
from villa_dist.train.elastic import with_restarts
from villa_dist.train.jobs import TrainRequest
from villa_dist.train.local import run_group


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
        with_restarts(request.job, Path(request.folder), request.optim.restarts, partial(run_group, request))

    def close(self) -> None:
        pass
