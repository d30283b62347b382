"""CLIP's text transformer (arXiv 2103.00020, section 2.4), with the names of OpenAI's weights.

Letters: T texts, L tokens of the longest, C width, D embedding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from villa_dist.encoders.text import TokenBatch, longest, padded, token_batch
from villa_dist.encoders.tokenizer import TextTokenizer


@dataclass(frozen=True)
class TextSizes:
    """Of RN50: layers 12, width 512, heads 8, length 77, vocabulary 49408, dim 1024."""

    layers: int
    width: int
    heads: int
    length: int
    vocabulary: int
    dim: int

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


class Attention(nn.Module):
    """Causal self-attention with the parameters of nn.MultiheadAttention."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.in_proj_weight = nn.Parameter(torch.randn(3 * width, width) * width**-0.5)
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)

    def forward(self, x: Float[Tensor, "T L C"]) -> Float[Tensor, "T L C"]:
        texts, length, width = x.shape
        joined = F.linear(x, self.in_proj_weight, self.in_proj_bias)
        q, k, v = joined.view(texts, length, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        out: Tensor = self.out_proj(mixed.transpose(1, 2).reshape(texts, length, width))
        return out


class QuickGELU(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


class Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attn = Attention(width, heads)
        self.ln_1 = nn.LayerNorm(width)
        self.mlp = nn.Sequential()
        for name, part in (
            ("c_fc", nn.Linear(width, 4 * width)),
            ("gelu", QuickGELU()),
            ("c_proj", nn.Linear(4 * width, width)),
        ):
            self.mlp.add_module(name, part)
        self.ln_2 = nn.LayerNorm(width)

    def forward(self, x: Float[Tensor, "T L C"]) -> Float[Tensor, "T L C"]:
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class Transformer(nn.Module):
    def __init__(self, sizes: TextSizes) -> None:
        super().__init__()
        self.resblocks = nn.Sequential(*(Block(sizes.width, sizes.heads) for _ in range(sizes.layers)))

    def forward(self, x: Float[Tensor, "T L C"]) -> Float[Tensor, "T L C"]:
        out: Tensor = self.resblocks(x)
        return out


class ClipTextTower(nn.Module):
    """Unit embeddings of texts: the last token's state, which sees all before it, normalised and projected.

    tokenizer: may be given later, before the first text.
    """

    def __init__(self, sizes: TextSizes, tokenizer: TextTokenizer | None = None) -> None:
        super().__init__()
        self.sizes, self.dim = sizes, sizes.dim
        self.tokenizer: Any = tokenizer
        self.token_embedding = nn.Embedding(sizes.vocabulary, sizes.width)
        self.positional_embedding = nn.Parameter(torch.randn(sizes.length, sizes.width) * 0.01)
        self.transformer = Transformer(sizes)
        self.ln_final = nn.LayerNorm(sizes.width)
        self.text_projection = nn.Parameter(torch.randn(sizes.width, sizes.dim) * sizes.width**-0.5)

    def tokenize(self, texts: Sequence[str]) -> TokenBatch:
        assert self.tokenizer is not None, "a text tower without its tokenizer"
        return token_batch(self.tokenizer.ids(texts))

    def forward(self, batch: TokenBatch) -> Float[Tensor, "T D"]:
        ids_TL = padded(batch, longest(batch), self.tokenizer.pad)
        x_TLC = self.token_embedding(ids_TL) + self.positional_embedding[: ids_TL.shape[1]]
        x_TLC = self.transformer(x_TLC)
        last_T = torch.bincount(batch.text_of, minlength=batch.texts) - 1
        x_TC = self.ln_final(x_TLC[torch.arange(batch.texts, device=last_T.device), last_T])
        return F.normalize((x_TC @ self.text_projection).float(), dim=-1)
