"""A frozen text tower's attributes are embedded once: the same loss, gradients and history-free embeddings."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

os.environ.setdefault("DS_ACCELERATOR", "cpu")
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "villa_dist"))

import numpy as np
import pytest
import tiny_checkpoints
import torch
from rank_pool import RankPool
from test_published_ranks import PROMPTS, batch

from villa_dist.config import ModelConfig
from villa_dist.train import attribute_cache
from villa_dist.train.objective import RegionObjective
from villa_dist.vlm.model import RegionVLM


def objective(folder: str, *, cached: bool = True, prompts: list[list[str]] = PROMPTS) -> RegionObjective:
    values: dict[str, Any] = {"image": {"kind": "hf"}, "weights": folder, "text": {"frozen": True}}
    made = RegionObjective(RegionVLM(ModelConfig.model_validate(values)), prompts)
    assert made.cache is not None
    if not cached:
        made.cache = None
    return made.train()


@pytest.mark.parametrize("family", ["clip", "siglip"])
def test_the_loss_is_that_of_texts_embedded_at_each_step(tmp_path: Path, family: str) -> None:
    """fp32, within 1e-6: texts of other lengths stand beside each other."""
    tiny_checkpoints.write(family, tmp_path)
    found = []
    for cached in (True, False):
        module = objective(str(tmp_path), cached=cached)
        loss = module(batch(0, 4))
        loss.backward()
        found.append((loss.item(), {n: p.grad for n, p in module.named_parameters() if p.grad is not None}))
    (mine, grads), (expected, gradients) = found
    assert mine == pytest.approx(expected, rel=1e-6)
    assert grads.keys() == gradients.keys() and not [n for n in grads if n.startswith("vlm.text")]
    for name, gradient in gradients.items():
        assert (grads[name] - gradient).abs().max() <= 1e-6 * max(1.0, gradient.abs().max().item()), name


def test_the_tower_is_asked_once(tmp_path: Path) -> None:
    tiny_checkpoints.write("clip", tmp_path)
    module = objective(str(tmp_path))
    calls = []
    module.vlm.text.register_forward_hook(lambda tower, given, out: calls.append(tower.training))
    for _ in range(3):
        module(batch(0, 4))
    assert calls == [False], "once, and without dropout"
    assert module.vlm.text.training
    assert not [n for n in module.state_dict() if "cache" in n or "table" in n], "nothing of it in checkpoints"


def rows(rank: int, world: int, folder: str, asked: list[list[int]]) -> np.ndarray:
    """Of all attributes, after some were asked for; ranks share blocks of two."""
    words = [["a cat", "two"], ["red dog"], ["cat"], ["a dog two red"], ["dog"], ["two cat dog"], ["red"]]
    usual, attribute_cache.BLOCK = attribute_cache.BLOCK, 2
    try:
        module = objective(folder, prompts=words)
        assert module.cache is not None
        for ids in asked:
            found = module.cache(torch.tensor(ids))
            assert found.dtype == torch.float32 and not found.requires_grad
        return module.cache(torch.arange(len(words))).numpy()
    finally:
        attribute_cache.BLOCK = usual


def test_embeddings_depend_on_no_history_and_no_number_of_ranks(tmp_path: Path, ranks: RankPool) -> None:
    """Bit for bit, so that a resumed job is the job."""
    tiny_checkpoints.write("clip", tmp_path)
    first = rows(0, 1, str(tmp_path), [[0, 1, 2, 3, 4, 5, 6]])
    assert len(np.unique(first, axis=0)) == 7 and np.allclose(np.linalg.norm(first, axis=1), 1)
    for asked in ([[6]], [[3], [0, 5]], [[1], [2], [4], [6]]):
        assert np.array_equal(rows(0, 1, str(tmp_path), asked), first)
    for found in ranks.run(rows, 2, str(tmp_path), [[4], [1, 3]]):
        assert np.array_equal(found, first)
