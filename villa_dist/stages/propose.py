"""Proposals and mentions of a window of samples: what the regions stage writes, and what fused pairs begin with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from shards import manifest, sidecar
from shards.commit import StageFolder
from shards.decode import DecodeError, sample_text
from shards.errors import ShardError
from shards.reader import BaseShard, read_sidecar
from shards.store import Store
from villa_dist.attributes import vocabulary
from villa_dist.attributes.extract import PhraseMatcher
from villa_dist.observe import Timers
from villa_dist.regions.annotations import boxes_in
from villa_dist.regions.backends import make_proposer
from villa_dist.regions.proposals import Kept, Photo, regions_of
from villa_dist.stages.base import StageRequest
from villa_dist.stages.windows import Sample
from villa_dist.types import AttributeSet


@dataclass(frozen=True, slots=True)
class Found:
    """What one sample gives: its regions, and the attributes its text mentions."""

    kept: Kept
    mentions: AttributeSet

    @property
    def boxes(self) -> np.ndarray:
        return self.kept.regions.boxes

    @property
    def objectness(self) -> np.ndarray:
        return self.kept.regions.objectness


class Finder:
    """Made once in a worker; `of` looks at the windows of one shard after another."""

    def __init__(self, request: StageRequest) -> None:
        self.config = request.config
        self.truth = StageFolder(request.dataset, "truth")
        self.proposer = make_proposer(self.config.regions)
        self.matcher = vocabulary.read(Store(request.run)).matcher(self.config.vocabulary.negation)

    @property
    def needs_pixels(self) -> bool:
        return self.proposer.needs_pixels

    def given(self, shard: str, base: BaseShard) -> list[np.ndarray] | None:
        """Boxes of the truth sidecar, where annotations are wanted and the data set has one."""
        if self.config.regions.proposals != "annotations" or not manifest.exists(self.truth):
            return None
        table = read_sidecar(self.truth, shard, sidecar.PAIRS)
        sidecar.check_aligned(table, base.keys, self.truth.store.path(shard))
        boxes, at = sidecar.list_column(table, "boxes")
        return [boxes[at[i] : at[i + 1]] for i in range(len(base))]

    def of(self, shard: str, window: Sequence[Sample], given: list[np.ndarray] | None, timers: Timers) -> list[Found]:
        """Raises: ShardError naming shard and sample."""
        with timers.time("propose"):
            photos = [self._photo(shard, s, given[s.row] if given is not None else None) for s in window]
            try:
                kept = regions_of(self.proposer, self.config.regions, photos)
            except ShardError as error:
                raise ShardError(f"shard {shard}: {error}") from error
        with timers.time("extract"):
            return [
                Found(k, mentions_of(self.matcher, shard, s.key, s.members)) for k, s in zip(kept, window, strict=True)
            ]

    def _photo(self, shard: str, sample: Sample, given: np.ndarray | None) -> Photo:
        """A sample as the backend sees it. Raises: ShardError naming the sample whose boxes cannot be read."""
        if self.config.regions.proposals == "annotations" and given is None:
            try:
                given = boxes_in(sample.members)
            except DecodeError as error:
                raise ShardError(
                    f"shard {shard}: sample {sample.key!r}: {error.detail}; mend its .json member"
                ) from error
        pixels = sample.pixels if self.proposer.needs_pixels else None
        return Photo(sample.key, sample.width, sample.height, pixels, given)


def mentions_of(matcher: PhraseMatcher, shard: str, key: str, members: dict[str, bytes]) -> AttributeSet:
    """What the text of a sample mentions. Raises: ShardError naming the sample that has none."""
    try:
        return matcher.attributes(sample_text(members))
    except DecodeError as error:
        raise ShardError(f"shard {shard}: sample {key!r}: {error}; redo the ingest stage") from error
