"""Text towers of CLIP, SigLIP and SigLIP 2 (transformers), with their own tokenizers. Letters: T texts, D embedding."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from shards.errors import VillaError
from villa_dist.encoders.hf_library import build
from villa_dist.encoders.published import Published
from villa_dist.encoders.text import TokenBatch, longest, padded, token_batch


class HFTextTower(nn.Module):
    """Unit embeddings. CLIP's padding follows the end of a text, where its causal layers never look; SigLIP attends to its
    padding, always up to the same length, as it was trained."""

    def __init__(self, published: Published, attention: str = "sdpa") -> None:
        super().__init__()
        if published.tokenizer is None:
            raise VillaError("a text tower needs its tokenizer; restore tokenizer.json in the model's folder")
        self.tokenizer, self.dim = published.tokenizer, published.dim
        self.model: Any = build(published.family, "text", published.architecture, attention)
        clip = published.family == "clip"
        width = self.model.config.hidden_size
        self.projection = nn.Linear(width, self.dim, bias=False) if clip else nn.Identity()

    def tokenize(self, texts: Sequence[str]) -> TokenBatch:
        return token_batch(self.tokenizer.ids(texts))

    def forward(self, batch: TokenBatch) -> Float[Tensor, "T D"]:
        length = self.tokenizer.length if self.tokenizer.pad_to == "length" else longest(batch)
        ids_TL = padded(batch, length, self.tokenizer.pad, left=self.tokenizer.side == "left")
        pooled = self.model(input_ids=ids_TL).pooler_output
        return F.normalize(self.projection(pooled).float(), dim=-1)
