"""Batch normalisation over the *global* batch, on any device and any number of ranks.

torch's SyncBatchNorm needs a GPU, and per-rank statistics would make a run depend on its world size. Here the
statistics are those of all ranks' places together, so 1, 2 and 4 ranks compute the same step.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd import Function

from villa_dist.distributed import world_size


class _GlobalNorm(Function):
    """Batch norm of x (N C H W) over all ranks' N, H, W. Also returns mean and unbiased variance, for the buffers.

    Normalising and its local gradients are torch's fused eval-mode kernels; what the batch statistics add to the input's
    gradient is one affine function of x a channel.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
        channels = x.shape[1]
        rows = _rows(x)
        packed = torch.cat([rows.sum(0), rows.square().sum(0), x.new_tensor([len(rows)])]).double()
        dist.all_reduce(packed)
        total, squares, number = packed.split([channels, channels, 1])
        number = number.clamp(min=1)
        wide_mean = total / number
        wide_variance = (squares / number - wide_mean * wide_mean).clamp(min=0)
        mean, variance = wide_mean.to(x.dtype), wide_variance.to(x.dtype)
        normal = F.batch_norm(x, mean, variance, weight, bias, training=False, eps=eps) if x.numel() else x.clone()
        ctx.save_for_backward(x, weight, mean, variance, number.to(x.dtype))
        ctx.eps = eps
        unbiased = (wide_variance * number / (number - 1).clamp(min=1)).to(x.dtype)
        ctx.mark_non_differentiable(mean, unbiased)
        return normal, mean, unbiased

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, variance, number = ctx.saved_tensors
        inverse = torch.rsqrt(variance + ctx.eps)
        if x.numel():
            dx, dweight, dbias = torch.ops.aten.native_batch_norm_backward(
                grads[0], x, weight, mean, variance, mean, inverse, False, ctx.eps, [True, True, True]
            )
        else:  # the fused kernel divides by the number of places
            dx, dweight, dbias = torch.zeros_like(x), torch.zeros_like(weight), torch.zeros_like(weight)
        packed = torch.cat([dbias, dweight])  # sum of the gradient, and of the gradient times the normalised input
        dist.all_reduce(packed)
        mean_grad, mean_product = (packed / number).chunk(2)
        slope = -weight * inverse * inverse * mean_product
        offset = -weight * inverse * mean_grad - slope * mean
        dx += torch.addcmul(offset.view(1, -1, 1, 1), x, slope.view(1, -1, 1, 1))
        return dx, dweight, dbias, None


def _rows(x: Tensor) -> Tensor:
    """N C H W as places x channels, without a copy for channels-last maps."""
    return x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])


class GlobalBatchNorm(nn.BatchNorm2d):
    """nn.BatchNorm2d on one rank; the same over the global batch on several."""

    def forward(self, input: Float[Tensor, "N C H W"]) -> Float[Tensor, "N C H W"]:
        if not self.training:
            return super().forward(input)
        if world_size() == 1:
            if input.numel() // input.shape[1] > 1:
                return super().forward(input)
            return input * 0.0 + self.bias.view(1, -1, 1, 1)  # no statistics in one place (or none)
        normal: Tensor
        # fp32 whatever comes in: a variance is the small difference of large sums
        normal, mean, variance = _GlobalNorm.apply(input.float(), self.weight, self.bias, self.eps)
        with torch.no_grad():
            assert self.num_batches_tracked is not None and self.momentum is not None
            assert self.running_mean is not None and self.running_var is not None
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance, self.momentum)
        return normal.to(input.dtype)
