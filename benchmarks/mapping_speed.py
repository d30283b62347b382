"""What mapping costs: the shared head against the paper's heads, and as the vocabulary grows.

python -m benchmarks.mapping_speed [--rounds 5]

CPU seconds on one thread, medians over rounds, all of them in one process. Features are random: only their shape matters.
`published loop`: one image at a time, one head after another, as the paper's code maps.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from torch import nn

from villa_dist.config import ImageTowerConfig, MappingConfig
from villa_dist.data.loader import PairBatch
from villa_dist.mapping.model import MappingModel
from villa_dist.train.objective import MappingObjective

WIDTH, REGIONS, MENTIONED = 1024, 9, 10  # of the features; of an image; by an image's text
STEP_IMAGES = 48
SHARED: dict[str, dict[str, object]] = {
    "hidden 256, cosines": {"loss": "contrastive"},
    "hidden 256, probabilities": {},
    "hidden 1024, as the paper's": {"hidden": WIDTH},
}
SETTINGS: tuple[tuple[int, int, dict[str, object]], ...] = (  # vocabulary, mentions an image, options of the mapping
    (20, 10, {}),
    (2_000, 100, {}),
    (2_000, 100, {"residual": True}),
    (2_000, 100, {"hidden": WIDTH}),
    (100_000, 100, {}),
    (100_000, 100, {"residual": True}),
)


def model(head: str, attributes: int, **options: object) -> MappingModel:
    config = MappingConfig.model_validate(
        {"encoder": "frozen", "head": head, "hidden": WIDTH if head == "per_attribute" else 256, **options}
    )
    text = nn.functional.normalize(torch.randn(attributes, WIDTH), dim=-1)
    return MappingModel(config, ImageTowerConfig(), text, torch.full((attributes,), 0.05), WIDTH)


class PublishedHeads(nn.Module):
    """Twenty modules, run one after another on the regions of one image."""

    def __init__(self, attributes: int) -> None:
        super().__init__()
        make = lambda: nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH))  # noqa: E731
        self.heads = nn.ModuleList(make() for _ in range(attributes))
        self.text = nn.functional.normalize(torch.randn(attributes, WIDTH), dim=-1)

    def forward(self, feature: torch.Tensor) -> torch.Tensor:
        columns = [nn.functional.normalize(h(feature), dim=-1) @ t for h, t in zip(self.heads, self.text, strict=True)]
        return torch.stack(columns, 1)


def cpu_seconds(work: Callable[[], object], rounds: int) -> float:
    work()
    taken = []
    for _ in range(rounds):
        start = time.process_time()
        work()
        taken.append(time.process_time() - start)
    return statistics.median(taken)


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def said(images: int, attributes: int, mentioned: int) -> list[np.ndarray]:
    """Zipf's law, as attributes in captions."""
    random = np.random.default_rng(0)
    return [np.unique(random.zipf(1.3, mentioned) % attributes).astype(np.int64) for _ in range(images)]


def inference(rounds: int) -> None:
    print(
        "| mapping 20 attributes, D = 1024 | regions/s of a core | x published loop | x batched heads |\n|---|---|---|---|"
    )
    with torch.inference_mode():
        images = 20
        feature = torch.randn(images * REGIONS, WIDTH)
        every = [np.arange(20)] * images
        published = PublishedHeads(20)
        rate = {
            "published loop": images
            * REGIONS
            / cpu_seconds(lambda: [published(f) for f in feature.split(REGIONS)], rounds)
        }
        heads = model("per_attribute", 20, loss="contrastive")
        ids = torch.arange(20)
        rate["batched heads, 180 regions at once"] = len(feature) / cpu_seconds(
            lambda: heads.cosine(feature, ids), rounds
        )
        many = feature.repeat(10, 1)
        for name, options in SHARED.items():
            shared = model("shared", 20, **options)
            counts = [REGIONS] * images * 10
            work = lambda s=shared, c=counts: s.score_images(many, c, every * 10)  # noqa: E731
            rate[f"shared head, {name}"] = len(many) / cpu_seconds(work, rounds)
    loop, batched = rate["published loop"], rate["batched heads, 180 regions at once"]
    for name, value in rate.items():
        print(f"| {name} | {value:,.0f} | {value / loop:.1f} | {value / batched:.1f} |")


def training(rounds: int) -> None:
    title = f"train step, {STEP_IMAGES} images of {REGIONS} regions, D = 1024"
    print(f"\n| {title} | attributes in the batch | CPU ms | peak MiB |\n|---|---|---|---|")
    for attributes, mentioned, options in SETTINGS:
        objective = MappingObjective(model("shared", attributes, **options), torch.full((attributes,), 0.2))
        optimizer = torch.optim.AdamW(objective.parameters(), lr=1e-3)
        random = np.random.default_rng(1)
        mentions = [np.unique(random.integers(0, attributes, mentioned)) for _ in range(STEP_IMAGES)]
        batch = PairBatch(
            None,
            [],
            torch.zeros(STEP_IMAGES * REGIONS, 4),
            torch.arange(STEP_IMAGES).repeat_interleave(REGIONS),
            torch.from_numpy(np.repeat(np.arange(STEP_IMAGES), [len(m) for m in mentions])),
            torch.from_numpy(np.concatenate(mentions)),
            torch.randn(STEP_IMAGES * REGIONS, WIDTH),
            STEP_IMAGES,
        )

        def step(
            objective: nn.Module = objective, optimizer: torch.optim.Optimizer = optimizer, batch: PairBatch = batch
        ) -> None:
            optimizer.zero_grad()
            objective(batch).backward()
            optimizer.step()

        taken = 1000 * cpu_seconds(step, rounds)
        name = f"vocabulary of {attributes:,}{''.join(f', {k} {v}' for k, v in options.items())}"
        print(f"| {name} | {len(np.unique(np.concatenate(mentions))):,} | {taken:.0f} | {peak_mib():,.0f} |")


def vocabulary(rounds: int) -> None:
    print(f"\n| mapping, {MENTIONED} mentions an image | µs CPU a region |  peak MiB |\n|---|---|---|")
    images = 256
    counts = [REGIONS] * images
    for attributes in (20, 200, 2_000, 20_000, 100_000):
        shared = model("shared", attributes)
        feature, mentions = torch.randn(images * REGIONS, WIDTH), said(images, attributes, MENTIONED)
        with torch.inference_mode():
            taken = cpu_seconds(lambda s=shared, f=feature, m=mentions: s.score_images(f, counts, m), rounds)
        print(f"| {attributes:,} attributes | {1e6 * taken / (images * REGIONS):.1f} | {peak_mib():,.0f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    torch.manual_seed(0)
    inference(rounds)
    training(rounds)
    vocabulary(rounds)


if __name__ == "__main__":
    main()
