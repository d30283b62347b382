"""Which parameters learn how fast: parameter groups by tower, depth and shape.

The rate of a group is the job's times its `factor`: `text_learning_rate` in a text tower, layer_decay ** (blocks above) in
an image tower (BEiT, arXiv 2106.08254, section 3.1), 1 elsewhere. Parameters of one dimension (biases, norms, scales) have
no weight decay.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import nn

from villa_dist.config_train import OptimConfig

TOWER = re.compile(r"(?:^|\.)(image|tower|text)\.(.+)")  # RegionVLM's two, and a mapping expert's
STEM = re.compile(r"(model\.(embeddings|pre_layrnorm)|stem|conv\d|bn\d)\b")
BLOCK = (  # of hf, clip_rn50 and conv, with what is added to the number to count from 1
    (re.compile(r"model\.encoder\.layers\.(\d+)\."), 1),
    (re.compile(r"layer(\d)\."), 0),
    (re.compile(r"head(\.)"), 1),
)


@dataclass(frozen=True)
class Group:
    """Parameters with one learning rate, `factor` times the job's, and one weight decay."""

    params: tuple[nn.Parameter, ...]
    factor: float
    weight_decay: float

    def as_torch(self) -> dict[str, Any]:
        return {"params": list(self.params), "weight_decay": self.weight_decay}


def parameter_groups(module: nn.Module, config: OptimConfig) -> list[Group]:
    """All that is trained, each parameter once; no group is empty. Those of one factor are together, the fastest first."""
    named = {name: p for name, p in module.named_parameters() if p.requires_grad}
    factors = rate_factors(named, config.layer_decay, config.text_learning_rate)
    found = []
    for factor in sorted(set(factors.values()), reverse=True):
        for decayed in (True, False):
            params = tuple(p for n, p in named.items() if factors[n] == factor and (p.ndim > 1) == decayed)
            if params:
                found.append(Group(params, factor, config.weight_decay if decayed else 0.0))
    return found


def rate_factors(names: Iterable[str], layer_decay: float, text: float) -> dict[str, float]:
    """What the learning rate of each named parameter of an objective is multiplied by."""
    parts = {name: TOWER.search(name) for name in names}
    blocks = max((block(m[2]) or 0 for m in parts.values() if m and m[1] != "text"), default=0)
    found = {}
    for name, match in parts.items():
        if match is None:
            found[name] = 1.0
        elif match[1] == "text":
            found[name] = text
        else:
            found[name] = layer_decay ** (blocks + 1 - depth(match[2], blocks))
    return found


def depth(name: str, blocks: int) -> int:
    """Of a parameter of an image tower, by its name there: 0 what comes before the blocks, 1 to `blocks` (transformer
    layers, a ResNet's stages), blocks + 1 what follows them."""
    number = block(name)
    return blocks + 1 if number is None else number


def block(name: str) -> int | None:
    """Which block, counted from 1; 0 before them; None after them."""
    if STEM.match(name):
        return 0
    for pattern, first in BLOCK:
        if match := pattern.match(name):
            return first + (int(match[1]) if match[1].isdigit() else 0)
    return None
