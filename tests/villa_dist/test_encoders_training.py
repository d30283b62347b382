"""Published towers in the trainer: two steps through the engine, and the whole pipeline from a checkpoint."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

os.environ.setdefault("DS_ACCELERATOR", "cpu")

import pytest
import tiny_checkpoints
import torch
from torch.multiprocessing.spawn import spawn

from villa_dist import models
from villa_dist.config import ModelConfig
from villa_dist.config_train import OptimConfig
from villa_dist.data.loader import PairBatch
from villa_dist.train.objective import RegionObjective, WholeObjective
from villa_dist.vlm.model import RegionVLM

PROMPTS = [["a cat", "the cat"], ["two"], ["red dog"]]


def batch(seed: int) -> PairBatch:
    make = torch.Generator().manual_seed(seed)
    sizes = torch.tensor([[60, 50], [48, 70], [33, 64], [60, 70]])
    low = torch.rand(6, 2, generator=make) * 20
    return PairBatch(
        pixels=torch.randint(0, 256, (4, 3, 60, 70), dtype=torch.uint8, generator=make),
        texts=["a cat . red", "two dogs", "red dog", "a"],
        boxes=torch.cat([low, low + 5 + torch.rand(6, 2, generator=make) * 8], 1),
        image_of=torch.tensor([0, 0, 1, 2, 3, 3]),
        region=torch.tensor([0, 1, 2, 3, 4, 5]),
        attribute=torch.tensor([0, 1, 2, 0, 1, 2]),
        feature=None,
        images=4,
        sizes=sizes,
    )


def two_steps(rank: int, folder: str, objective: str, out: str) -> None:
    """In a process of its own, since DeepSpeed keeps global state."""
    from villa_dist.train.engine import Engine, init_process_group
    from villa_dist.train.local import free_port, leave, set_rank_environment

    set_rank_environment(0, 1, "127.0.0.1", free_port())
    torch.set_num_threads(1)
    init_process_group()
    vlm = RegionVLM(ModelConfig.model_validate({"image": {"kind": "hf"}, "weights": folder}))
    module = WholeObjective(vlm) if objective == "whole" else RegionObjective(vlm, PROMPTS)
    before = {n: p.detach().clone() for n, p in module.named_parameters()}
    engine = Engine(module, OptimConfig(batch_images=4, learning_rate=1e-3))
    losses = []
    for step in range(2):
        loss = engine(batch(step))
        losses.append(loss.item())
        engine.step(loss, 1e-3)
    moved = [n for n, p in engine.module.named_parameters() if not torch.equal(p.detach(), before[n])]
    models.write(f"{out}/model", vlm.eval(), "f")
    Path(out, "result.json").write_text(json.dumps({"losses": losses, "moved": moved, "all": list(before)}))
    engine.close()
    leave(0)


@pytest.mark.parametrize(("family", "objective"), [("clip", "region"), ("siglip2", "whole")])
def test_two_steps_move_both_towers(tmp_path: Path, family: str, objective: str) -> None:
    tiny_checkpoints.write(family, tmp_path / "checkpoint")
    spawn(two_steps, args=(str(tmp_path / "checkpoint"), objective, str(tmp_path)), nprocs=1)
    result: dict[str, Any] = json.loads((tmp_path / "result.json").read_text())
    assert all(0 < loss < 50 for loss in result["losses"])
    still = set(result["all"]) - set(result["moved"])
    allowed = ("k_proj.bias",)  # a constant added to all keys changes no attention
    if objective == "region":  # whose last layer attends to nothing: values alone
        allowed = (
            *allowed,
            *(f"image.model.encoder.layers.2.self_attn.{p}_proj.{k}" for p in "qk" for k in ("weight", "bias")),
        )
    assert not [n for n in still if not n.endswith(allowed)]
    again = models.load_vlm(str(tmp_path / "model"))
    assert torch.isfinite(again.embed_whole(batch(0).pixels)).all()


@pytest.mark.slow
@pytest.mark.parametrize(("family", "encoder"), [("clip", "frozen"), ("siglip", "end_to_end")])
def test_a_run_from_a_checkpoint(tmp_path: Path, family: str, encoder: str) -> None:
    """`pretrain.steps: 0`: the one-to-one VLM is the checkpoint, and ViLLA trains on from it."""
    checkpoint = tmp_path / "checkpoint"
    model, _ = tiny_checkpoints.write(family, checkpoint)
    steps = ("steps=2", "batch_images=8", "workers=1", "warmup_steps=1", "checkpoint_steps=1")
    sets = [
        *(f"run={tmp_path}/run", "runner=local", "docmnist.shard_images=16", "regions.batch_images=10"),
        "docmnist.budget={train: 400, validation: 60, test: 200}",
        *("model.image.kind=hf", f"model.weights={checkpoint}", "pretrain.steps=0", f"mapping.encoder={encoder}"),
        *(f"{job}.{step}" for job in ("train", "mapping.fit") for step in steps),
    ]
    (tmp_path / "config.yaml").write_text("seed: 0\n")
    command = [sys.executable, "-m", "cluster", "run", str(tmp_path / "config.yaml")]
    command += [part for s in sets for part in ("--set", s)]
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    ended = subprocess.run(command, capture_output=True, text=True, env=env, timeout=800)
    assert ended.returncode == 0, ended.stderr[-3000:]
    assert len(ended.stdout.splitlines()) == 1
    metrics = json.loads(ended.stdout)["metrics"]
    assert {"one_to_one", "villa", "mapping"} <= set(metrics)
    one = models.load_vlm(f"{tmp_path}/run/models/one_to_one")
    state = model.state_dict()
    name = "encoder.layers.0.mlp.fc1.weight"
    assert torch.equal(one.image.model.state_dict()[name], state[f"vision_model.{name}"])
    villa = models.load_vlm(f"{tmp_path}/run/models/villa")
    assert not torch.equal(villa.image.model.state_dict()[name], state[f"vision_model.{name}"])
    values = json.loads((checkpoint / "preprocessor_config.json").read_text())
    (checkpoint / "preprocessor_config.json").write_text(json.dumps({**values, "image_mean": [0.1, 0.1, 0.1]}))
    again = subprocess.run(command, capture_output=True, text=True, env=env, timeout=800)
    assert again.returncode == 2 and "checkpoint" in again.stderr and "Traceback" not in again.stderr
