"""Reading CLIP ResNets as OpenAI and open_clip publish them: one file of tensors, its sizes told by their shapes.

Files: OpenAI's TorchScript archives (RN50.pt), state dicts (.pt, .pth, .bin; also open_clip's training checkpoints) and
.safetensors. Nothing in a file is executed.
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from shards.errors import VillaError
from villa_dist.config import ModelConfig
from villa_dist.encoders.clip_rn50 import PATCH, ResNetSizes
from villa_dist.encoders.clip_text import TextSizes
from villa_dist.encoders.preprocess import CLIP_MEAN, CLIP_STD, Preprocess
from villa_dist.encoders.published import Published
from villa_dist.encoders.tokenizer import clip_tokenizer
from villa_dist.encoders.torchscript import is_torchscript, read_torchscript

TEXT = ("token_embedding", "positional_embedding", "transformer", "ln_final", "text_projection")
CLIP_HEAD = 64  # width of an attention head in all of CLIP
SETTINGS = ("input_resolution", "context_length", "vocab_size")  # numbers that OpenAI's archives keep among the tensors


def read_openai(config: ModelConfig) -> Published:
    """Raises: VillaError when the file is missing, unsafe, or no CLIP ResNet."""
    assert config.weights is not None and config.text.vocabulary is not None
    place = config.weights
    state = published_names(read_tensors(place))
    if "visual.proj" in state or "visual.class_embedding" in state:
        raise VillaError(
            f"model.weights: {place} is a CLIP vision transformer; image.kind=clip_rn50 reads CLIP's ResNets. Give a "
            "transformers folder or hub id of it (such as openai/clip-vit-base-patch16) with image.kind=hf"
        )
    try:
        image, text = resnet_sizes(state), text_sizes(state)
    except KeyError as error:
        raise VillaError(
            f"model.weights: {place} is no CLIP ResNet: it lacks the tensor {error}; it starts with "
            f"{', '.join(sorted(state)[:3]) or 'nothing'}. Give OpenAI's RN50.pt, or a state dict with its names"
        ) from None
    tokenizer = clip_tokenizer(config.text.vocabulary, text.length)
    if tokenizer.size > text.vocabulary:
        raise VillaError(
            f"model.weights: {place} knows {text.vocabulary} tokens and model.text.vocabulary has {tokenizer.size}; give "
            "the vocabulary the checkpoint was trained with"
        )
    weights = {_own_name(n): t.to(torch.float32) if t.is_floating_point() else t for n, t in state.items()}
    scale = float(weights.pop("logit_scale", torch.tensor(4.6052)))
    return Published(
        "clip_resnet",
        {"image": image.as_json(), "text": text.as_json()},
        Preprocess(image.side, CLIP_MEAN, CLIP_STD, short=image.side),
        text.dim,
        scale,
        tokenizer,
        weights,
    )


def read_tensors(path: str) -> dict[str, Tensor]:
    """The tensors of a file by name, on the CPU. Raises: VillaError when it is none, damaged, or holds more than data."""
    file = Path(path)
    if not file.is_file():
        what = "is a folder" if file.is_dir() else "does not exist"
        raise VillaError(f"model.weights: {path} {what}; give the file of a checkpoint (RN50.pt, *.safetensors, *.bin)")
    if file.suffix == ".safetensors":
        try:
            return load_file(path)
        except (SafetensorError, OSError, ValueError) as error:
            raise VillaError(f"model.weights: {path} is no whole safetensors file ({error}); fetch it again") from error
    if is_torchscript(file):
        return read_torchscript(file)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        refused = re.search(r"GLOBAL ([\w.]+)", str(error))
        if refused is None:  # an opcode that no checkpoint has
            raise VillaError(
                f"model.weights: {path} is no whole checkpoint, or more than tensors; it was not read and nothing ran. "
                "Fetch it again, or give a .safetensors file"
            ) from error
        raise VillaError(
            f"model.weights: {path} holds more than tensors (its pickle names {refused.group(1)}); reading it would run "
            'code, so it is refused and nothing ran. Convert it where you trust it: python -c "import torch, '
            f"safetensors.torch as s; s.save_file(torch.load('{file.name}', weights_only=False)['state_dict'], "
            "'weights.safetensors')\""
        ) from error
    except (RuntimeError, OSError, EOFError, ValueError, KeyError, TypeError, AttributeError) as error:
        said = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise VillaError(f"model.weights: {path} is no whole checkpoint ({said}); fetch it again") from error
    return _tensors(content, path)


def _tensors(content: Any, path: str) -> dict[str, Tensor]:
    for key in ("state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    found = {n: t for n, t in content.items() if isinstance(t, Tensor)} if isinstance(content, Mapping) else {}
    if not found:
        raise VillaError(f"model.weights: {path} holds no tensors by name; give a state dict")
    return {str(name): tensor for name, tensor in found.items()}


def published_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """OpenAI's names, from those of data-parallel checkpoints (`module.`) and of open_clip's custom models (`text.`)."""
    plain = {n.removeprefix("module."): t for n, t in state.items()}
    named = {n.removeprefix("text."): t for n, t in plain.items()}
    return {n: t for n, t in named.items() if n not in SETTINGS and not n.endswith("attn_mask")}


def _own_name(name: str) -> str:
    if name.startswith("visual."):
        return "image." + name.removeprefix("visual.")
    return f"text.{name}" if name.startswith(TEXT) else name


def resnet_sizes(state: Mapping[str, Tensor]) -> ResNetSizes:
    """Raises: KeyError naming the tensor that is missing."""
    width = state["visual.layer1.0.conv1.weight"].shape[0]
    cells = round((state["visual.attnpool.positional_embedding"].shape[0] - 1) ** 0.5)
    one, two, three, four = (len(_numbers(state, rf"visual\.layer{b}\.(\d+)\.")) for b in (1, 2, 3, 4))
    heads = max(width * 32 // CLIP_HEAD, 1)
    dim = state["visual.attnpool.c_proj.weight"].shape[0]
    return ResNetSizes((one, two, three, four), width, heads, cells * PATCH, dim)


def text_sizes(state: Mapping[str, Tensor]) -> TextSizes:
    """Raises: KeyError naming the tensor that is missing."""
    width, dim = state["text_projection"].shape
    layers = len(_numbers(state, r"transformer\.resblocks\.(\d+)\."))
    length, vocabulary = state["positional_embedding"].shape[0], state["token_embedding.weight"].shape[0]
    return TextSizes(layers, width, max(width // CLIP_HEAD, 1), length, vocabulary, dim)


def _numbers(state: Mapping[str, Tensor], pattern: str) -> set[str]:
    return {m.group(1) for m in (re.match(pattern, name) for name in state) if m}
