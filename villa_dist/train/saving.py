"""When a checkpoint is due, and what is done with it: written by all ranks, sealed and pruned by rank 0, copied away."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType

import torch

from shards.errors import VillaError
from villa_dist.config_train import OptimConfig
from villa_dist.distributed import barrier, rank
from villa_dist.train import checkpoint
from villa_dist.train.checkpoint import TrainState
from villa_dist.train.engine import Engine
from villa_dist.train.ledger import Ledger
from villa_dist.train.remote import Copies, place_of


@dataclass
class Saver:
    """`with Saver(...) as saver:` around a job's steps, on every rank. `begun` is what every state has in common."""

    engine: Engine
    folder: Path
    config: OptimConfig
    begun: TrainState
    ledger: Ledger | None = None
    _copies: Copies | None = None
    _found: dict[str, float] = field(default_factory=dict)  # by the last validation
    _loss: torch.Tensor | None = None  # the sum since the last checkpoint
    _steps: int = 0
    _last: float = 0.0

    def __enter__(self) -> Saver:
        self._last = time.monotonic()
        if self.config.checkpoint_copy and rank() == 0:
            store = place_of(self.config.checkpoint_copy, self.folder.parent.name, self.begun.fingerprint)
            self._copies = Copies(store, self.config.keep_checkpoints, self.config.keep_best)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._copies:
            self._copies.close()

    def close(self) -> None:
        """Wait for the last copy, on every rank, so that none ends before it is there."""
        if self._copies:
            self._copies.close()
        barrier()

    def stepped(self, loss: torch.Tensor) -> None:
        """Hear of a step's loss, whose mean since the last checkpoint is the next one's."""
        self._loss = loss.detach().clone() if self._loss is None else self._loss + loss.detach()
        self._steps += 1

    def measured(self, found: Mapping[str, float]) -> Mapping[str, float]:
        """Hear of what a validation found: what the checkpoints from here on may be kept by, beside the loss."""
        self._found = dict(found)
        return found

    @property
    def overdue(self) -> bool:
        """Whether `checkpoint_minutes` have passed on this rank's clock; the ranks go by rank 0's (`agree`)."""
        minutes = self.config.checkpoint_minutes
        return minutes is not None and time.monotonic() - self._last >= 60 * minutes

    def due(self, step: int, steps: int) -> bool:
        """Whether one is due after so many steps whatever the time."""
        return step % self.config.checkpoint_steps == 0 or step == steps

    def save(self, step: int) -> None:
        """Write a checkpoint after `step` steps; every rank calls it.

        Raises: VillaError when what `keep_best` names is not measured; StorageFullError, and the checkpoint before it stays.
        """
        best = self.config.keep_best
        mean = {} if self._loss is None else {"loss": float(self._loss) / self._steps}
        measured, self._loss, self._steps = {**mean, **self._found}, None, 0
        if best is not None and best not in measured and (self._found or not best.startswith("validation_")):
            raise VillaError(
                f"keep_best is {best!r}, which is not measured in training; known here: {', '.join(sorted(measured))}"
            )
        state = replace(self.begun, step=step, measured={k: float(v) for k, v in measured.items()})
        tag = checkpoint.tag(step)
        place = self.folder / tag
        if rank() == 0:
            checkpoint.remove(place)  # what a save that was cut off left, perhaps by more ranks
        barrier()
        with checkpoint.save_errors(str(place)):
            self.engine.save(self.folder, tag, {"step": step})
        barrier()
        if rank() == 0:
            checkpoint.seal(place, state)
            self._after(place, state)
        barrier()
        self._last = time.monotonic()

    def _after(self, place: Path, state: TrainState) -> None:
        keep, best = self.config.keep_checkpoints, self.config.keep_best
        if self.ledger:
            self.ledger.saved(state.step)
        if self._copies:
            self._copies.offer(place)
        checkpoint.prune(self.folder, keep, best, self._copies.busy if self._copies else ())
