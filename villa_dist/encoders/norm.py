"""Batch normalisation over the *global* batch, on any device and any number of ranks.

torch's SyncBatchNorm needs a GPU, and per-rank statistics would make a run depend on its world size. Here the
statistics are those of all ranks' places together, so 1, 2 and 4 ranks compute the same step.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd import Function

from villa_dist.distributed import world_size

_OVER = (0, 2, 3)


class _GlobalNorm(Function):
    """x (N C H W) -> (x - mean) / std over all ranks' N, H, W; mean and unbiased variance are returned for the buffers."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
        count = x.new_full((1,), float(x.numel() // x.shape[1]), dtype=torch.float64)
        packed = torch.cat([x.sum(_OVER).double(), (x * x).sum(_OVER).double(), count])
        dist.all_reduce(packed)
        total, squares, number = packed.split([x.shape[1], x.shape[1], 1])
        number = number.clamp(min=1)
        mean = total / number
        variance = (squares / number - mean * mean).clamp(min=0)
        inverse = torch.rsqrt(variance + eps).to(x.dtype)
        normal = (x - mean.to(x.dtype).view(1, -1, 1, 1)) * inverse.view(1, -1, 1, 1)
        ctx.save_for_backward(normal, inverse, number.to(x.dtype))
        unbiased = variance * number / (number - 1).clamp(min=1)
        stats = mean.to(x.dtype), unbiased.to(x.dtype)
        ctx.mark_non_differentiable(*stats)
        return normal, *stats

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        normal, inverse, number = ctx.saved_tensors
        grad = grads[0]
        packed = torch.cat([grad.sum(_OVER), (grad * normal).sum(_OVER)])
        dist.all_reduce(packed)
        mean_grad, mean_product = (packed / number).chunk(2)
        centred = grad - mean_grad.view(1, -1, 1, 1) - normal * mean_product.view(1, -1, 1, 1)
        return centred * inverse.view(1, -1, 1, 1), None


class GlobalBatchNorm(nn.BatchNorm2d):
    """nn.BatchNorm2d on one rank; the same over the global batch on several."""

    def forward(self, input: Float[Tensor, "N C H W"]) -> Float[Tensor, "N C H W"]:
        if not self.training:
            return super().forward(input)
        if world_size() == 1:
            if input.numel() // input.shape[1] > 1:
                return super().forward(input)
            return input * 0.0 + self.bias.view(1, -1, 1, 1)  # no statistics in one place (or none)
        normal, mean, variance = _GlobalNorm.apply(input, self.eps)
        with torch.no_grad():
            assert self.num_batches_tracked is not None
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance, self.momentum)
        out: Tensor = normal * self.weight.view(1, -1, 1, 1) + self.bias.view(1, -1, 1, 1)
        return out
