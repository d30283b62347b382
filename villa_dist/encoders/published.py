"""Published checkpoints as data: what towers are built from, apart from where it was read.

`read` takes a checkpoint of the kind the config names; a finished model's folder holds the same data (models.py), so that
it needs neither the checkpoint nor a network. Tensors are named as RegionVLM names them: image.…, text.…, projection.…
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from torch import Tensor, nn

from shards.digest import fingerprint
from shards.errors import VillaError
from villa_dist.config import ModelConfig
from villa_dist.encoders.preprocess import Preprocess
from villa_dist.encoders.tokenizer import TextTokenizer

Family = Literal["clip_resnet", "clip", "siglip", "siglip2"]


@dataclass(frozen=True)
class Published:
    """architecture: JSON from which the towers are built. log_scale: of its logits. weights: None for random ones."""

    family: Family
    architecture: dict[str, Any]
    preprocess: Preprocess
    dim: int
    log_scale: float
    tokenizer: TextTokenizer | None
    weights: dict[str, Tensor] | None = None

    def as_json(self) -> dict[str, Any]:
        """All but the weights and the tokenizer's content, which are files of their own."""
        return {
            "family": self.family,
            "architecture": self.architecture,
            "preprocess": self.preprocess.as_json(),
            "dim": self.dim,
            "log_scale": self.log_scale,
            "tokenizer": self.tokenizer.as_json() if self.tokenizer else None,
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any], tokenizer: bytes | None) -> Published:
        """tokenizer: the content of its file, or None where only the image tower is wanted."""
        settings = values["tokenizer"]
        text = TextTokenizer(tokenizer.decode(), **settings) if tokenizer is not None and settings else None
        return cls(
            values["family"],
            values["architecture"],
            Preprocess.from_json(values["preprocess"]),
            values["dim"],
            values["log_scale"],
            text,
        )

    def without_weights(self) -> Published:
        return replace(self, weights=None)


def _clip_rn50(config: ModelConfig) -> Published:
    from villa_dist.encoders.openai import read_openai

    return read_openai(config)


def _hf(config: ModelConfig) -> Published:
    from villa_dist.encoders.hf_checkpoint import read_hf

    return read_hf(config)


READERS: dict[str, Callable[[ModelConfig], Published]] = {"clip_rn50": _clip_rn50, "hf": _hf}


def read(config: ModelConfig) -> Published:
    """The checkpoint of `model.weights`. Raises: VillaError naming what is missing or wrong, and the remedy."""
    return READERS[config.image.kind](config)


def load_weights(module: nn.Module, weights: Mapping[str, Tensor], place: str) -> None:
    """load_state_dict, strict, with the first tensors that are missing, of another shape or unknown named.

    Batch norm's counts of batches, which old files lack, may be missing.
    """
    own = module.state_dict()
    for name, tensor in weights.items():
        if name in own and own[name].shape != tensor.shape:
            raise VillaError(
                f"{place}: tensor {name} has shape {list(tensor.shape)}, and the architecture it comes with wants "
                f"{list(own[name].shape)}; use the weights and the config of one checkpoint"
            )
    missing = [n for n in own if n not in weights and not n.endswith("num_batches_tracked")]
    unknown = [n for n in weights if n not in own]
    if missing or unknown:
        told = [f"lacks {_some(missing)}"] * bool(missing) + [f"has unknown tensors {_some(unknown)}"] * bool(unknown)
        raise VillaError(f"{place} {' and '.join(told)}; it is another architecture, or a part of a checkpoint")
    module.load_state_dict({n: weights.get(n, own[n]) for n in own})


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def digest(config: ModelConfig) -> str:
    """Of the checkpoint's files: what a model that starts from it is bound to. A changed file is another digest."""
    from villa_dist.encoders.hf_checkpoint import checkpoint_files, local_folder

    assert config.weights is not None
    if config.image.kind == "hf":
        files = checkpoint_files(local_folder(config.weights, config.revision))
    else:
        files = [Path(config.weights), Path(config.text.vocabulary or "")]
    for path in files:
        if not path.is_file():
            raise VillaError(f"{path} does not exist or is no file; give the path of a checkpoint's file")
    stats = [(p, os.stat(p)) for p in files]
    return fingerprint([[p.name, _sha256(str(p.resolve()), s.st_size, s.st_mtime_ns)] for p, s in stats])


@lru_cache(maxsize=64)
def _sha256(path: str, size: int, modified: int) -> str:
    """Of a file as it was at that size and time of change: large files are hashed once a process."""
    with open(path, "rb") as file:
        found = hashlib.sha256()
        while block := file.read(1 << 22):
            found.update(block)
    return found.hexdigest()
