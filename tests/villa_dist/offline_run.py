"""A small data set with models of random weights, on which the offline stages are run by themselves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from shards.commit import Marker
from shards.store import Store
from villa_dist import models
from villa_dist.attributes import vocabulary
from villa_dist.config import Config
from villa_dist.mapping.model import MappingModel
from villa_dist.pipeline import Pipeline
from villa_dist.runner import LocalRunner
from villa_dist.stages.base import StageRequest
from villa_dist.train.jobs import attribute_embeddings, model_folder
from villa_dist.vlm.model import RegionVLM


def config_of(run: Path, **sections: Any) -> Config:
    values: dict[str, Any] = {
        "run": str(run),
        "docmnist": {"budget": {"train": 700, "validation": 100, "test": 200}, "shard_images": 16},
        "model": {"image": {"width": 8}, "text": {"buckets": 256}},
        "regions": {"proposals": "grid"},
        "evaluate": {"ground_truth": False},
    }
    for name, section in sections.items():
        values[name] = {**values.get(name, {}), **section}
    return Config.model_validate(values)


def ingested(run: Path) -> Config:
    config = config_of(run)
    Pipeline(config, LocalRunner()).run(["ingest", "vocabulary"])
    write_models(config, "end_to_end")
    return config


def write_models(config: Config, encoder: str) -> None:
    """Random weights, the same every time."""
    torch.manual_seed(0)
    vlm = RegionVLM(config.model).eval()
    models.write(model_folder(config, "one_to_one"), vlm, "f" * 16)
    attribute = attribute_embeddings(vlm, vocabulary.read(Store(config.run)))
    mapping = config.mapping.model_copy(update={"encoder": encoder})
    rate, features = torch.full((len(attribute),), 0.3), vlm.image.feature_dim
    model = MappingModel(mapping, config.model.image, attribute, rate, features)
    description = models.mapping_description(mapping, config.model, features, None)
    weights = {name: tensor.detach().contiguous() for name, tensor in model.state_dict().items()}
    models.commit(f"{config.run}/models/{encoder}", weights, description, {}, "f" * 16)


class Stages:
    """The offline stages of one config, written below their own names so that several variants stand side by side."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.frozen = config.mapping.encoder == "frozen"
        self.vlm = model_folder(config, "one_to_one") if self.frozen else ""

    def request(self, stage: str, folder: str, **params: Any) -> StageRequest:
        return StageRequest(stage, folder, "train", self.config, "a" * 16, params)

    def regions(self, shards: list[str], *, keep: int) -> list[Marker]:
        worker = self.request("regions", "regions", model=self.vlm, keep=keep).worker()
        return [worker.process(shard) for shard in shards]

    def pairs(self, folder: str, shards: list[str], *, fused: bool) -> list[Marker]:
        """fused: as where no region sidecar is of this config."""
        mapping = f"{self.config.run}/models/{self.config.mapping.encoder}"
        params = {"model": mapping, "vlm": self.vlm, "regions": "b" * 16 if fused else None}
        worker = self.request("pairs", folder, **params).worker()
        return [worker.process(shard) for shard in shards]

    def bytes(self, folder: str, shard: str) -> bytes:
        return Path(self.config.run, "train", folder, f"{shard}.parquet").read_bytes()
