"""Embeddings of shards in use: mapped from files, and so many bytes of them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from villa_dist.data import samples
from villa_dist.data.samples import Samples, mapped


@pytest.mark.parametrize("shape", [(7, 5), (0, 5), (1, 0)])
def test_mapped_numbers_are_the_same(shape: tuple[int, int]) -> None:
    array = np.random.default_rng(0).normal(size=shape).astype(np.float16)
    found = mapped(array[:, ::-1])
    assert np.array_equal(found, array[:, ::-1]) and found.dtype == np.float16
    assert isinstance(found, np.memmap) == bool(array.size)


def test_the_oldest_are_closed_by_number_and_by_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []

    def opening(dataset: str, shard: str, stage: str | None, embeddings: bool) -> Any:
        opened.append(shard)
        return SimpleNamespace(embedding=np.zeros(100, np.uint8))

    monkeypatch.setattr(samples, "OpenShard", opening)
    monkeypatch.setattr(samples, "OPEN_BYTES", 250)
    data = Samples("nowhere", None, images=False, embeddings=True, max_pixels=1)
    data.__dict__["manifest"] = SimpleNamespace(shards=[f"s{n}" for n in range(9)])
    for n in (0, 1, 0, 2, 0, 1):  # 0 is used again before 2 comes: 1 is the oldest then
        data.shard(n)
    assert opened == ["s0", "s1", "s2", "s1"]
    monkeypatch.setattr(samples, "OPEN_BYTES", 10)
    for n in (3, 3, 3):
        data.shard(n)
    assert opened[4:] == ["s3"], "one stays open, however large"
    monkeypatch.setattr(samples, "OPEN_BYTES", 1 << 30)
    monkeypatch.setattr(samples, "OPEN_SHARDS", 2)
    for n in (4, 5, 4, 5):
        data.shard(n)
    assert opened[5:] == ["s4", "s5"]
