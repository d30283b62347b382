"""Pairs of regions and texts: positive ones, those that are no fair negatives, and how they fall into tiles of rows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

TILE_LOGITS = {"cpu": 1 << 20, "cuda": 1 << 26}  # numbers: what stays in a CPU's cache; what keeps a GPU busy
FEWEST_ROWS, MOST_ROWS = 64, 8192
CHUNK_ROWS = 1024  # of texts compared with all others at once


class Pairs(NamedTuple):
    """Pairs of this rank, positive or ignored: `region[p]` and `text[p]`; each pair at most once."""

    region: Int[Tensor, " P"]
    text: Int[Tensor, " P"]


class Near(NamedTuple):
    """Q ordered pairs of texts that nearly say the same, ascending by `text`; a text is not paired with itself."""

    text: Int[Tensor, " Q"]
    other: Int[Tensor, " Q"]


def nobody(like: Pairs) -> Pairs:
    return Pairs(like.region[:0], like.text[:0])


def near_texts(like_TD: Float[Tensor, "T D"], threshold: float) -> Near:
    """Texts whose unit vectors have a cosine above `threshold`; a part of them at a time, so memory is linear in T."""
    found = [torch.zeros(0, 2, dtype=torch.int64, device=like_TD.device)]
    for at in range(0, len(like_TD), CHUNK_ROWS):
        near = like_TD[at : at + CHUNK_ROWS] @ like_TD.T > threshold
        near.diagonal(at).fill_(False)
        found.append(near.nonzero() + near.new_tensor([at, 0], dtype=torch.int64))
    text, other = torch.cat(found).unbind(1)
    return Near(text, other)


def near_pairs(pairs: Pairs, near: Near, texts: int) -> Pairs:
    """Pairs that are no fair negatives: each region with the texts that nearly say what one of its own says, without those
    of its own."""
    counts_T = torch.bincount(near.text, minlength=texts)
    starts_T = counts_T.cumsum(0) - counts_T
    many_P = counts_T[pairs.text]
    region = torch.repeat_interleave(pairs.region, many_P)
    place = torch.arange(len(region), device=region.device)
    place = place - torch.repeat_interleave(many_P.cumsum(0) - many_P - starts_T[pairs.text], many_P)
    found = torch.unique(region * texts + near.other[place])
    found = found[~torch.isin(found, pairs.region * texts + pairs.text)]
    return Pairs(found // texts, found % texts)


def rows_of_tile(texts: int, device: torch.device) -> int:
    """Rows whose logits are held at once."""
    return min(max(TILE_LOGITS.get(device.type, 1 << 20) // max(texts, 1), FEWEST_ROWS), MOST_ROWS)


def tiles(rows: int, tile: int, *kinds: Pairs) -> Iterator[tuple[slice, list[Pairs]]]:
    """Slices of rows, each with its pairs of every kind; their regions count from the slice's first row."""
    starts = list(range(0, rows, tile))
    cut = [_by_tile(pairs, starts, tile) for pairs in kinds]
    for number, at in enumerate(starts):
        yield slice(at, min(at + tile, rows)), [parts[number] for parts in cut]


def _by_tile(pairs: Pairs, starts: list[int], tile: int) -> list[Pairs]:
    if not len(pairs.region):
        return [pairs] * len(starts)
    region, order = pairs.region.sort(stable=True)
    sizes = torch.bincount(region // tile, minlength=len(starts)).tolist()
    return [
        Pairs(mine - at, text)
        for at, mine, text in zip(starts, region.split(sizes), pairs.text[order].split(sizes), strict=True)
    ]
