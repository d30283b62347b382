"""What the engine can be asked for: number formats, loss scaling, offloading, rates of groups; on ZeRO 0 to 3."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from group import run_ranks
from torch import nn

from shards.errors import VillaError
from villa_dist.config import ModelConfig
from villa_dist.config_train import OptimConfig
from villa_dist.data.loader import PairBatch
from villa_dist.distributed import rank, world_size
from villa_dist.train.agree import agree
from villa_dist.train.engine import Engine, settings
from villa_dist.train.objective import RegionObjective
from villa_dist.train.precision import LossScale, training_format
from villa_dist.vlm.model import RegionVLM

STAGES = [0, 1, 2, 3]
TOLERANCE = 0.02  # of bf16's loss, relative to fp32's, over four steps: 8 bits are 0.4 % of each product


# ---- bf16


def images(step: int) -> PairBatch:
    """This rank's part of 8 images with three regions each; attribute a is a bright square of channel a."""
    make = torch.Generator().manual_seed(step)
    attribute = torch.randint(0, 3, (24,), generator=make)
    pixels = torch.randint(0, 60, (8, 3, 32, 32), dtype=torch.uint8, generator=make)
    boxes = torch.tensor([[2.0, 2, 14, 14], [16, 2, 30, 14], [4, 16, 28, 30]]).repeat(8, 1)
    image_of = torch.arange(8).repeat_interleave(3)
    for n, (box, a) in enumerate(zip(boxes.int().tolist(), attribute.tolist(), strict=True)):
        pixels[n // 3, a, box[1] : box[3], box[0] : box[2]] = 255
    part = 8 // world_size()
    mine = slice(rank() * part, (rank() + 1) * part)
    regions = slice(3 * mine.start, 3 * mine.stop)
    return PairBatch(
        *(pixels[mine], [], boxes[regions], image_of[regions] - mine.start),
        *(torch.arange(3 * part), attribute[regions], None, part),
    )


def formats(stages: list[int]) -> dict[tuple[int, str], Any]:
    found = {}
    for stage in stages:
        for precision in ("fp32", "bf16"):
            torch.manual_seed(0)
            model = RegionVLM(ModelConfig.model_validate({"image": {"width": 16}, "dim": 32}))
            config = OptimConfig(batch_images=8, zero_stage=stage, precision=precision, workers=world_size())
            engine = Engine(RegionObjective(model, [["red"], ["green"], ["blue"]]), config)
            products = []
            last = engine.module.vlm.image.stem[0][0]
            last.register_forward_hook(lambda layer, given, out, kept=products: kept.append(out.dtype))
            losses = []
            for step in range(4):
                loss = engine(images(step))
                engine.step(loss, 5e-4)
                losses.append(loss.item())
            weights = engine.full_state_dict()
            kinds = {v.dtype for v in weights.values() if v.is_floating_point()}
            variance = weights["vlm.image.stem.0.1.running_var"]
            found[stage, precision] = (losses, loss.dtype, kinds, set(products), variance)
            engine.close()
    return found


def check_formats(found: dict[tuple[int, str], Any], stages: list[int]) -> None:
    for stage in stages:
        losses, dtype, kinds, products, variance = found[stage, "bf16"]
        expected, *_, wide = found[stage, "fp32"]
        assert dtype == torch.float32 and kinds == {torch.float32}, "weights and losses stay fp32"
        assert products == {torch.bfloat16}
        assert losses != expected
        assert losses == pytest.approx(expected, rel=TOLERANCE)
        assert expected[-1] < expected[0]
        assert torch.allclose(variance, wide, rtol=0.05)


def test_bf16_is_close_to_fp32() -> None:
    check_formats(run_ranks(formats, 1, STAGES)[0], STAGES)


@pytest.mark.slow
def test_bf16_is_close_to_fp32_on_two_ranks() -> None:
    for found in run_ranks(formats, 2, STAGES):
        check_formats(found, STAGES)


def test_formats_of_devices() -> None:
    assert training_format("auto", torch.device("cpu")) == torch.float32
    assert training_format("bf16", torch.device("cpu")) == torch.bfloat16
    with pytest.raises(VillaError, match="precision=fp16"):
        training_format("fp16", torch.device("cpu"))


# ---- fp16


class Steep(nn.Module):
    """A layer whose gradient is so large in fp16 that a loss scale above 2^(16 - log2 gain) overflows."""

    def __init__(self, gain: float) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.gain, self.layer = gain, nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (self.layer(x).float() * self.gain).square().mean() / self.gain


def small(step: int) -> torch.Tensor:
    make = torch.Generator().manual_seed(100 * step + rank())
    return torch.randn(4, 4, generator=make).mul(0.1) + 0.1


def halves(gain: float, stages: list[int]) -> dict[int, Any]:
    """fp16 on a CPU, which the product refuses, until steps are taken; beside them fp32 from the same weights."""
    from villa_dist.train import engine as module

    chosen, found = module.training_format, {}
    for stage in stages:
        made = {}
        for precision in ("fp16", "fp32"):
            module.training_format = lambda *_, p=precision: {"fp16": torch.float16, "fp32": torch.float32}[p]
            config = OptimConfig(batch_images=4 * world_size(), zero_stage=stage, clip=0.5, workers=world_size())
            made[precision] = Engine(Steep(gain), config)
        module.training_format = chosen
        half, full, told = made["fp16"], made["fp32"], []
        first = half.full_state_dict()["layer.weight"].clone()
        for _ in range(30):
            loss = half(small(0))
            half.step(loss, 0.01)
            verdict = agree(loss, half.grad_norm, stop=False, save=False)
            told.append((half.skipped, half.grad_norm, verdict.nonfinite, half.scale.value))
            moved = not torch.equal(half.full_state_dict()["layer.weight"], first)
            assert moved != (half.skipped or half.overflowed), "a skipped step leaves weights alone"
            if not half.skipped:
                break
        loss = full(small(0))
        full.step(loss, 0.01)
        difference = (half.full_state_dict()["layer.weight"] - full.full_state_dict()["layer.weight"]).abs().max()
        found[stage] = (
            told,
            full.grad_norm,
            float(difference),
            float((first - full.full_state_dict()["layer.weight"]).abs().max()),
        )
        half.close()
        full.close()
    return found


@pytest.mark.parametrize("world", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_overflow_skips_steps_until_the_scale_fits(world: int) -> None:
    for of_rank in run_ranks(halves, world, 1000.0, STAGES):
        for stage, (told, norm, difference, moved) in of_rank.items():
            skipped, last = told[:-1], told[-1]
            assert 3 <= len(skipped) <= 14, stage
            assert all(s and n is None and not stops for s, n, stops, _ in skipped)
            assert [v for *_, v in skipped] == [2.0 ** (15 - k) for k in range(len(skipped))]
            assert last[:3] == (False, last[1], False) and last[3] == skipped[-1][3]
            if stage:
                assert last[1] == pytest.approx(norm, rel=0.01), "the norm is of the gradient as it is, unscaled"
            assert difference < 0.05 * moved, "clipped and stepped as fp32 is"


def test_overflow_at_the_lowest_scale_stops() -> None:
    for stage, (told, *_) in run_ranks(halves, 1, 3e6, STAGES)[0].items():
        assert len(told) == 17 and all(s for s, *_ in told[:-1]), stage
        skipped, norm, stops, scale = told[-1]
        assert not skipped and norm == math.inf and stops and scale == 1.0


def saved_scale(folder: Path, stage: int) -> tuple[float, float, int]:
    config = OptimConfig(batch_images=4, zero_stage=stage)
    engines = []
    for _ in range(2):
        engine = Engine(Steep(1.0), config)
        engine.scale = LossScale()
        engines.append(engine)
    engines[0].scale.load({"value": 64.0, "steps": 7})
    engines[0].step(engines[0](small(0)), 0.01)
    engines[0].save(folder, "t", {"step": 1})
    state = engines[1].load(folder, "t")
    return engines[1].scale.value, engines[1].scale.steps, state["step"]


def test_the_scale_is_in_checkpoints(tmp_path: Path) -> None:
    assert run_ranks(saved_scale, 1, tmp_path, 1)[0] == (64.0, 8, 1)


def test_the_scale_grows_and_has_ends() -> None:
    scale = LossScale()
    scale.load({"value": 2.0, "steps": LossScale.GROW_AFTER - 1})
    assert not scale.stepped(overflow=False) and scale.value == 4.0 and scale.steps == 0
    assert scale.stepped(overflow=True) and scale.stepped(overflow=True) and scale.value == 1.0
    assert not scale.stepped(overflow=True), "nothing is left to lower"
    scale.load({"value": LossScale.MOST, "steps": LossScale.GROW_AFTER - 1})
    scale.stepped(overflow=False)
    assert scale.value == LossScale.MOST


# ---- offloading, rates


def test_deepspeeds_settings() -> None:
    usual = {"contiguous_gradients": torch.cuda.is_available(), "reduce_bucket_size": 1000}
    assert settings(OptimConfig(), 2, 1000)["zero_optimization"] == {"stage": 1, **usual}
    assert settings(OptimConfig(), 2, 10**12)["zero_optimization"]["reduce_bucket_size"] == 500_000_000
    made = settings(OptimConfig(offload="optimizer", zero_stage=2, batch_images=8), 2, 1000)
    offloaded = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
    assert made["zero_optimization"] == {"stage": 2, "offload_optimizer": offloaded, **usual}
    assert made["zero_force_ds_cpu_optimizer"] is False, "torch's own AdamW, which needs no compiler"
    assert (made["train_batch_size"], made["train_micro_batch_size_per_gpu"]) == (8, 4)


class Named(nn.Module):
    """Parameters where the groups look for them."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        part = {"image": nn.ModuleDict({"stem": nn.Linear(6, 6), "head": nn.Linear(6, 6)}), "text": nn.Linear(6, 6)}
        self.vlm, self.log_scale = nn.ModuleDict(part), nn.Parameter(torch.ones(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        image: Any = self.vlm["image"]
        return (image["head"](image["stem"](x)) * self.vlm["text"](x)).sum() * self.log_scale[0]


def moves(stage: int, offload: str) -> dict[str, float]:
    """AdamW's first step moves every number by its group's rate."""
    config = OptimConfig(
        batch_images=world_size(), zero_stage=stage, layer_decay=0.5, text_learning_rate=0.1, weight_decay=0.0,
        clip=1e9, workers=world_size(), offload=offload,
    )  # fmt: skip
    engine = Engine(Named(), config)
    before = {k: v.clone() for k, v in engine.full_state_dict().items()}
    engine.step(engine(torch.full((2, 6), 1.0 + rank())), 0.01)
    after = engine.full_state_dict()
    engine.close()
    return {k: float((after[k] - v).abs().mean()) for k, v in before.items()}


@pytest.mark.parametrize(
    ("world", "stage", "offload"),
    [(2, 1, "optimizer"), *(pytest.param(2, s, "none", marks=pytest.mark.slow) for s in STAGES)],
)
def test_groups_learn_at_their_rates(world: int, stage: int, offload: str) -> None:
    expected = {"vlm.image.stem": 0.0025, "vlm.image.head": 0.005, "vlm.text": 0.001, "log_scale": 0.01}
    for found in run_ranks(moves, world, stage, offload):
        for name, moved in found.items():
            group = name if name == "log_scale" else name.rsplit(".", 1)[0]
            assert moved == pytest.approx(expected[group], rel=1e-3), name


def fit(stage: int) -> tuple[list[float], list[float]]:
    found = []
    for offload in ("none", "optimizer"):
        engine = Engine(Steep(2.0), OptimConfig(batch_images=4 * world_size(), zero_stage=stage, offload=offload))
        losses = []
        for step in range(4):
            loss = engine(small(step))
            engine.step(loss, 0.05)
            losses.append(loss.item())
        found.append(losses)
        engine.close()
    return found[0], found[1]


@pytest.mark.slow
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_an_optimizer_on_the_cpu_is_the_same_optimizer(stage: int) -> None:
    for plain, offloaded in run_ranks(fit, 2, stage):
        assert offloaded == pytest.approx(plain, rel=1e-6)


def norms(_: int) -> dict[int, tuple[list[float | None], dict[str, float]]]:
    """Two clipped steps, then one whose gradient is not finite, on each stage."""
    found = {}
    for stage in STAGES:
        config = OptimConfig(batch_images=2 * world_size(), zero_stage=stage, clip=0.25, workers=world_size())
        engine, told = Engine(Named(), config), []
        for step in range(2):
            engine.step(engine(torch.full((2, 6), 1.0 + rank() + step)), 0.01)
            told.append(engine.grad_norm)
        weights = {k: float(v.double().sum()) for k, v in engine.full_state_dict().items()}
        engine.step(engine(torch.full((2, 6), math.inf)).nan_to_num(), 0.01)
        told.append(engine.grad_norm)
        found[stage] = (told, weights)
        engine.close()
    return found


@pytest.mark.parametrize("world", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_every_stage_knows_its_gradients_norm(world: int) -> None:
    for found in run_ranks(norms, world, 0):
        expected, weights = found[1]
        for stage in STAGES:
            told, own = found[stage]
            assert told[:2] == pytest.approx(expected[:2], rel=1e-5) and min(told[:2]) > 0.25, stage
            assert own == pytest.approx(weights, rel=1e-4, abs=1e-5), stage
            assert told[2] is not None and not math.isfinite(told[2]), stage
