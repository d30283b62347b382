"""Retrieval measured while a VLM trains: the right numbers, on any number of ranks, without a trace in the training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rank_pool import RankPool
from torch import Tensor, nn

from shards.errors import VillaError
from shards.store import Store
from villa_dist.api import RegionVLM as Model
from villa_dist.attributes import vocabulary
from villa_dist.config import Config
from villa_dist.config_file import load
from villa_dist.data.samples import Samples
from villa_dist.evaluate.retrieval import r_precision
from villa_dist.pipeline import Pipeline
from villa_dist.runner import LocalRunner
from villa_dist.train import jobs, loop
from villa_dist.train.journal import read_metrics
from villa_dist.train.saving import Saver
from villa_dist.train.validate import Validation
from villa_dist.vlm.model import RegionVLM

TINY = [
    "runner=local",
    "docmnist.images={train: 24, validation: 11}",
    "docmnist.shard_images=6",
    "docmnist.target=12",
    "model.image.width=8",
    "model.text.buckets=128",
    "model.dim=16",
    "evaluate.splits=[validation]",
    *(f"train.{s}" for s in ("steps=12", "batch_images=8", "workers=1", "warmup_steps=2", "checkpoint_steps=100")),
    "train.validate_images=9",
    "train.track=none",
]


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    """A run with its splits and its vocabulary."""
    made = load(None, [f"run={tmp_path_factory.mktemp('validation')}", *TINY])
    Pipeline(made, LocalRunner()).run(("ingest", "vocabulary"))
    return made


def made_vlm(config: Config) -> RegionVLM:
    torch.manual_seed(4)
    vlm = RegionVLM(config.model)
    for _ in range(4):  # statistics of its own
        vlm.train().embed_whole(torch.randint(0, 256, (4, 3, 48, 48), dtype=torch.uint8))
    return vlm


def measured(rank: int, world: int, config: Config, known: bool, images: int) -> tuple[dict[str, float], bool]:
    words = vocabulary.read(Store(config.run)) if known else None
    vlm = made_vlm(config).train()
    found = Validation(config.run, words, images, 10_000)(vlm)
    return found, all(m.training for m in vlm.modules())


@pytest.mark.parametrize("known", [True, False])
def test_the_numbers_are_those_of_the_embeddings(config: Config, known: bool) -> None:
    """Against the Python interface, one image after the other, and R-Precision of all of it at once."""
    found, training = measured(0, 1, config, known, 100)
    assert training
    model = Model(made_vlm(config))
    samples = Samples(f"{config.run}/validation", "truth" if known else None, images=True, max_pixels=10_000)
    places = [(s, r) for s, n in enumerate(samples.manifest.samples) for r in range(n)]
    rows = [samples.row(s, r) for s, r in places]
    words = vocabulary.read(Store(config.run))
    if known:
        region = np.concatenate([model.embed_regions(r.pixels, r.boxes).numpy() for r in rows])
        text = torch.stack([nn.functional.normalize(model.embed_text(sorted(p)).mean(0), dim=0) for p in words.prompts])
        truth = np.zeros((len(region), len(words)), bool)
        start = 0
        for r in rows:
            truth[r.region.astype(int) + start, r.attribute.astype(int)] = True
            start += len(r.boxes)
        said = truth.any(0)
        right = r_precision(region, text.numpy()[said], truth[:, said])
        ways = ("validation_a2r", "validation_r2a")
    else:
        region = np.concatenate([model.embed_image(r.pixels).numpy() for r in rows])
        texts = [sorted({s.strip(" .") for s in r.text.split(" . ")}) for r in rows]
        text = torch.stack([nn.functional.normalize(model.embed_text(t).mean(0), dim=0) for t in texts])
        right = r_precision(region, text.numpy(), np.eye(len(rows), dtype=bool))
        ways = ("validation_t2i", "validation_i2t")
    assert set(found) == set(ways)
    assert found[ways[0]] == pytest.approx(100 * right.a2r, abs=1e-3)
    assert found[ways[1]] == pytest.approx(100 * right.r2a, abs=1e-3)


@pytest.mark.parametrize("images", [9, 1])
def test_ranks_that_share_the_images_find_the_same(ranks: RankPool, config: Config, images: int) -> None:
    alone = measured(0, 1, config, True, images)
    for found, training in ranks.run(measured, 2, config, True, images):
        assert training and found == pytest.approx(alone[0], abs=1e-3)


class PlainEngine:
    """torch alone in place of DeepSpeed."""

    def __init__(self, module: nn.Module) -> None:
        self.module, self.device, self.grad_norm = module, torch.device("cpu"), None
        self.optimizer = torch.optim.AdamW(module.parameters(), lr=1e-3)

    def __call__(self, batch: Any) -> Tensor:
        return self.module(batch) + 0.0 * nn.functional.dropout(torch.ones(1)).sum()  # draws from the global numbers

    def step(self, loss: Tensor, learning_rate: float) -> None:
        self.optimizer.param_groups[0]["lr"] = learning_rate
        loss.backward()
        norms = [p.grad.norm() for p in self.module.parameters() if p.grad is not None]
        self.grad_norm = float(torch.stack(norms).norm())
        self.optimizer.step()
        self.optimizer.zero_grad()

    def save(self, *_: Any) -> None: ...

    def full_state_dict(self) -> dict[str, Tensor]:
        return self.module.state_dict()


def trained(config: Config, folder: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[dict[str, Tensor], Tensor]:
    """The final state, and the random number that would come next."""
    monkeypatch.setattr(Saver, "save", lambda *_: None)
    torch.manual_seed(config.seed)
    parts = jobs.region_vlm(config, "truth")
    engine: Any = PlainEngine(parts.objective)
    loop.train_steps(engine, parts, config.train, folder, config.seed, "f", 0)
    return {k: v.clone() for k, v in parts.objective.state_dict().items()}, torch.rand(4)


def test_validation_leaves_no_trace_in_the_weights(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    often = config.model_copy(update={"train": config.train.model_copy(update={"validate_steps": 5})})
    plain, after_plain = trained(config, tmp_path / "plain", monkeypatch)
    with_it, after_with_it = trained(often, tmp_path / "often", monkeypatch)
    assert plain.keys() == with_it.keys() and all(torch.equal(plain[k], with_it[k]) for k in plain)
    assert torch.equal(after_plain, after_with_it)
    lines = read_metrics(tmp_path / "often" / "metrics.jsonl")
    assert [line["step"] for line in lines] == [5, 10, 12]
    assert [line["step"] for line in lines if "validation_a2r" in line and "validation_r2a" in line] == [5, 10]
    assert [line["step"] for line in read_metrics(tmp_path / "plain" / "metrics.jsonl")] == [10, 12]


def test_what_is_seen_of_a_job(config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    watched = config.model_copy(update={"train": config.train.model_copy(update={"track": "tensorboard"})})
    state, _ = trained(watched, tmp_path, monkeypatch)
    ten, last = read_metrics(tmp_path / "metrics.jsonl")
    assert last["scale"] == pytest.approx(float(state["vlm.log_scale"].exp()), rel=1e-3)
    samples = Samples(f"{config.run}/train", "truth", images=True, max_pixels=10_000)
    rows = [samples.row(s, r) for s, n in enumerate(samples.manifest.samples) for r in range(n)]
    ratio = [len(r.attribute) / len(r.boxes) for r in rows]
    assert min(ratio) <= ten["positives_per_region"] <= max(ratio)
    assert ten["gradient_norm"] > 0 and 0 < ten["mfu"] < 1.5 and 1e7 < ten["memory_bytes"] < 1e11
    assert last["regions_per_second"] > last["images_per_second"] > 0 and 0 <= last["data_wait"] <= 1
    assert list((tmp_path / "tensorboard").glob("events.out.tfevents.*"))


def test_counting_operations_changes_no_weight(config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counted, _ = trained(config, tmp_path / "a", monkeypatch)
    assert "mfu" in read_metrics(tmp_path / "a" / "metrics.jsonl")[0]
    monkeypatch.setattr("villa_dist.train.metrics.LOG_STEPS", 1000)
    monkeypatch.setattr(
        "villa_dist.train.metrics.Meter.counting", lambda self, step: __import__("contextlib").nullcontext()
    )
    plain, _ = trained(config, tmp_path / "b", monkeypatch)
    assert all(torch.equal(plain[k], counted[k]) for k in plain)


def test_operations_are_counted_right(config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A product of n x k and k x m takes 2nkm, forward once and backward twice."""
    from villa_dist.train.metrics import Meter

    class Two:
        device, grad_norm = torch.device("cpu"), None

    layer, x = nn.Linear(32, 64, bias=False), torch.randn(16, 32, requires_grad=True)
    meter = Meter(Two(), layer, config.train, tmp_path, stage=None, start=0, steps=1)
    with meter.counting(0):
        loss = layer(x).sum()
    with meter.counting(0):
        loss.backward()
    assert meter.flops == 3 * 2 * 16 * 32 * 64
    with meter.counting(1):
        layer(x)
    assert meter.flops == 3 * 2 * 16 * 32 * 64, "counted once"


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["train.validate_steps=5"], "train.validate_steps=5 needs a validation split; add validation"),
        (["mapping.fit.validate_steps=5"], "belongs to pretrain and train"),
        (["pretrain.validate_steps=5", "evaluate.splits=[validation]", "pretrain.zero_stage=3"], "zero_stage=3"),
        (
            ["train.validate_steps=5", "evaluate.splits=[validation]", "data.source=shards", "data.train=x"],
            "give data.validation",
        ),
        (["train.track=mlflow"], "track"),
    ],
)
def test_what_cannot_be_validated_is_refused(overrides: list[str], said: str) -> None:
    with pytest.raises(VillaError, match=said):
        load(None, overrides)


def test_a_split_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(VillaError, match=r"validation/base, which is not there; add validation to evaluate\.splits"):
        Validation(str(tmp_path), None, 4, 100)
