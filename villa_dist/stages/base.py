"""What every shard stage shares: its request, its protocol, its refusals and its commit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from shards import sidecar
from shards.commit import Attempt, Marker, Output, StageFolder
from shards.digest import keys_digest
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

    def worker(self) -> ShardStage:
        """Raises: VillaError when there is no such stage."""
        from villa_dist.stages.registry import make_stage  # the registry imports the stages, which import this module

        return make_stage(self)

    def output(self) -> StageFolder:
        return StageFolder(self.dataset, self.folder)


class ShardStage(Protocol):
    """One instance lives in a worker and processes many shards of one request."""

    def process(self, shard: str) -> Marker: ...


@dataclass
class Refused:
    """Samples of one shard that were refused: rows of its quarantine file."""

    key: list[str] = field(default_factory=list)
    reason: list[str] = field(default_factory=list)
    detail: list[str] = field(default_factory=list)
    digest: list[str] = field(default_factory=list)

    def add(self, key: str, reason: str, detail: str, digest: int = 0) -> None:
        self.key.append(key.encode("utf-8", "backslashreplace").decode())
        self.reason.append(reason)
        self.detail.append(detail.encode("utf-8", "backslashreplace").decode()[:500])
        self.digest.append(f"{digest:032x}")

    def counts(self) -> dict[str, int]:
        return {r: self.reason.count(r) for r in sorted(set(self.reason))}

    def write(self, attempt: Attempt, shard: str) -> None:
        """Nothing is written for a shard without refusals."""
        if self.key:
            table = sidecar.table(sidecar.QUARANTINE, vars(self))
            attempt.write(f"quarantine/{shard}.parquet", sidecar.to_bytes(table))


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
    digest = keys_digest(keys)

    def marker(outputs: tuple[Output, ...]) -> Marker:
        return Marker(
            shard=shard,
            stage=request.folder,
            fingerprint=request.fingerprint,
            input_digest=input_digest,
            samples=len(keys),
            keys_digest=digest.hex,
            outputs=outputs,
            came_in=len(keys),
            came_in_digest=digest.hex,
            refused_digest=f"{0:032x}",
            counts=dict(counts or {}),
            seconds=timers.rounded(),
        )

    return attempt.commit(marker)
