"""Activation checkpointing: of each block of a tower only the input is kept, and the block is computed again in the backward
pass (Chen et al., arXiv 1604.06174). A block is a transformer layer or a ResNet's bottleneck.

Blocks that normalise by their batch would count it twice, and talk to other ranks once more: refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor, nn
from torch.autograd import Function
from torch.utils.checkpoint import checkpoint

from shards.errors import VillaError
from villa_dist.encoders.clip_rn50 import Bottleneck, FixedBatchNorm
from villa_dist.encoders.clip_text import Block


def recompute_blocks(module: nn.Module) -> int:
    """Make every block of `module` one that is computed again; how many there are.

    Raises: VillaError when there is none, or a layer normalises by its batch.
    """
    for name, layer in module.named_modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm) and not isinstance(layer, FixedBatchNorm):
            raise VillaError(
                f"activation_checkpointing: {name} normalises by the statistics of its batch, which a second pass would "
                "count twice; leave it out, or take a tower without them (model.image.kind: hf or clip_rn50)"
            )
    found = list(blocks(module))
    if not found:
        raise VillaError(
            "activation_checkpointing: nothing that is trained here has blocks to compute again; leave it out"
        )
    for part in found:
        part.forward = again(part.forward)
    return len(found)


def blocks(module: nn.Module) -> Iterator[nn.Module]:
    """Blocks with something to train, in order."""
    for part in module.modules():
        layers = getattr(part, "layers", None)
        mine = isinstance(part, Bottleneck | Block)
        for each in [part] if mine else layers if isinstance(layers, nn.ModuleList) else []:
            if any(p.requires_grad for p in each.parameters()):
                yield each


class _First(Function):
    """The identity, whose backward asks for a tensor that was not kept: so a block is computed again before the backward of
    its last layer begins. ZeRO-3 gathers that layer's weights for its backward, and a second forward would let them go."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x.new_empty(0))
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        assert ctx.saved_tensors
        return grads[0]


def again(forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A block's forward, of which nothing but the input is kept."""

    def whole(*args: Any, **kwargs: Any) -> Tensor:
        out: Tensor = _First.apply(forward(*args, **kwargs))
        return out

    def run(*args: Any, **kwargs: Any) -> Tensor:
        out: Tensor = checkpoint(whole, *args, use_reentrant=False, **kwargs)
        return out

    return run
