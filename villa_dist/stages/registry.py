"""The shard stages by name."""

from __future__ import annotations

from collections.abc import Callable

from shards.errors import VillaError
from villa_dist.stages.base import ShardStage, StageRequest
from villa_dist.stages.boxes import BoxesStage
from villa_dist.stages.detect import DetectStage
from villa_dist.stages.embed import EmbedStage
from villa_dist.stages.ingest import IngestStage
from villa_dist.stages.pairs import PairsStage
from villa_dist.stages.phrases import PhrasesStage
from villa_dist.stages.regions import RegionsStage
from villa_dist.stages.vocabulary import VocabularyStage
from villa_dist.stages.whole import WholeStage

STAGES: dict[str, Callable[[StageRequest], ShardStage]] = {
    "ingest": IngestStage,
    "vocabulary": VocabularyStage,
    "regions": RegionsStage,
    "pairs": PairsStage,
    "embed": EmbedStage,
    "boxes": BoxesStage,
    "detect": DetectStage,
    "whole": WholeStage,
    "phrases": PhrasesStage,
}


def make_stage(request: StageRequest) -> ShardStage:
    """The stage a request names. Raises: VillaError naming the stages there are."""
    if request.stage not in STAGES:
        raise VillaError(f"there is no stage {request.stage!r}; stages: {', '.join(STAGES)}")
    return STAGES[request.stage](request)
