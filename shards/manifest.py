"""The manifest of a stage: its markers merged into one Parquet file, in shard order.

A manifest is derived: it can be removed and is rebuilt from the markers. Its `digest` names the data set
(shards, their order, counts and contents) and is what training state is bound to.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import pyarrow.compute as pc

from shards import marked, sidecar
from shards.commit import SUFFIX, StageFolder
from shards.digest import SampleDigest, fingerprint
from shards.errors import ShardError, StaleStageError

NAME = "manifest.parquet"
HEX = re.compile(r"[0-9a-f]{1,32}")
SCHEMA = marked.ROW


@dataclass(frozen=True)
class Manifest:
    """Shards of a stage in order; `samples[i]` is the number of samples in `shards[i]`."""

    stage: str
    shards: tuple[str, ...]
    samples: tuple[int, ...]
    bytes: tuple[int, ...]
    sha256: tuple[str, ...]
    keys_digests: tuple[str, ...]
    came_in: int
    refused: int

    @property
    def total(self) -> int:
        return sum(self.samples)

    @property
    def digest(self) -> str:
        return fingerprint([list(self.shards), list(self.samples), list(self.sha256)])

    def of(self, shards: Collection[str]) -> Manifest:
        """The part about `shards`; what they refused is not known any more."""
        rows = [i for i, shard in enumerate(self.shards) if shard in shards]
        samples = tuple(self.samples[i] for i in rows)
        return Manifest(
            self.stage,
            tuple(self.shards[i] for i in rows),
            samples,
            tuple(self.bytes[i] for i in rows),
            tuple(self.sha256[i] for i in rows),
            tuple(self.keys_digests[i] for i in rows),
            sum(samples),
            0,
        )

    @property
    def keys(self) -> SampleDigest:
        total = SampleDigest()
        for count, digest in zip(self.samples, self.keys_digests, strict=True):
            total = total + SampleDigest.parse(count, digest)
        return total


def write(stage: StageFolder, shards: Sequence[str]) -> Manifest:
    """Merge the markers of `shards`; every one of them must be committed.

    Raises: StaleStageError when a marker is not of the config that the folder is bound to.
    """
    bound, found = stage.bound_to(), marked.rows(stage, shards, strict=True)
    strangers = found.filter(pc.not_equal(found["fingerprint"], bound))["shard"].to_pylist() if bound else []
    if strangers:
        raise StaleStageError(
            f"{stage.store.path()} holds {len(strangers)} shards committed under another config, such as {strangers[0]} (a "
            "worker of an earlier run came back late); repeat with --force to redo the stage"
        )
    stage.store.put(NAME, sidecar.to_bytes(found.select(SCHEMA.names)))
    marked.forget(stage)
    return read(stage)


def sound(stage: StageFolder, sizes: Mapping[str, int], bound: str, shards: Collection[str] = ()) -> set[str]:
    """Shards whose marker and files are there, as large as they were said to be, and of the config `bound`: what can be
    known of a million shards without reading their markers one by one, from the manifest, or of many `shards` where there
    is none by `shards.marked`. A shard that is not among them is to be looked at by itself.

    sizes: of the folder's files, as listed just now.
    """
    try:
        data = stage.store.find(NAME)
        table = None if data is None else sidecar.from_bytes(data, stage.store.path(NAME), SCHEMA)
    except ShardError:
        table = None
    if table is None:
        many = len(shards) >= marked.WORTH
        return marked.as_committed(marked.rows(stage, sorted(shards)), sizes, bound) if many else set()
    total: dict[str, int] = {}
    for file, size in sizes.items():
        shard, _, suffix = file.partition(".")
        if f".{suffix}" not in (SUFFIX, ".idx"):
            total[shard] = total.get(shard, 0) + size
    beside = (SUFFIX, ".idx") if stage.stage == "base" else (SUFFIX,)
    rows = zip(*(table[n].to_pylist() for n in ("shard", "bytes", "fingerprint")), strict=True)
    return {
        s for s, size, made in rows if made == bound and total.get(s) == size and all(s + b in sizes for b in beside)
    }


def exists(stage: StageFolder) -> bool:
    return stage.store.exists(NAME)


def read(stage: StageFolder) -> Manifest:
    """Raises: ShardError when the stage has no manifest, so is not complete."""
    if not exists(stage):
        raise ShardError(
            f"{stage.store.path()} has no {NAME}: the stage {stage.stage!r} is not complete; run it first "
            "(`villa run CONFIG` runs all stages and resumes what is committed)"
        )
    place = stage.store.path(NAME)
    found = sidecar.from_bytes(stage.store.read(NAME), place, SCHEMA).to_pydict()
    counted = [*found["samples"], *found["bytes"], *found["came_in"], *found["refused"]]
    if any(n < 0 for n in counted) or not all(HEX.fullmatch(d) for d in found["keys_digest"]):
        raise ShardError(f"manifest {place} holds a count or a digest that is none; remove it and run the stage again")
    return Manifest(
        stage.stage,
        tuple(found["shard"]),
        tuple(found["samples"]),
        tuple(found["bytes"]),
        tuple(found["sha256"]),
        tuple(found["keys_digest"]),
        sum(found["came_in"]),
        sum(found["refused"]),
    )
