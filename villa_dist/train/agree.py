"""What all ranks must know alike: one small reduction a step, and what rank 0 finds for all."""

from __future__ import annotations

import secrets
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from shards.errors import VillaError, storage_errors
from villa_dist.distributed import rank, world_size

T = TypeVar("T")


@dataclass(frozen=True)
class Verdict:
    """Of a step, the same on every rank: whether any rank's numbers are not finite, whether any was asked to stop, and
    whether rank 0 says it is time to save."""

    nonfinite: bool
    stop: bool
    save: bool


def agree(loss: Tensor, norm: float | None, *, stop: bool, save: bool) -> Verdict:
    """Called by every rank after each step. `save` counts on rank 0 only, whose clock decides."""
    bad = ~torch.isfinite(loss.detach())
    if (norm is not None and norm != norm) or norm in (float("inf"), float("-inf")):
        bad = torch.ones_like(bad)
    said = torch.stack([bad, bad.new_tensor(stop), bad.new_tensor(save and rank() == 0)]).to(torch.int32)
    if world_size() > 1:
        dist.all_reduce(said, dist.ReduceOp.MAX)
    return Verdict(*(bool(x) for x in said.tolist()))


def from_rank_0(find: Callable[[], T]) -> T:
    """What `find` returns on rank 0, on every rank. Raises: its VillaError, on every rank."""
    found: list[Any] = [None, None]
    if rank() == 0:
        try:
            found[0] = find()
        except VillaError as error:
            found[1] = error
    if world_size() > 1:
        dist.broadcast_object_list(found)
    if found[1] is not None:
        raise found[1]
    result: T = found[0]
    return result


def gathered(value: T) -> list[T]:
    """Every rank's value, in rank order, on every rank."""
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def check_shared(folder: Path) -> None:
    """Raises: VillaError on every rank when some rank does not see `folder` as rank 0 does.

    A checkpoint is written by all ranks and sealed by one, so nodes must share the folder it is in.
    """
    sign = folder / from_rank_0(lambda: _sign(folder))  # a new name, of which no node remembers that it was not there
    seen = gathered((socket.gethostname(), sign.is_file()))
    if rank() == 0:
        sign.unlink(missing_ok=True)
    blind = sorted({host for host, there in seen if not there})
    if blind:
        raise VillaError(
            f"{folder} on {seen[0][0]} is not seen by {', '.join(blind)}: all workers of a training job write one "
            "checkpoint there, so it must be on a file system that the nodes share; set `run` to a folder on one, or train "
            "on one node"
        )


def _sign(folder: Path) -> str:
    name = f".shared-{secrets.token_hex(8)}"
    with storage_errors(str(folder)):
        folder.mkdir(parents=True, exist_ok=True)
        for old in folder.glob(".shared-*"):
            old.unlink(missing_ok=True)
        (folder / name).touch()
    return name
