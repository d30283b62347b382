"""A sample of shards that is decided by their names: the same for every worker, run and order, and it grows by additions."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

ALL = 1 << 64


def rank(shard: str) -> int:
    """A shard's place, 0 to ALL - 1, as random as a hash."""
    return int.from_bytes(hashlib.sha256(shard.encode()).digest()[:8], "big")


def bound(shards: Sequence[str], fraction: float) -> int:
    """Shards whose rank lies below this are in the sample: ceil(fraction * n) of them, so at least one for a fraction
    above 0."""
    count = math.ceil(fraction * len(shards))
    if count >= len(shards):
        return ALL
    return sorted(rank(s) for s in shards)[count]


def chosen(shard: str, below: int) -> bool:
    return rank(shard) < below
