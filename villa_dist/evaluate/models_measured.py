"""The models that a run's evaluation measures: the run's own, and published ones beside them.

Letters: S sentences, T texts, C classes, D embedding.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from shards.digest import fingerprint
from shards.store import Store
from villa_dist import claims, models
from villa_dist.attributes.extract import sentences
from villa_dist.config import Config, ModelConfig
from villa_dist.config_evaluate import BaselineConfig
from villa_dist.encoders import published
from villa_dist.encoders.precision import autocast, best_device
from villa_dist.evaluate.errors import EvaluationError
from villa_dist.evaluate.known_boxes import FOLDER
from villa_dist.evaluate.zero_shot import class_prompts, prompt_vectors
from villa_dist.names import TITLES
from villa_dist.train.jobs import model_folder
from villa_dist.vlm.model import RegionVLM

TEXTS_AT_ONCE = 256


@dataclass(frozen=True)
class Measured:
    """A row of the tables; small and picklable. baseline: None for a job of the run."""

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


def rows(config: Config) -> list[Measured]:
    """The run's VLMs, then the baselines."""
    return [*map(Measured, claims.jobs(config)), *(Measured(b.row, b) for b in config.evaluate.baselines)]


def for_worker(row: Measured, config: Config) -> tuple[Config, RegionVLM]:
    """(the config with this model in it, the model), in a worker of a stage."""
    torch.set_num_threads(config.regions.threads)
    return row.config(config), row.load(config)


def encode(vlm: RegionVLM, texts: Sequence[str], dtype: str = "fp32") -> np.ndarray:
    """T x D float32: each distinct text is embedded once, so equal texts have equal embeddings."""
    distinct = list(dict.fromkeys(texts))
    device = next(vlm.parameters()).device
    parts = [np.zeros((0, vlm.dim), np.float32)]
    with torch.inference_mode(), autocast(dtype, device):
        for start in range(0, len(distinct), TEXTS_AT_ONCE):
            tokens = vlm.tokenize(distinct[start : start + TEXTS_AT_ONCE])
            parts.append(vlm.embed_texts(tokens).float().cpu().numpy())
    number = {text: n for n, text in enumerate(distinct)}
    return np.concatenate(parts)[[number[t] for t in texts]]


def encode_whole(vlm: RegionVLM, texts: Sequence[str], dtype: str = "fp32") -> np.ndarray:
    """T x D float32: the unit mean of the distinct sentences of each text, as texts are learnt from."""
    said = [list(dict.fromkeys(sentences(t) or [t])) for t in texts]
    embedded = encode(vlm, [s for each in said for s in each], dtype)
    starts = np.cumsum([0, *map(len, said)])
    total = np.add.reduceat(embedded, starts[:-1], axis=0) if len(said) else embedded
    return np.asarray(total / np.maximum(np.linalg.norm(total, axis=1, keepdims=True), 1e-12), np.float32)


def put_class_vectors(config: Config, row: Measured, names: tuple[str, ...], templates: tuple[str, ...]) -> str:
    """`put_vectors` of classes that share their templates."""
    return put_vectors(config, row, [class_prompts(name, templates) for name in names])


def put_vectors(config: Config, row: Measured, prompts: Sequence[Sequence[str]]) -> str:
    """Write the class vectors of a model (C x D, float64), where they are not yet. Returns their file's name in the run,
    which tells models and prompts apart.

    Raises: EvaluationError naming the model whose text embeddings are not finite.
    """
    store = Store(config.run)
    name = f"{FOLDER}/{row.name}-{fingerprint([row.digest(config), [list(p) for p in prompts]])}.npy"
    if store.exists(name):
        return name
    vlm = row.load(config)
    try:
        vectors = prompt_vectors(prompts, lambda texts: encode(vlm, texts))
    except EvaluationError as error:
        raise EvaluationError(f"class vectors of {row.name}: {error}; the model is damaged") from error
    sink = io.BytesIO()
    np.save(sink, vectors)
    store.put(name, sink.getvalue())
    return name


def read_class_vectors(run: str, name: str) -> np.ndarray:
    return np.asarray(np.load(io.BytesIO(Store(run).read(name))))
