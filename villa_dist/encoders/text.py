"""Text towers. `words`: hashed words, attention-weighted and mixed by a small MLP; trained from scratch in minutes.
`clip` and `hf` are published transformers (clip_text.py, hf_text.py)."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from villa_dist.attributes.extract import tokens
from villa_dist.config import TextTowerConfig
from villa_dist.encoders.published import Published


class TokenBatch(NamedTuple):
    """T texts of W words (or tokens) in all: their ids end to end, and the text each belongs to."""

    words: Int[Tensor, " W"]
    text_of: Int[Tensor, " W"]
    texts: int

    def to(self, device: torch.device) -> TokenBatch:
        return TokenBatch(self.words.to(device), self.text_of.to(device), self.texts)


class TextTower(Protocol):
    """What a text tower offers. `dim` is the width of its embeddings, which have unit length."""

    dim: int

    def tokenize(self, texts: Sequence[str]) -> TokenBatch: ...

    def __call__(self, batch: TokenBatch) -> Float[Tensor, "T D"]: ...


def token_batch(ids: Sequence[Sequence[int]]) -> TokenBatch:
    lengths = torch.tensor([len(i) for i in ids], dtype=torch.int64)
    text_of = torch.repeat_interleave(torch.arange(len(ids)), lengths)
    return TokenBatch(torch.tensor([w for i in ids for w in i], dtype=torch.int64), text_of, len(ids))


def padded(batch: TokenBatch, length: int, pad: int, *, left: bool = False) -> Int[Tensor, "T L"]:
    """Token ids as rows of `length`, filled up with `pad` after (or before) each text."""
    counts_T = torch.bincount(batch.text_of, minlength=batch.texts)
    starts_T = counts_T.cumsum(0) - counts_T
    place_W = torch.arange(len(batch.words), device=batch.words.device) - starts_T[batch.text_of]
    if left:
        place_W = place_W + (length - counts_T)[batch.text_of]
    ids_TL = batch.words.new_full((batch.texts, length), pad)
    ids_TL[batch.text_of, place_W] = batch.words
    return ids_TL


def longest(batch: TokenBatch) -> int:
    """Tokens of the longest text of a batch, at least 1."""
    return int(torch.bincount(batch.text_of).max()) if len(batch.words) else 1


@lru_cache(maxsize=1 << 16)
def word_bucket(word: str, buckets: int) -> int:
    return int.from_bytes(hashlib.blake2b(word.encode(), digest_size=8).digest(), "big") % buckets


def tokenize_words(texts: Sequence[str], buckets: int) -> TokenBatch:
    """Words hashed into `buckets` ids. A text without a word becomes the id 0."""
    return token_batch([[word_bucket(w, buckets) for w in tokens(text)] or [0] for text in texts])


class WordTower(nn.Module):
    """Unit text embeddings: softmax-weighted mean of word vectors, plus an MLP of it. Word order is ignored."""

    def __init__(self, config: TextTowerConfig, dim: int) -> None:
        super().__init__()
        self.dim, self.buckets = dim, config.buckets
        self.vectors = nn.Embedding(config.buckets, dim)
        self.weights = nn.Embedding(config.buckets, 1)
        nn.init.zeros_(self.weights.weight)
        self.mix = nn.Sequential(nn.Linear(dim, 2 * dim), nn.ReLU(), nn.Linear(2 * dim, dim))

    def tokenize(self, texts: Sequence[str]) -> TokenBatch:
        return tokenize_words(texts, self.buckets)

    def forward(self, batch: TokenBatch) -> Float[Tensor, "T D"]:
        weight_W = torch.exp(self.weights(batch.words)[:, 0].clamp(max=20.0))
        total_T = weight_W.new_zeros(batch.texts).index_add(0, batch.text_of, weight_W)
        share_W = weight_W / total_T[batch.text_of]
        vectors_WD = self.vectors(batch.words) * share_W[:, None]
        mean_TD = vectors_WD.new_zeros(batch.texts, vectors_WD.shape[1]).index_add(0, batch.text_of, vectors_WD)
        return F.normalize(mean_TD + self.mix(mean_TD), dim=-1)


def _clip(config: TextTowerConfig, dim: int, published: Published | None, attention: str) -> nn.Module:
    from villa_dist.encoders.clip_text import ClipTextTower, TextSizes

    assert published is not None and published.tokenizer is not None
    return ClipTextTower(TextSizes(**published.architecture["text"]), published.tokenizer)


def _hf(config: TextTowerConfig, dim: int, published: Published | None, attention: str) -> nn.Module:
    from villa_dist.encoders.hf_text import HFTextTower

    assert published is not None
    return HFTextTower(published, attention)


# all are nn.Modules that keep to TextTower; those of a checkpoint are built with random weights
TEXT_TOWERS: dict[str, Callable[[TextTowerConfig, int, Published | None, str], Any]] = {
    "words": lambda config, dim, published, attention: WordTower(config, dim),
    "clip": _clip,
    "hf": _hf,
}
