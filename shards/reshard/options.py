"""What is asked of a reshard, as one value that travels to workers and that the output is bound to."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from shards.errors import VillaError

FORMAT = 1  # raised when the same options would give other bytes
WORK = ".work"


@dataclass(frozen=True)
class ReshardOptions:
    """max_bytes, max_count: of one output shard; a single sample may be larger. shuffle: the seed of a global shuffle.
    where: a predicate on sidecars (`shards.reshard.predicate`). include, exclude: files of keys, one a line. dedupe:
    what makes two samples the same. hashed: record sha256 and sample digests of what is written. trusted: of a data set,
    take the samples' digests from its indexes, unread; of foreign tars, which have none, take none."""

    dst: str
    max_bytes: int = 512 << 20
    max_count: int = 10_000
    shuffle: int | None = None
    where: str = ""
    include: str = ""
    exclude: str = ""
    dedupe: Literal["", "key", "content", "image"] = ""
    hashed: bool = True
    trusted: bool = False
    sidecars: bool = True
    prefix_keys: bool = (
        False  # foreign tars: put the tar's name before each key, for writers that number each tar alike
    )

    def __post_init__(self) -> None:
        for name, least in (("max_bytes", 1024), ("max_count", 1)):
            if getattr(self, name) < least:
                raise VillaError(f"--{name.replace('_', '-')} is {getattr(self, name)}; give at least {least}")
        if self.shuffle is not None and self.shuffle < 0:
            raise VillaError(f"--shuffle is {self.shuffle}; give a seed from 0")
        if self.trusted and not self.hashed:
            raise VillaError("--trust-digests and --no-hash exclude each other: with --no-hash no digest is recorded")
        if self.dedupe in ("content", "image") and not self.hashed:
            raise VillaError(f"--dedupe {self.dedupe} compares hashes; leave --no-hash out")

    def contents(self, dataset: str) -> Literal["hashed", "carried", "unknown"]:
        """Where the digests of the samples' contents come from. dataset: of the sources; empty for foreign tars."""
        if not self.hashed or (self.trusted and not dataset):
            return "unknown"
        return "carried" if self.trusted else "hashed"

    def claim(self, sources: str, keys: dict[str, str]) -> dict[str, Any]:
        """What DST is bound to. keys: digests of the files of keys."""
        asked = asdict(self)
        asked.pop("dst")
        return {"format": FORMAT, "reshard": {**asked, **keys}, "sources": sources}
