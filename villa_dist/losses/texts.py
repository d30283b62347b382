"""Texts that the ranks encoded in equal slices, whole on every rank."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd import Function

from villa_dist.distributed import all_gather_into, reduce_scatter_into, world_size


def widened(x: Tensor) -> Tensor:
    """Half precision as fp32; others as they are."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


class _GatherTexts(Function):
    """Equal slices (k, D) of each rank -> (world * k, D) on every rank. The gradient is summed over ranks."""

    @staticmethod
    def forward(ctx: Any, part: Tensor) -> Tensor:
        ctx.rows = part.shape[0]
        whole = part.new_empty(world_size() * part.shape[0], part.shape[1])
        all_gather_into(whole, part.contiguous())
        return whole

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        grad = grads[0].contiguous()
        part = grad.new_empty(ctx.rows, grad.shape[1])
        reduce_scatter_into(part, grad)
        return part


def gather_texts(part: Float[Tensor, "k D"]) -> Float[Tensor, "T D"]:
    """Texts encoded in equal slices by the ranks, whole on every rank, with gradient to each slice. Half precision is
    widened to fp32, so that gradients are summed over ranks in it."""
    wide = widened(part)
    if world_size() == 1:
        return wide
    whole: Tensor = _GatherTexts.apply(wide)
    return whole
