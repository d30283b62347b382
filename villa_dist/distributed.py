"""The process group: facts that are safe to ask where there is none, and collectives with gradient.

Convention of all losses here: every rank computes the same global loss, and gradients leave a collective multiplied by
the world size, since data-parallel engines average them over ranks.
"""

from __future__ import annotations

from typing import Any

import torch.distributed as dist
from torch import Tensor
from torch.autograd import Function

# torch 2.13 renamed both
all_gather_into = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
reduce_scatter_into = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor


def world_size() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def barrier() -> None:
    if world_size() > 1:
        dist.barrier()


class _SumOverRanks(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return grads[0] * world_size()


class _GatherRows(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.rows = x.shape[0]
        whole = x.new_empty(world_size() * x.shape[0], *x.shape[1:])
        all_gather_into(whole, x.contiguous())
        return whole

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        start = rank() * ctx.rows
        return grads[0][start : start + ctx.rows] * world_size()


def sum_over_ranks(x: Tensor) -> Tensor:
    """The sum of every rank's `x`, on every rank, with gradient to each."""
    if world_size() == 1:
        return x
    total: Tensor = _SumOverRanks.apply(x)
    return total


def gather_rows(x: Tensor) -> Tensor:
    """Equally many rows of every rank, end to end in rank order, with gradient to each."""
    if world_size() == 1:
        return x
    whole: Tensor = _GatherRows.apply(x)
    return whole
