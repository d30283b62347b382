"""What every shard stage shares: its request, its protocol and its commit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from shards.collect import commit_rows
from shards.commit import Attempt, Marker, StageFolder
from villa_dist.config import Config
from villa_dist.observe import Timers


@dataclass(frozen=True)
class StageRequest:
    """A stage on one split of a run; small and picklable, so that it travels to workers as it is.

    params: what the stage needs beside the config, such as the name of a model. fingerprint: of the claimed config.
    """

    stage: str  # name in the registry
    folder: str  # name of the output folder in the split
    split: str
    config: Config
    fingerprint: str
    params: Mapping[str, Any] = field(default_factory=dict)

    @property
    def run(self) -> str:
        return self.config.run

    @property
    def dataset(self) -> str:
        return f"{self.run}/{self.split}"

    @property
    def on_device(self) -> bool:
        """Whether a GPU is of use."""
        if self.stage == "boxes":
            return self.params.get("proposals") == "make" and self.config.regions.proposals == "hf"
        return self.stage in ("pairs", "embed", "detect", "whole", "phrases") or (
            self.stage == "regions" and bool(self.params.get("model") or self.config.regions.proposals == "hf")
        )

    def worker(self) -> ShardStage:
        """Raises: VillaError when there is no such stage."""
        from villa_dist.stages.registry import make_stage  # the registry imports the stages, which import this module

        return make_stage(self)

    def output(self) -> StageFolder:
        return StageFolder(self.dataset, self.folder)


class ShardStage(Protocol):
    """One instance lives in a worker and processes many shards of one request."""

    def process(self, shard: str) -> Marker: ...


def commit_sidecar(
    request: StageRequest,
    attempt: Attempt,
    shard: str,
    *,
    keys: list[str],
    input_digest: str,
    timers: Timers,
    counts: Mapping[str, float] | None = None,
) -> Marker:
    """Commit a stage that refuses no sample: one row out for every row in."""
    return commit_rows(
        attempt,
        shard,
        stage=request.folder,
        fingerprint=request.fingerprint,
        keys=keys,
        input_digest=input_digest,
        seconds=timers.rounded(),
        counts=counts,
    )
