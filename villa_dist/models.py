"""Trained models as folders: model.json (how to build it), model.safetensors (weights), done.json (the commit)."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import torch
from safetensors.torch import load as from_safetensors
from torch import Tensor

from shards.digest import sha256
from shards.errors import ShardError
from shards.store import Store
from villa_dist.config import ImageTowerConfig, MappingConfig, ModelConfig
from villa_dist.mapping.model import MappingModel
from villa_dist.names import DONE, WEIGHTS
from villa_dist.vlm.model import RegionVLM


@dataclass(frozen=True)
class Saved:
    """A finished model's description, weights and their sha256."""

    description: dict[str, Any]
    weights: dict[str, Tensor]
    sha256: str


def done(folder: str) -> dict[str, Any] | None:
    """The commit marker of a model, or None while it is not finished."""
    store = Store(folder)
    if not store.exists(DONE):
        return None
    try:
        marker: dict[str, Any] = json.loads(store.read(DONE))
        return marker if {"fingerprint", "sha256"} <= set(marker) else None
    except (ValueError, TypeError):
        return None  # damaged: the job is finished anew from its last checkpoint


def load(folder: str) -> Saved:
    """Raises: ShardError when the model is not finished, or its weights are not those its marker recorded."""
    marker = done(folder)
    if marker is None:
        raise ShardError(f"model {folder} is not finished; run the stage that trains it (`villa run CONFIG`)")
    store = Store(folder)
    data = store.read(WEIGHTS)
    if sha256(data) != marker["sha256"]:
        raise ShardError(f"{folder}/{WEIGHTS} was changed or cut after training; repeat that stage with --force")
    try:
        description = json.loads(store.read("model.json"))
    except ValueError as error:
        raise ShardError(f"{folder}/model.json is damaged ({error}); repeat that stage with --force") from error
    return Saved(description, from_safetensors(data), marker["sha256"])


def is_sound(folder: str) -> bool:
    """Whether a finished model's weights are those its marker recorded."""
    try:
        load(folder)
    except (ShardError, ValueError):
        return False
    return True


def vlm_description(config: ModelConfig) -> dict[str, Any]:
    return {"kind": "region_vlm", "model": config.model_dump(mode="json")}


def load_vlm(folder: str) -> RegionVLM:
    """A finished VLM in eval mode."""
    saved = load(folder)
    model = RegionVLM(ModelConfig.model_validate(saved.description["model"]))
    model.load_state_dict(saved.weights)
    return model.eval().requires_grad_(False)


def mapping_description(config: MappingConfig, tower: ImageTowerConfig, features: int) -> dict[str, Any]:
    return {
        "kind": "mapping",
        "mapping": config.model_dump(mode="json"),
        "tower": tower.model_dump(mode="json"),
        "features": features,
    }


def load_mapping(folder: str) -> MappingModel:
    """A finished mapping model in eval mode."""
    saved = load(folder)
    attribute = saved.weights["attribute"]
    model = MappingModel(
        MappingConfig.model_validate(saved.description["mapping"]),
        ImageTowerConfig.model_validate(saved.description["tower"]),
        attribute,
        torch.full((attribute.shape[0],), 0.5),
        int(saved.description["features"]),
    )
    model.load_state_dict(saved.weights)
    return model.eval().requires_grad_(False)
