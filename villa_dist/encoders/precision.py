"""Which device and number format the embedding stages use.

Half precision is autocast: weights and reductions stay fp32, products are bf16 or fp16. bf16 embeddings have a cosine above
1 - 4e-5 with fp32's, on random weights of real size; see docs/models.md.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from shards.errors import VillaError


def best_device() -> torch.device:
    """A GPU where this process has one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def number_format(dtype: str, device: torch.device) -> torch.dtype:
    """auto: bf16 on GPUs that have it, fp16 on others, fp32 on a CPU.

    Raises: VillaError when the device has no such format.
    """
    cuda = device.type == "cuda"
    if dtype == "auto":
        if not cuda:
            return torch.float32
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    if dtype == "fp16" and not cuda:
        raise VillaError(
            f"model.dtype=fp16 has no use on a {device.type}, which computes it slowly; use auto, fp32 or bf16"
        )
    if dtype == "bf16" and cuda and not torch.cuda.is_bf16_supported():
        raise VillaError("model.dtype=bf16: this GPU has no bfloat16; use auto, fp16 or fp32")
    return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[dtype]


def autocast(dtype: str, device: torch.device) -> AbstractContextManager[Any]:
    chosen = number_format(dtype, device)
    return nullcontext() if chosen == torch.float32 else torch.autocast(device.type, dtype=chosen)
