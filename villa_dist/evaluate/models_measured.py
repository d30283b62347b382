"""The models that zero-shot detection measures: the run's own, and published ones beside them."""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
import torch

from shards.digest import fingerprint
from shards.store import Store
from villa_dist import models
from villa_dist.config import Config, ModelConfig
from villa_dist.config_evaluate import BaselineConfig
from villa_dist.encoders import published
from villa_dist.encoders.precision import best_device
from villa_dist.evaluate.errors import EvaluationError
from villa_dist.evaluate.known_boxes import FOLDER
from villa_dist.evaluate.zero_shot import class_vectors
from villa_dist.names import TITLES
from villa_dist.train.jobs import model_folder
from villa_dist.vlm.model import RegionVLM


@dataclass(frozen=True)
class Measured:
    """A row of the table; small and picklable. baseline: None for a job of the run."""

    name: str
    baseline: BaselineConfig | None = None

    @property
    def title(self) -> str:
        return TITLES.get(self.name, self.name)

    def config(self, config: Config) -> Config:
        """The config with this row's model in place of the run's."""
        if self.baseline is None:
            return config
        model = ModelConfig.model_validate(
            {
                "image": {"kind": "hf", "regions": self.baseline.regions},
                "weights": self.baseline.weights,
                "revision": self.baseline.revision,
                "attention": config.model.attention,
                "dtype": config.model.dtype,
            }
        )
        return config.model_copy(update={"model": model})

    def digest(self, config: Config) -> str:
        """Of its weights, and how a baseline embeds regions. Raises: VillaError when they are not there."""
        if self.baseline is None:
            return models.load(model_folder(config, self.name)).sha256
        return fingerprint([published.digest(self.config(config).model), self.baseline.regions])

    def load(self, config: Config) -> RegionVLM:
        """In eval mode, on the best device of this process."""
        if self.baseline is None:
            return models.load_vlm(model_folder(config, self.name), best_device())
        return RegionVLM(self.config(config).model).to(best_device()).eval().requires_grad_(False)


def put_class_vectors(config: Config, row: Measured, names: tuple[str, ...], templates: tuple[str, ...]) -> str:
    """Write the class vectors of a model (C x D, float64), where they are not yet. Returns their file's name in the run,
    which tells model, classes and templates apart.

    Raises: EvaluationError naming the model whose text embeddings are not finite.
    """
    store = Store(config.run)
    name = f"{FOLDER}/{row.name}-{fingerprint([row.digest(config), names, templates])}.npy"
    if store.exists(name):
        return name
    vlm = row.load(config)

    def encode(texts: list[str]) -> np.ndarray:
        with torch.inference_mode():
            return vlm.embed_texts(vlm.tokenize(texts)).float().cpu().numpy()

    try:
        vectors = class_vectors(names, templates, encode)
    except EvaluationError as error:
        raise EvaluationError(f"class vectors of {row.name}: {error}; the model is damaged") from error
    sink = io.BytesIO()
    np.save(sink, vectors)
    store.put(name, sink.getvalue())
    return name


def read_class_vectors(run: str, name: str) -> np.ndarray:
    return np.asarray(np.load(io.BytesIO(Store(run).read(name))))
