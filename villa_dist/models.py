"""Trained models as folders: model.json (how to build it), model.safetensors (weights), tokenizer.json (of published text
towers), done.json (the commit)."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from pydantic import ValidationError
from safetensors.torch import load as from_safetensors
from safetensors.torch import save as to_safetensors
from torch import Tensor

from shards.digest import sha256
from shards.errors import ShardError
from shards.store import Store
from villa_dist.config import ImageTowerConfig, MappingConfig, ModelConfig
from villa_dist.encoders.published import Published
from villa_dist.mapping.model import MappingModel
from villa_dist.names import DONE, JOBS, TOKENIZER, WEIGHTS
from villa_dist.vlm.model import RegionVLM

DESCRIPTION = "model.json"


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


def digests(run: str) -> dict[str, str]:
    """The sha256 of the weights of each finished job of a run."""
    found = {job: done(f"{run}/models/{job}") for job in JOBS}
    return {job: marker["sha256"] for job, marker in found.items() if marker}


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
        text = store.read(DESCRIPTION)
        description = json.loads(text)
        if not isinstance(description, dict):
            raise ValueError(f"it holds a {type(description).__name__}")
    except ValueError as error:
        raise ShardError(f"{folder}/{DESCRIPTION} is damaged ({error}); repeat that stage with --force") from error
    if sha256(text) != marker.get("files", {}).get(DESCRIPTION, sha256(text)):  # earlier markers do not record it
        raise ShardError(f"{folder}/{DESCRIPTION} was changed after training; repeat that stage with --force")
    return Saved(description, from_safetensors(data), marker["sha256"])


def is_sound(folder: str) -> bool:
    """Whether a finished model's weights are those its marker recorded."""
    try:
        load(folder)
    except (ShardError, ValueError):
        return False
    return True


def vlm_description(vlm: RegionVLM) -> dict[str, Any]:
    return {"kind": "region_vlm", "model": vlm.config.model_dump(mode="json"), **_built_from(vlm.published)}


def vlm_files(vlm: RegionVLM) -> dict[str, bytes]:
    """What a VLM's folder holds beside its weights."""
    tokenizer = vlm.published.tokenizer if vlm.published else None
    return {TOKENIZER: tokenizer.content.encode()} if tokenizer else {}


def _built_from(published: Published | None) -> dict[str, Any]:
    return {"published": published.as_json()} if published else {}


def _published(description: dict[str, Any], tokenizer: bytes | None) -> Published | None:
    return Published.from_json(description["published"], tokenizer) if "published" in description else None


def load_vlm(folder: str, device: torch.device | str = "cpu") -> RegionVLM:
    """A finished VLM in eval mode. It needs no checkpoint and no network: all of it is in the folder.

    Raises: ShardError when the folder is not finished or damaged.
    """
    saved = load(folder)
    with of_this_version(folder):
        model = build_vlm(saved.description, _tokenizer(folder, saved.description))
        model.load_state_dict(saved.weights)
    return model.to(device).eval().requires_grad_(False)


def build_vlm(description: dict[str, Any], tokenizer: bytes | None) -> RegionVLM:
    """A VLM of `vlm_description`, with random weights."""
    return RegionVLM(ModelConfig.model_validate(description["model"]), _published(description, tokenizer))


def _tokenizer(folder: str, description: dict[str, Any]) -> bytes | None:
    if not (description.get("published") or {}).get("tokenizer"):
        return None
    store, recorded = Store(folder), (done(folder) or {}).get("files", {}).get(TOKENIZER)
    content = store.read(TOKENIZER) if store.exists(TOKENIZER) else b""
    if sha256(content) != recorded:
        raise ShardError(
            f"{folder}/{TOKENIZER} was changed, cut or lost after training; repeat that stage with --force"
        )
    return content


@contextmanager
def of_this_version(folder: str) -> Iterator[None]:
    try:
        yield
    except (ValidationError, KeyError, TypeError, RuntimeError) as error:
        said = " ".join(str(error).split())[:300]
        raise ShardError(
            f"{folder}/model.json does not describe a model of this version ({said}); train it again with --force"
        ) from error


def mapping_description(
    config: MappingConfig, model: ModelConfig, features: int, published: Published | None, experts: int = 1
) -> dict[str, Any]:
    return {
        "kind": "mapping",
        "mapping": config.model_dump(mode="json"),
        "tower": model.image.model_dump(mode="json"),
        "attention": model.attention,
        "features": features,
        "experts": experts,
        **_built_from(replace(published, tokenizer=None) if published else None),
    }


def load_mapping(folder: str, device: torch.device | str = "cpu") -> MappingModel:
    """A finished mapping model in eval mode."""
    saved = load(folder)
    with of_this_version(folder):
        model = build_mapping(saved.description, saved.weights)
    return model.to(device)


def build_mapping(description: dict[str, Any], weights: Mapping[str, Tensor]) -> MappingModel:
    """A mapping model of `mapping_description` with these weights, in eval mode."""
    attribute = weights["attribute"]
    model = MappingModel(
        MappingConfig.model_validate(description["mapping"]),
        ImageTowerConfig.model_validate(description["tower"]),
        attribute,
        torch.full((attribute.shape[0],), 0.5),
        int(description["features"]),
        _published(description, None),
        description["attention"],
        experts=int(description["experts"]),
    )
    model.load_state_dict(weights)
    return model.eval().requires_grad_(False)


def write(folder: str, model: RegionVLM, fingerprint: str) -> None:
    """A VLM as a finished model, without training it."""
    weights = {name: tensor.detach().contiguous().cpu() for name, tensor in model.state_dict().items()}
    commit(folder, weights, vlm_description(model), vlm_files(model), fingerprint)


def commit(
    folder: str, weights: dict[str, Tensor], description: dict[str, Any], files: Mapping[str, bytes], fingerprint: str
) -> None:
    """Write a finished model; the marker comes last."""
    store, data = Store(folder), to_safetensors(weights)
    files = {DESCRIPTION: json.dumps(description, indent=1, sort_keys=True).encode(), **files}
    for name, content in files.items():
        store.put(name, content)
    store.put(WEIGHTS, data)
    marker = {"fingerprint": fingerprint, "sha256": sha256(data), "bytes": len(data)}
    marker["files"] = {name: sha256(content) for name, content in files.items()}
    store.put(DONE, json.dumps(marker, indent=1, sort_keys=True).encode())
