"""The shard stages by name. Each is imported when it is asked for: the first ones of a run need no torch."""

from __future__ import annotations

from importlib import import_module

from shards.errors import VillaError
from villa_dist.stages.base import ShardStage, StageRequest

STAGES = {  # class, in the module of the stage's name
    "ingest": "IngestStage",
    "vocabulary": "VocabularyStage",
    "regions": "RegionsStage",
    "pairs": "PairsStage",
    "embed": "EmbedStage",
    "boxes": "BoxesStage",
    "detect": "DetectStage",
    "whole": "WholeStage",
    "phrases": "PhrasesStage",
}


def make_stage(request: StageRequest) -> ShardStage:
    """The stage a request names. Raises: VillaError naming the stages there are."""
    if request.stage not in STAGES:
        raise VillaError(f"there is no stage {request.stage!r}; stages: {', '.join(STAGES)}")
    module = import_module(f"villa_dist.stages.{request.stage}")
    stage: ShardStage = getattr(module, STAGES[request.stage])(request)
    return stage
