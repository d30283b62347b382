"""A checkpoint of one number of ranks goes on at another: the same losses and weights, all of the state restored."""

from __future__ import annotations

import resource
from pathlib import Path
from typing import Any

import pytest
import torch
from group import run_ranks
from torch import nn

from shards.errors import StorageFullError
from villa_dist.config_train import OptimConfig
from villa_dist.distributed import barrier, rank, world_size
from villa_dist.train import checkpoint
from villa_dist.train.checkpoint import TrainState
from villa_dist.train.engine import Engine
from villa_dist.train.resume import UNIVERSAL, find
from villa_dist.train.saving import Saver

ROWS, WIDE = 8, 6
BEFORE, AFTER = 4, 5
TOLERANCE = 1e-6  # of losses, relative, and of weights around 0.3: fp32, added up in another order


class Part(nn.Module):
    """Weights with decay, biases without, frozen weights, and a buffer that counts rows."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.frozen = nn.Linear(WIDE, 2 * WIDE).requires_grad_(False)
        self.inner, self.outer = nn.Linear(2 * WIDE, 7), nn.Linear(7, 1)
        self.register_buffer("seen", torch.zeros(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen += ROWS
        return (self.outer(torch.tanh(self.inner(self.frozen(x)))) - x.sum(1, keepdim=True)).square().mean()


def batch(step: int) -> torch.Tensor:
    whole = torch.randn(ROWS, WIDE, generator=torch.Generator().manual_seed(step))
    part = ROWS // world_size()
    return whole[rank() * part : (rank() + 1) * part]


def config(stage: int) -> OptimConfig:
    return OptimConfig(batch_images=ROWS, learning_rate=0.05, weight_decay=0.3, zero_stage=stage, workers=world_size())


def steps(engine: Engine, start: int, stop: int) -> list[float]:
    losses = []
    for step in range(start, stop):
        loss = engine(batch(step))
        engine.step(loss, 0.05 / (1 + step))
        total = loss.detach().clone()
        torch.distributed.all_reduce(total)
        losses.append(float(total) / world_size())
    return losses


def outcome(engine: Engine, start: int) -> dict[str, Any]:
    groups = [g["weight_decay"] for g in engine.raw.optimizer.param_groups]
    losses = steps(engine, start, start + AFTER)
    base = getattr(engine.raw.optimizer, "optimizer", engine.raw.optimizer)
    counts = [float(s["step"]) for s in base.state.values()]
    weights = {k: v.clone() for k, v in engine.full_state_dict().items()}
    return {"losses": losses, "weights": weights, "decay": groups, "counts": counts, "norm": engine.grad_norm}


def write(folder: Path, stages: list[int]) -> dict[int, dict[str, Any]]:
    """Train, save, and train on; of each stage what an undisturbed run has."""
    found = {}
    for stage in stages:
        module = Part()
        with torch.no_grad():  # so that a fresh module does not have them by chance
            module.frozen.weight.mul_(1.5)
        engine = Engine(module, config(stage))
        steps(engine, 0, BEFORE)
        place, state = folder / str(stage), TrainState(BEFORE, 0, ROWS, "data", "config", world_size())
        engine.save(place, checkpoint.tag(BEFORE), {"step": BEFORE})
        barrier()
        if rank() == 0:
            checkpoint.seal(place / checkpoint.tag(BEFORE), state)
        found[stage] = outcome(engine, BEFORE)
        engine.close()
    return found


def read(folder: Path, stages: list[int]) -> dict[int, dict[str, Any]]:
    found = {}
    for stage in stages:
        module = Part()
        start = find(folder / str(stage), config(stage), "data", "config")
        start.load_frozen(module)
        engine = Engine(module, config(stage))
        start.load(engine)
        barrier()
        left = sorted(p.name for p in (folder / str(stage)).iterdir() if p.is_dir())
        found[stage] = {**outcome(engine, start.step), "left": left, "step": start.step}
        engine.close()
    return found


def check(written: dict[int, Any], again: list[dict[int, Any]]) -> float:
    worst = 0.0
    for of_rank in again:
        for stage, found in of_rank.items():
            expected = written[stage]
            assert found["step"] == BEFORE
            assert found["left"] == [checkpoint.tag(BEFORE)], "what was converted is removed"
            assert set(found["counts"]) == {BEFORE + AFTER}, f"steps of the optimizer's parts at stage {stage}"
            assert found["decay"] == expected["decay"] == [0.3, 0.0], f"hyperparameters of groups at stage {stage}"
            assert torch.equal(found["weights"]["frozen.weight"], expected["weights"]["frozen.weight"])
            assert torch.equal(found["weights"]["seen"], expected["weights"]["seen"])
            differences = [abs(a / b - 1) for a, b in zip(found["losses"], expected["losses"], strict=True)]
            differences += [float((found["weights"][k] - v).abs().max()) for k, v in expected["weights"].items()]
            worst = max(worst, *differences)
            assert worst <= TOLERANCE, f"stage {stage}: {worst}"
    return worst


def test_two_ranks_go_on_as_one(tmp_path: Path) -> None:
    stages = [1, 3]  # 0 and 2 among the slow ones
    written = run_ranks(write, 2, tmp_path, stages)[0]
    check(written, run_ranks(read, 1, tmp_path, stages))
    assert not list(tmp_path.rglob(f"{UNIVERSAL}*"))


@pytest.mark.slow
@pytest.mark.parametrize(("wrote", "reads"), [(1, 4), (2, 1), (4, 2)])
def test_any_number_of_ranks_goes_on(tmp_path: Path, wrote: int, reads: int) -> None:
    stages = [0, 1, 2, 3]
    written = run_ranks(write, wrote, tmp_path, stages)[0]
    worst = check(written, run_ranks(read, reads, tmp_path, stages))
    print(f"{wrote} -> {reads} ranks: largest difference {worst:.1e}")


@pytest.mark.slow
def test_the_same_number_of_ranks_goes_on_bit_for_bit(tmp_path: Path) -> None:
    stages = [0, 1, 2, 3]
    written = run_ranks(write, 2, tmp_path, stages)[0]
    for found in run_ranks(read, 2, tmp_path, stages):
        for stage in stages:
            assert found[stage]["losses"] == written[stage]["losses"]
            for name, value in written[stage]["weights"].items():
                assert torch.equal(found[stage]["weights"][name], value), name


# ---- a disk that is full


def fill(folder: Path) -> tuple[str, str]:
    """Save whole, then once more under a limit that the optimizer's file is over."""
    engine = Engine(Part(), config(1))
    with Saver(engine, folder, config(1), TrainState(0, 0, ROWS, "data", "config", 1)) as own:
        own.stepped(torch.tensor(1.0))
        own.save(1)
        largest = max(p.stat().st_size for p in (folder / checkpoint.tag(1)).iterdir())
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest - 200, resource.RLIM_INFINITY))
        try:
            own.save(2)
        except StorageFullError as error:
            said = str(error)
        else:
            said = "nothing"
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    found = checkpoint.newest(folder)
    own.save(2)
    again = checkpoint.newest(folder)
    assert found and again
    return said, f"{found[0].name} {again[0].name}"


def test_a_full_disk_keeps_the_checkpoint_before(tmp_path: Path) -> None:
    said, found = run_ranks(fill, 1, tmp_path)[0]
    assert checkpoint.tag(2) in said and "run the same command again" in said
    assert found == f"{checkpoint.tag(1)} {checkpoint.tag(2)}"
