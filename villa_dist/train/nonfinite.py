"""A loss or gradient that is not finite: training stops on all ranks, and the samples of that step are written down."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from shards.errors import VillaError
from villa_dist.config_train import OptimConfig
from villa_dist.data.loader import Batches
from villa_dist.distributed import rank, world_size
from villa_dist.names import NONFINITE
from villa_dist.train.agree import gathered


class NonFiniteError(VillaError):
    """The loss or the gradient of a step is infinite or no number."""


def stopped(
    batches: Batches, step: int, loss: float, norm: float | None, folder: Path, config: OptimConfig
) -> NonFiniteError:
    """The error to raise at `step` (counted from 0), alike on every rank; called by every rank.

    Writes `<job>/nonfinite/step-XXXXXXXX.json`: the losses, and shard, row and key of each sample of each rank.
    """
    losses = gathered(loss)
    path = folder / NONFINITE / f"step-{step + 1:08d}.json"
    where = str(path)
    if rank() == 0:
        samples = [s for r in range(world_size()) for s in _samples(batches, step, r)]
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            content = {"job": folder.name, "step": step + 1, "loss": [repr(v) for v in losses], "grad_norm": repr(norm)}
            path.write_text(json.dumps({**content, "samples": samples}, indent=1) + "\n", encoding="utf-8")
        except OSError as error:
            where = f"nowhere ({error})"
    what = f"the loss of {folder.name} is {next((v for v in losses if v - v != 0), loss)}"
    if all(v - v == 0 for v in losses):
        what = f"the loss of {folder.name} is {loss} and the norm of its gradient {norm}"
    return NonFiniteError(
        f"{what} at step {step + 1} (seed {batches.seed}, global batch {config.batch_images}); the samples of that step are "
        f"in {where}: look at them, or lower its learning_rate ({config.learning_rate}) and run again with --force"
    )


def _samples(batches: Batches, step: int, of_rank: int) -> list[dict[str, Any]]:
    return [
        {"rank": of_rank, "epoch": epoch, "shard": shard, "row": row, "key": key}
        for epoch, shard, row, key in batches.keys(step, of_rank)
    ]
