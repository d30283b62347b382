"""Embeddings of attributes by a text tower that does not learn: each is made once and kept, on every rank.

V x D numbers in fp32 on the model's device: 205 MB for 100,000 attributes of 512 dimensions. Attributes are embedded in
blocks of neighbouring ids, so that an embedding does not depend on what was asked for before, nor on the number of ranks:
a resumed job has the same.

Letters: V vocabulary, T attributes asked for, D embedding.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from villa_dist.distributed import rank, world_size
from villa_dist.losses import gather_texts
from villa_dist.train.precision import full_precision

BLOCK = 32  # ids embedded together

Embed = Callable[[Int[Tensor, " T"]], Float[Tensor, "T D"]]


def is_frozen(tower: nn.Module) -> bool:
    return not any(p.requires_grad for p in tower.parameters())


class AttributeCache:
    """embed: makes embeddings of ids, by `tower`, which is put out of training (dropout) for the while."""

    def __init__(self, embed: Embed, tower: nn.Module, size: int) -> None:
        self.embed, self.tower, self.size = embed, tower, size
        self.known = torch.zeros(-(-size // BLOCK), dtype=torch.bool)
        self.table: Tensor | None = None

    def __call__(self, ids: Int[Tensor, " T"]) -> Float[Tensor, "T D"]:
        """Of ids that are the same on every rank; called by all. Ranks share the work and call the tower equally often."""
        wanted = torch.unique(ids.cpu() // BLOCK)
        missing = wanted[~self.known[wanted]].tolist()
        if missing:
            self._fill(missing, ids)
        assert self.table is not None
        return self.table[ids]

    def _fill(self, missing: list[int], like: Tensor) -> None:
        world, training = world_size(), self.tower.training
        self.tower.eval()
        with torch.no_grad(), full_precision(like.device):
            for first in range(0, len(missing), world):
                some = missing[first : first + world]
                mine = some[min(rank(), len(some) - 1)]
                start = mine * BLOCK + torch.arange(BLOCK, device=like.device)
                rows = gather_texts(self.embed(start.clamp(max=self.size - 1)))
                for part, number in zip(rows.split(BLOCK), some, strict=False):
                    self._keep(part.float(), number)
        self.tower.train(training)

    def _keep(self, rows: Float[Tensor, "B D"], number: int) -> None:
        if self.table is None:
            self.table = rows.new_zeros(self.size, rows.shape[1])
        stop = min((number + 1) * BLOCK, self.size)
        self.table[number * BLOCK : stop] = rows[: stop - number * BLOCK]
        self.known[number] = True
