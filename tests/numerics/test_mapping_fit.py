"""Mappings fitted on mentions alone, where the truth is known: a region holds a linear image of its attribute's text."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from villa_dist.config import ImageTowerConfig, MappingConfig
from villa_dist.data.loader import PairBatch
from villa_dist.mapping.model import MappingModel
from villa_dist.mapping.rates import positive_share, rates
from villa_dist.train.objective import MappingObjective

ATTRIBUTES, HELD_OUT, WIDTH, REGIONS, IMAGES = 60, 12, 24, 5, 600
FITTED = ATTRIBUTES - HELD_OUT


def world() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """attribute embeddings 60 x 24, regions' features (600 x 5) x 24 and the attribute each has; the last 12 attributes are
    never mentioned while fitting."""
    torch.manual_seed(1)
    text = nn.functional.normalize(torch.randn(ATTRIBUTES, WIDTH), dim=-1)
    mix = torch.linalg.qr(torch.randn(WIDTH, WIDTH))[0]
    has = torch.randint(0, FITTED, (IMAGES * REGIONS,))
    return text, text[has] @ mix + 0.05 * torch.randn(IMAGES * REGIONS, WIDTH), has


def fitted(loss: str, **options: object) -> tuple[MappingModel, torch.Tensor, torch.Tensor]:
    text, feature, has = world()
    mentions = [np.unique(row) for row in has.reshape(IMAGES, REGIONS).numpy()]
    counts = np.zeros(REGIONS + 1, np.int64)
    counts[REGIONS] = IMAGES
    rate = rates(counts, np.bincount(np.concatenate(mentions), minlength=ATTRIBUTES))
    given = {"encoder": "frozen", "hidden": 128, "loss": loss, **options}
    config = MappingConfig.model_validate(given)
    model = MappingModel(config, ImageTowerConfig(), text, torch.from_numpy(rate).float(), WIDTH)
    objective = MappingObjective(model, torch.from_numpy(positive_share(counts, rate)).float())
    optimizer = torch.optim.AdamW(objective.parameters(), lr=5e-3)
    for step in range(150):
        chosen = np.random.default_rng(step).permutation(IMAGES)[:100]
        lengths = [len(mentions[i]) for i in chosen]
        batch = PairBatch(
            pixels=None,
            texts=[],
            boxes=torch.zeros(100 * REGIONS, 4),
            image_of=torch.arange(100).repeat_interleave(REGIONS),
            region=torch.from_numpy(np.repeat(np.arange(100), lengths)),
            attribute=torch.from_numpy(np.concatenate([mentions[i] for i in chosen])),
            feature=feature.reshape(IMAGES, REGIONS, WIDTH)[chosen].flatten(0, 1),
            images=100,
        )
        optimizer.zero_grad()
        objective(batch).backward()
        optimizer.step()
    return model.requires_grad_(False), feature, has


def area(score: torch.Tensor, positive: torch.Tensor) -> float:
    """Under the ROC curve."""
    return float((score[positive][:, None] > score[~positive][None]).float().mean())


@pytest.mark.parametrize(
    ("loss", "options"),
    [
        ("contrastive", {}),
        ("contrastive", {"pooling": "attention", "null": True}),
        ("contrastive", {"pooling": "logsumexp", "contrast": "both"}),
        ("noisy_or", {}),
        ("negative_unlabelled", {}),
        ("both", {}),
    ],
)
def test_every_loss_finds_the_regions_from_mentions_alone(loss: str, options: dict[str, object]) -> None:
    model, feature, has = fitted(loss, **options)
    score = model.scores(feature, torch.arange(FITTED))
    assert np.mean([area(score[:, a], has == a) for a in range(FITTED)]) > 0.98


@pytest.mark.parametrize(
    "options", [{}, {"residual": True}, {"encoder": "adapter"}], ids=["plain", "residual", "adapter"]
)
def test_attributes_that_no_text_mentioned_are_found_too(options: dict[str, object]) -> None:
    """Regions of held-out attributes, made as the others are: chance is .5."""
    model, feature, has = fitted("both", **options)
    text, seen, _ = world()
    mix = torch.linalg.lstsq(text[has], seen).solution
    unseen = torch.arange(FITTED, ATTRIBUTES)
    mine = unseen.repeat_interleave(20)
    regions = torch.cat([text[mine] @ mix + 0.05 * torch.randn(len(mine), WIDTH), feature])
    score = model.cosine(regions, unseen)
    holds = torch.cat([mine, torch.full((len(feature),), -1)])
    found = np.mean([area(score[:, i], holds == a) for i, a in enumerate(unseen.tolist())])
    assert found > 0.9, found
