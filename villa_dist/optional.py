"""Packages that are used when they work and never needed."""

from __future__ import annotations

import importlib
from functools import cache
from typing import Any


@cache
def torchvision_ops() -> Any | None:
    """torchvision.ops, or None: its wheels do not import beside every torch, and fail in many ways when they do not."""
    try:
        ops = importlib.import_module("torchvision.ops")
        importlib.import_module("torch").ops.torchvision.nms  # noqa: B018  raises where the kernels are not loaded
    except Exception:  # noqa: BLE001  ImportError, OSError, RuntimeError and AttributeError have been seen
        return None
    return ops
