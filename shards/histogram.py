"""Percentiles of numbers that are too many to keep: logarithmic buckets 1 % wide, which add."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

BASE = 1.01
PERCENTILES = (1, 5, 25, 50, 75, 95, 99)
EXACT = 100  # whole numbers below this keep a bucket of their own


@dataclass
class Histogram:
    """Counts of numbers from 0. Exact below EXACT for whole numbers; above, percentiles are within 1 %."""

    buckets: Counter[int] = field(default_factory=Counter)
    count: int = 0
    total: float = 0.0
    lowest: float = float("inf")
    highest: float = float("-inf")

    def add(self, values: Any) -> None:
        array = np.asarray(values, np.float64).ravel()
        if not array.size:
            return
        ids, counts = np.unique(_bucket(array), return_counts=True)
        self.buckets.update(dict(zip(ids.tolist(), counts.tolist(), strict=True)))
        self.count += array.size
        self.total += float(array.sum())
        self.lowest, self.highest = min(self.lowest, float(array.min())), max(self.highest, float(array.max()))

    def merge(self, other: Histogram) -> None:
        self.buckets.update(other.buckets)
        self.count += other.count
        self.total += other.total
        self.lowest, self.highest = min(self.lowest, other.lowest), max(self.highest, other.highest)

    def percentile(self, share: float) -> float:
        """The smallest value that at least `share` percent do not exceed."""
        wanted, seen = max(1, int(np.ceil(self.count * share / 100.0))), 0
        for bucket in sorted(self.buckets):
            seen += self.buckets[bucket]
            if seen >= wanted:
                return float(np.clip(_value(bucket), self.lowest, self.highest))
        return self.highest

    def summary(self) -> dict[str, float]:
        """min, percentiles, max and mean; empty where nothing was counted."""
        if not self.count:
            return {}
        middle = {f"p{p}": _round(self.percentile(p)) for p in PERCENTILES}
        return {
            "min": _round(self.lowest),
            **middle,
            "max": _round(self.highest),
            "mean": round(self.total / self.count, 2),
        }

    def to_json(self) -> dict[str, Any]:
        return {"b": [[k, v] for k, v in self.buckets.items()], "t": self.total, "l": self.lowest, "h": self.highest}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Histogram:
        buckets = Counter({int(k): int(v) for k, v in value["b"]})
        return cls(buckets, sum(buckets.values()), value["t"], value["l"], value["h"])


def _bucket(values: np.ndarray) -> np.ndarray:
    whole = np.minimum(values, EXACT).astype(np.int64)
    high = np.floor(np.log(np.maximum(values, EXACT) / EXACT) / np.log(BASE)).astype(np.int64)
    return np.where(values < EXACT, whole, EXACT + high)


def _value(bucket: int) -> float:
    return float(bucket) if bucket < EXACT else EXACT * BASE ** (bucket - EXACT + 0.5)


def _round(value: float) -> float:
    return round(value) if value >= EXACT or value == int(value) else round(value, 2)
