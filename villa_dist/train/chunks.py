"""A batch embedded a few images at a time, with the full batch's negatives (after GradCache, arXiv 2101.06983).

Each chunk's embeddings are computed and only they are kept; the loss sees all of them; in the backward pass each chunk is
embedded again, with what its own gradient needs, from its embeddings' gradient. That is activation checkpointing over
chunks, so an engine sees one forward and one backward pass whatever the chunks, and parameters' gradients arrive once.
Random numbers (dropout) are drawn again as they were. Statistics over the batch would be those of a chunk: refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint, set_checkpoint_early_stop

from shards.errors import VillaError
from villa_dist.data.loader import PairBatch
from villa_dist.encoders.clip_rn50 import FixedBatchNorm

Part = TypeVar("Part")


def chunk_count(images: int, micro_images: int | None) -> int:
    """Equal on every rank, since ranks have equally many images: under ZeRO-3 they must call modules alike."""
    return -(-images // micro_images) if micro_images else 1


def recomputed(
    embed: Callable[[Part], tuple[Tensor, ...]], parts: Iterable[Part], beside: Tensor
) -> tuple[Tensor, ...]:
    """The embeddings of all parts, end to end. Of a part nothing else is kept for the backward pass.

    beside: any tensor on the parts' device, by which torch knows whose random numbers to keep.
    """

    def run(beside: Tensor, part: Part) -> tuple[Tensor, ...]:
        return embed(part)

    with set_checkpoint_early_stop(False):  # ZeRO-3: the second pass too must call every module on every rank
        found = [checkpoint(run, beside, part, use_reentrant=False) for part in parts]
    return tuple(torch.cat(column) for column in zip(*found, strict=True))


def chunks(batch: PairBatch, micro_images: int) -> Iterator[PairBatch]:
    """At most so many images at a time, with their regions (which follow the order of images) but not their pairs."""
    assert batch.pixels is not None
    for first in range(0, batch.images, micro_images):
        stop = min(first + micro_images, batch.images)
        mine = (batch.image_of >= first) & (batch.image_of < stop)
        yield replace(
            batch,
            pixels=batch.pixels[first:stop],
            texts=batch.texts[first:stop],
            boxes=batch.boxes[mine],
            image_of=batch.image_of[mine] - first,
            region=batch.region[:0],
            attribute=batch.attribute[:0],
            images=stop - first,
            sizes=batch.sizes[first:stop] if batch.sizes is not None else None,
            weight=batch.weight[first:stop] if batch.weight is not None else None,
        )


def refuse_batch_statistics(module: nn.Module, micro_images: int) -> None:
    """Raises: VillaError naming the layer when what a part of a batch gives depends on the rest of it."""
    for name, layer in module.named_modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm) and not isinstance(layer, FixedBatchNorm):
            raise VillaError(
                f"train.micro_images={micro_images}: {name} normalises by the statistics of the whole batch, which are "
                "not those of its parts; leave it out, or take a tower without them (model.image.kind: hf or clip_rn50)"
            )
