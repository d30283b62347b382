"""Text towers. `words`: hashed words, attention-weighted and mixed by a small MLP; trained from scratch in minutes."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from villa_dist.attributes.extract import tokens
from villa_dist.config import TextTowerConfig


class TokenBatch(NamedTuple):
    """T texts of W words in all: word ids end to end, and the text each word belongs to."""

    words: Int[Tensor, " W"]
    text_of: Int[Tensor, " W"]
    texts: int

    def to(self, device: torch.device) -> TokenBatch:
        return TokenBatch(self.words.to(device), self.text_of.to(device), self.texts)


class TextTower(Protocol):
    def tokenize(self, texts: Sequence[str]) -> TokenBatch: ...

    def __call__(self, batch: TokenBatch) -> Float[Tensor, "T D"]: ...


@lru_cache(maxsize=1 << 16)
def word_bucket(word: str, buckets: int) -> int:
    return int.from_bytes(hashlib.blake2b(word.encode(), digest_size=8).digest(), "big") % buckets


def tokenize_words(texts: Sequence[str], buckets: int) -> TokenBatch:
    """Words hashed into `buckets` ids. A text without a word becomes the id 0."""
    ids = [[word_bucket(w, buckets) for w in tokens(text)] or [0] for text in texts]
    lengths = torch.tensor([len(i) for i in ids], dtype=torch.int64)
    text_of = torch.repeat_interleave(torch.arange(len(ids)), lengths)
    return TokenBatch(torch.tensor([w for i in ids for w in i], dtype=torch.int64), text_of, len(ids))


class WordTower(nn.Module):
    """Unit text embeddings: softmax-weighted mean of word vectors, plus an MLP of it. Word order is ignored."""

    def __init__(self, config: TextTowerConfig, dim: int) -> None:
        super().__init__()
        self.vectors = nn.Embedding(config.buckets, dim)
        self.weights = nn.Embedding(config.buckets, 1)
        nn.init.zeros_(self.weights.weight)
        self.mix = nn.Sequential(nn.Linear(dim, 2 * dim), nn.ReLU(), nn.Linear(2 * dim, dim))

    def forward(self, batch: TokenBatch) -> Float[Tensor, "T D"]:
        weight_W = torch.exp(self.weights(batch.words)[:, 0].clamp(max=20.0))
        total_T = weight_W.new_zeros(batch.texts).index_add(0, batch.text_of, weight_W)
        share_W = weight_W / total_T[batch.text_of]
        vectors_WD = self.vectors(batch.words) * share_W[:, None]
        mean_TD = vectors_WD.new_zeros(batch.texts, vectors_WD.shape[1]).index_add(0, batch.text_of, vectors_WD)
        return F.normalize(mean_TD + self.mix(mean_TD), dim=-1)


TEXT_TOWERS: dict[str, Callable[[TextTowerConfig, int], WordTower]] = {"words": WordTower}
