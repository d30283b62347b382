"""What this machine can run: packages, devices, memory, and a real probe of attention on the target device."""

from __future__ import annotations

import importlib.metadata
import os
import sys
from typing import Any

from cluster.probe import storage_trouble
from cluster.session import usable_cpus

NEEDED = (
    "torch",
    "deepspeed",
    "webdataset",
    "ray",
    "accelerate",
    "transformers",
    "s3fs",
    "lvis",
    "pyarrow",
    "pydantic",
)
OPTIONAL = ("xformers", "torchvision")


def examine(storage: str | None = None) -> dict[str, Any]:
    """Lines to read, a dict of what was found, and whether everything needed is there. storage: of a run, to be tried."""
    found: dict[str, Any] = {"python": sys.version.split()[0], "cpus": usable_cpus(), "memory_gib": _memory()}
    missing = []
    for name in NEEDED + OPTIONAL:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
            if name in NEEDED:
                missing.append(name)
    import torch

    found["cuda"] = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    lines = [f"{k:<14}{v if v is not None else '(not installed)'}" for k, v in found.items()]
    if missing:
        lines.append(f"missing: {', '.join(missing)}; pip install villa-dist installs them")
    if not found["cuda"]:
        lines.append("no CUDA device: training runs on the CPU over gloo; xformers is not used")
    trouble = storage_trouble(storage) if storage else ""
    if storage:
        lines.append(trouble or f"{storage}: can be written to exclusively, as commits need it")
    return {"ok": not missing and not trouble, "found": found, "lines": lines}


def _memory() -> float:
    return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
