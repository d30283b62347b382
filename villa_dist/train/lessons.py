"""What fit-mapping does to images and which it draws, from the config and what the texts mention."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from shards.errors import VillaError
from villa_dist.config import MappingConfig
from villa_dist.data.loader import Changes, Draws
from villa_dist.mapping.evidence import ALONE

COMMON = 0.5  # attributes of more than half of the images teach by their absence


def check_groups(config: MappingConfig, groups: Sequence[str]) -> None:
    """Raises: VillaError for a group that no attribute is of. groups: of each attribute."""
    for name in ("exclusive", "turned", "recoloured"):
        for unknown in sorted(set(getattr(config, name)) - set(groups)):
            raise VillaError(
                f"mapping.{name}: no attribute is of the group {unknown!r}; the vocabulary's groups are "
                f"{', '.join(repr(g) for g in dict.fromkeys(groups))}; name one of these, or leave mapping.{name} out"
            )


def exclusive_groups(config: MappingConfig, groups: Sequence[str]) -> Int[Tensor, " V"]:
    """Of each attribute the number of its group among `config.exclusive`, else ALONE."""
    check_groups(config, groups)
    number = {name: i for i, name in enumerate(config.exclusive)}
    return torch.tensor([number.get(g, ALONE) for g in groups], dtype=torch.int64)


def changes(config: MappingConfig, groups: Sequence[str]) -> tuple[tuple[Changes, ...], Int[Tensor, " V"]]:
    """The changes that images get, and for each attribute the one it is learnt from."""
    check_groups(config, groups)
    kept = [Changes(g in config.turned, g in config.recoloured) for g in groups]
    distinct = tuple(dict.fromkeys(kept))
    return distinct, torch.tensor([distinct.index(k) for k in kept], dtype=torch.int64)


def absence_draws(place: Int[np.ndarray, "K 2"], mentioned: Bool[np.ndarray, "K C"], images: int) -> Draws | None:
    """Draws by absence: each common attribute, in equal parts, draws among the images that lack it.

    place: (shard, row) of K images, ascending. mentioned: which of C common attributes each mentions. images: of the data
    set. None where no image lacks any.
    """
    absent = ~mentioned
    chance = (absent / np.maximum(absent.sum(0), 1)).sum(1)
    chosen = chance > 0
    if not chosen.any():
        return None
    return Draws(place[chosen], chance[chosen] / chance.sum(), images)
