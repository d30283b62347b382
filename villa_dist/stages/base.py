"""What every shard stage shares: its request, its protocol and its commit."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import pyarrow as pa

from shards import sidecar
from shards.collect import commit_rows
from shards.commit import Marker, StageFolder
from shards.reader import BaseShard
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
        return self.stage in ("pairs", "embed", "detect") or (
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


def write_sidecar(
    request: StageRequest,
    base: BaseShard,
    make_table: Callable[[], pa.Table],
    timers: Timers,
    counts: Mapping[str, float] | None = None,
) -> Marker:
    """Write and commit a shard's sidecar in the request's folder: of a stage that refuses no sample, one row for every row
    in. Making the table counts as writing."""
    with request.output().attempt(base.shard) as attempt:
        with timers.time("write"):
            attempt.write(f"{base.shard}.parquet", sidecar.to_bytes(make_table()))
        return commit_rows(
            attempt,
            base.shard,
            stage=request.folder,
            fingerprint=request.fingerprint,
            keys=base.keys,
            input_digest=base.marker.output(".tar").sha256,
            seconds=timers.rounded(),
            counts=counts,
        )
