"""The classes of the transformers library that published towers are built from, and how they attend."""

from __future__ import annotations

import importlib
import os
from typing import Any

import torch
from torch import Tensor, nn

from shards.errors import VillaError
from villa_dist.encoders.precision import best_device

CLASSES = {
    "clip": ("CLIPConfig", "CLIPVisionModel", "CLIPTextModel"),
    "siglip": ("SiglipConfig", "SiglipVisionModel", "SiglipTextModel"),
    "siglip2": ("Siglip2Config", "Siglip2VisionModel", "Siglip2TextModel"),
}
MASKED = ("sdpa", "eager", "flash_attention_2")  # what the library builds masks for by itself


def library() -> Any:
    """transformers, quiet. It asks DeepSpeed for its accelerator, which on a CPU is told before it looks."""
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    transformers = importlib.import_module("transformers")
    transformers.logging.set_verbosity_error()
    return transformers


def config_class(family: str) -> Any:
    return getattr(library(), CLASSES[family][0])


def build(family: str, part: str, architecture: dict[str, Any], attention: str) -> Any:
    """A tower of the library with random weights. part: "vision" or "text".

    Raises: VillaError when `attention` is not there for this family or on this machine.
    """
    config = getattr(config_class(family).from_dict(architecture), f"{part}_config")
    heads, width = config.num_attention_heads, config.hidden_size
    if heads < 1 or width % heads or min(config.num_hidden_layers, width, getattr(config, "patch_size", 1)) < 1:
        raise VillaError(
            f"config.json: a {part} tower of {config.num_hidden_layers} layers of width {width} with {heads} heads cannot "
            "be built; fetch it again"
        )
    model = getattr(library(), CLASSES[family][1 if part == "vision" else 2])
    if attention == "xformers":
        register_xformers()
    try:
        built = model._from_config(config, attn_implementation=attention)
    except (ImportError, ValueError) as error:
        said = str(error).strip().splitlines()
        raise VillaError(
            f"model.attention={attention} cannot be used with {family} here ({said[0] if said else error}); use sdpa"
        ) from error
    return built.float()


def register_xformers() -> None:
    """Offer xformers' attention to the library as "xformers". Raises: VillaError where it is not installed."""
    try:
        operators = importlib.import_module("xformers.ops")
    except ImportError as error:
        raise VillaError(
            f"model.attention=xformers: xformers is not installed ({error}); install the gpu extra on a machine with CUDA, "
            "or use model.attention=sdpa"
        ) from error
    device = best_device()
    try:  # it imports anywhere and runs on few devices; only a call tells
        one = torch.zeros(1, 1, 1, 8, device=device)
        operators.memory_efficient_attention(one, one, one)
    except (NotImplementedError, RuntimeError, ValueError, TypeError) as error:
        raise VillaError(
            f"model.attention=xformers does not run on this {device.type} ({' '.join(str(error).split())[:150]}); use "
            "model.attention=sdpa"
        ) from error
    library()
    modeling = importlib.import_module("transformers.modeling_utils")
    masking = importlib.import_module("transformers.masking_utils")

    def attend(
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        scaling: float | None = None,
        dropout: float = 0.0,
        is_causal: bool | None = None,
        **_: Any,
    ) -> tuple[Tensor, None]:
        """N heads L d in, N L heads d out, which is also what xformers takes."""
        bias: Any = attention_mask
        if attention_mask is not None:
            shape = (query.shape[0], query.shape[1], query.shape[2], key.shape[2])
            bias = attention_mask.to(query.dtype).expand(shape).contiguous()
        elif is_causal:
            bias = operators.LowerTriangularMask()
        q, k, v = (t.transpose(1, 2).contiguous() for t in (query, key, value))
        return operators.memory_efficient_attention(q, k, v, attn_bias=bias, p=dropout, scale=scaling), None

    modeling.AttentionInterface.register("xformers", attend)
    masking.AttentionMaskInterface.register("xformers", masking.eager_mask)
