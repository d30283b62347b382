"""Number formats in training: which one, where it ends, and the loss scale that fp16 needs.

Half precision is autocast, as in the embedding stages: products are bf16 or fp16; weights, gradients, moments, norms,
temperatures, batch statistics and losses stay fp32. So checkpoints and models are fp32 whatever the format.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch

from shards.errors import VillaError


def training_format(precision: str, device: torch.device) -> torch.dtype:
    """auto: bf16 on a GPU that has it, not by emulation; else fp32.

    Raises: VillaError when the device has no such format.
    """
    cuda = device.type == "cuda"
    bf16 = not cuda or torch.cuda.is_bf16_supported(including_emulation=False)
    if precision == "auto":
        return torch.bfloat16 if cuda and bf16 else torch.float32
    if precision == "fp16" and not cuda:
        raise VillaError(f"precision=fp16 has no use on a {device.type}, which computes it slowly; use fp32 or bf16")
    if precision == "bf16" and not bf16:
        raise VillaError("precision=bf16: this GPU has no bfloat16; use auto, fp16 or fp32")
    return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]


def in_format(forward: Callable[..., Any], dtype: torch.dtype, device: torch.device) -> Callable[..., Any]:
    """A module's forward under autocast. DeepSpeed ends any autocast around its own call, so it goes inside."""
    if dtype == torch.float32:
        return forward

    @functools.wraps(forward)
    def run(*args: Any, **kwargs: Any) -> Any:
        with torch.autocast(device.type, dtype=dtype):
            return forward(*args, **kwargs)

    return run


def full_precision(device: torch.device) -> AbstractContextManager[Any]:
    """A block whose products are fp32, whatever the format around it: losses, and what they are made of."""
    return torch.autocast(device.type, enabled=False)


class LossScale:
    """What an fp16 loss is multiplied by, so that small gradients are not lost: halved after a step whose gradient
    overflowed, which is skipped, and doubled after GROW_AFTER steps without.

    At 1 nothing is left to lower: an overflow there is an infinite gradient, and an error as it is in other formats.
    """

    FIRST, MOST = 2.0**16, 2.0**24
    GROW_AFTER = 1000

    def __init__(self) -> None:
        self.value, self.steps = self.FIRST, 0

    def stepped(self, *, overflow: bool) -> bool:
        """Hear of a step; whether it counts as skipped."""
        if overflow:
            skipped = self.value > 1.0
            self.value, self.steps = max(self.value / 2, 1.0), 0
            return skipped
        self.steps += 1
        if self.steps == self.GROW_AFTER:
            self.value, self.steps = min(2 * self.value, self.MOST), 0
        return False

    def state(self) -> dict[str, float]:
        return {"value": self.value, "steps": self.steps}

    def load(self, state: dict[str, float]) -> None:
        self.value, self.steps = float(state["value"]), int(state["steps"])
