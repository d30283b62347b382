"""The paper's loss (ViLLA, ICCV 2023, stage 2): InfoNCE over regions with their texts. Letters as in softmax.py."""

from __future__ import annotations

import torch
import torch.distributed as dist
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from villa_dist.distributed import rank, world_size
from villa_dist.losses.pairs import Pairs
from villa_dist.losses.softmax import multi_positive
from villa_dist.losses.texts import gather_texts, widened


def infonce(
    u: Float[Tensor, "R D"],
    v: Float[Tensor, "T D"],
    scale: Float[Tensor, ""],
    pairs: Pairs,
    tile: int | None = None,
) -> Float[Tensor, ""]:
    """Mean over the global batch's rows of -log softmax of a region with its text, both directions, halved.

    A row is a region that has a pair; its text is the unit mean of the embeddings of its texts. Every other row is negative,
    also one with the same text. Arguments, value on ranks and gradients as in `multi_positive`.
    """
    v = widened(v)
    kept, row = torch.unique(pairs.region, return_inverse=True)
    total_KD = v.new_zeros(len(kept), v.shape[1]).index_add(0, row, v[pairs.text])
    first, every = gather_uneven(F.normalize(total_KD, dim=-1))
    here = torch.arange(len(kept), device=u.device)
    return multi_positive(u[kept], every, scale, Pairs(here, here + first), tile)


def gather_uneven(mine: Float[Tensor, "K D"]) -> tuple[int, Float[Tensor, "M D"]]:
    """(where this rank's rows start, the rows of all ranks), however many each has; at least one row. The gradient is
    summed over ranks."""
    if world_size() == 1:
        return 0, mine if len(mine) else mine.new_zeros(1, mine.shape[1])
    counts = _counts(torch.tensor([len(mine)], device=mine.device))
    longest = max(*counts, 1)
    padded = F.pad(mine, (0, 0, 0, longest - len(mine)))
    parts = gather_texts(padded).split(longest)
    every = torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])
    return sum(counts[: rank()]), every if len(every) else parts[0][:1]


def _counts(mine: Int[Tensor, " 1"]) -> list[int]:
    found = [torch.empty_like(mine) for _ in range(world_size())]
    dist.all_gather(found, mine)
    return [int(c) for c in found]
