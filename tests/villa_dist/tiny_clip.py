"""Tiny random CLIP ResNets as OpenAI publishes them: a state dict with its names, and a vocabulary file."""

from __future__ import annotations

import gzip
import itertools
from pathlib import Path

import torch
from torch import Tensor, nn

LAYERS, WIDTH, CELLS, DIM = (1, 2, 1, 1), 8, 3, 20
SIDE = 32 * CELLS
TEXT_WIDTH, TEXT_LAYERS, LENGTH = 64, 2, 16
TOKENS = 49_408


def state_dict(seed: int = 0) -> dict[str, Tensor]:
    make = torch.Generator().manual_seed(seed)
    state: dict[str, Tensor] = {}

    def put(name: str, *shape: int, scale: float = 0.0) -> None:
        fan = max(torch.Size(shape[1:]).numel(), 1) if len(shape) > 1 else 1
        state[name] = torch.randn(shape, generator=make) * (scale or fan**-0.5)

    def norm(name: str, channels: int) -> None:
        state[f"{name}.weight"] = 1 + 0.2 * torch.randn(channels, generator=make)
        state[f"{name}.bias"] = 0.2 * torch.randn(channels, generator=make)

    def batch_norm(name: str, channels: int) -> None:
        norm(name, channels)
        state[f"{name}.running_mean"] = 0.3 * torch.randn(channels, generator=make)
        state[f"{name}.running_var"] = 0.5 + torch.rand(channels, generator=make)
        state[f"{name}.num_batches_tracked"] = torch.tensor(0)

    half = WIDTH // 2
    for n, (inner, outer) in enumerate(((3, half), (half, half), (half, WIDTH)), 1):
        put(f"visual.conv{n}.weight", outer, inner, 3, 3)
        batch_norm(f"visual.bn{n}", outer)
    channels = WIDTH
    for stage, blocks in enumerate(LAYERS, 1):
        planes = WIDTH * 2 ** (stage - 1)
        for b in range(blocks):
            name = f"visual.layer{stage}.{b}"
            shapes = ((planes, channels, 1), (planes, planes, 3), (4 * planes, planes, 1))
            for n, (outer, inner, kernel) in enumerate(shapes, 1):
                put(f"{name}.conv{n}.weight", outer, inner, kernel, kernel)
                batch_norm(f"{name}.bn{n}", outer)
            if b == 0:
                put(f"{name}.downsample.0.weight", 4 * planes, channels, 1, 1)
                batch_norm(f"{name}.downsample.1", 4 * planes)
            channels = 4 * planes
    put("visual.attnpool.positional_embedding", CELLS * CELLS + 1, channels, scale=0.5)
    for part, outer in (("q", channels), ("k", channels), ("v", channels), ("c", DIM)):
        put(f"visual.attnpool.{part}_proj.weight", outer, channels)
        put(f"visual.attnpool.{part}_proj.bias", outer, scale=0.1)
    put("token_embedding.weight", TOKENS, TEXT_WIDTH, scale=0.3)
    put("positional_embedding", LENGTH, TEXT_WIDTH, scale=0.3)
    for b in range(TEXT_LAYERS):
        name = f"transformer.resblocks.{b}"
        put(f"{name}.attn.in_proj_weight", 3 * TEXT_WIDTH, TEXT_WIDTH)
        put(f"{name}.attn.in_proj_bias", 3 * TEXT_WIDTH, scale=0.1)
        shapes_of = {"attn.out_proj": (64, 64), "mlp.c_fc": (256, 64), "mlp.c_proj": (64, 256)}
        for part, shape in shapes_of.items():
            put(f"{name}.{part}.weight", *shape)
            put(f"{name}.{part}.bias", shape[0], scale=0.1)
        norm(f"{name}.ln_1", TEXT_WIDTH)
        norm(f"{name}.ln_2", TEXT_WIDTH)
    norm("ln_final", TEXT_WIDTH)
    put("text_projection", TEXT_WIDTH, DIM, scale=0.2)
    state["logit_scale"] = torch.tensor(3.7)
    return state


def vocabulary(folder: Path) -> str:
    """A file of the size and form of CLIP's; its first merges make "cat" one token."""
    real = [("c", "a"), ("ca", "t</w>"), ("d", "o"), ("do", "g</w>")]
    letters = "abcdefghijklmnopqrstuvwxyz"
    two = [(a, b) for a, b in itertools.product(letters, repeat=2) if (a, b) not in real]
    four = ((f"{a}{b}", f"{c}{d}") for (a, b), (c, d) in itertools.product(two, repeat=2))
    lines = ["#version"] + [f"{a} {b}" for a, b in itertools.islice(itertools.chain(real, two, four), 48_894 + 100)]
    path = folder / "vocabulary.txt.gz"
    path.write_bytes(gzip.compress("\n".join(lines).encode()))
    return str(path)


def module_of(state: dict[str, Tensor]) -> nn.Module:
    """A module tree whose state_dict() is `state`, to be saved as TorchScript."""
    root = Empty()
    for name, tensor in state.items():
        *path, last = name.split(".")
        place: nn.Module = root
        for part in path:
            if part not in place._modules:
                place.add_module(part, Empty())
            place = place._modules[part]  # type: ignore[assignment]
        if "running" in last or "tracked" in last:
            place.register_buffer(last, tensor.clone())
        else:
            place.register_parameter(last, nn.Parameter(tensor.clone()))
    return root


class Empty(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * 1.0
