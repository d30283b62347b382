"""What everything that makes base shards shares: the samples kept and refused of one shard, their balance, their commit."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from shards import sidecar
from shards.commit import Attempt, Marker, Output
from shards.digest import Conservation, SampleDigest, hash_of, keys_digest, member_digest, sample_hash
from shards.errors import ShardError
from shards.index import ShardIndex
from shards.tar import Sample, TarWriter


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


class Collector:
    """Writes the accepted samples of one shard and keeps count of what came in, went out and was refused."""

    def __init__(self, attempt: Attempt, shard: str) -> None:
        self.shard, self.attempt = shard, attempt
        self.file = attempt.open(f"{shard}.tar")
        self.tar = TarWriter(self.file)  # type: ignore[arg-type]
        self.samples: list[Sample] = []
        self.digests: list[list[bytes]] = []
        self.refused = Refused()
        self.flow = Conservation()
        self.seen: set[str] = set()

    def add(self, key: str, members: dict[str, bytes]) -> None:
        digests = [member_digest(data) for data in members.values()]
        value = hash_of(key, zip(members, digests, strict=True))
        self.flow.came_in.add(value)
        self.flow.out.add(value)
        self.seen.add(key)
        self.digests.append(digests)
        written = tuple(self.tar.add(f"{key}.{suffix}", data) for suffix, data in members.items())
        self.samples.append(Sample(key, written, tuple(members)))

    def refuse(self, key: str, members: dict[str, bytes], reason: str, detail: str) -> None:
        value = sample_hash(key, members.items())
        self.flow.came_in.add(value)
        self.flow.refused.add(value)
        self.refused.add(key, reason, detail, value)

    @property
    def keys(self) -> list[str]:
        """Keys of the accepted samples, in tar order."""
        return [s.key for s in self.samples]

    def commit(
        self,
        *,
        stage: str,
        fingerprint: str,
        input_digest: str,
        seconds: Mapping[str, float],
        warnings: tuple[str, ...] = (),
        counts: Mapping[str, float] | None = None,
    ) -> Marker:
        """Write index and quarantine, and commit the shard. Raises: ShardError when samples in and out do not balance."""
        self.tar.close()
        self.file.close()
        self.attempt.write(f"{self.shard}.idx", ShardIndex.of(self.samples, self.digests).to_bytes())
        self.refused.write(self.attempt, self.shard)
        if not self.flow.holds():
            raise ShardError(f"shard {self.shard}: samples in and out do not balance; nothing was committed")

        def marker(outputs: tuple[Output, ...]) -> Marker:
            return Marker(
                shard=self.shard,
                stage=stage,
                fingerprint=fingerprint,
                input_digest=input_digest,
                samples=len(self.samples),
                keys_digest=keys_digest(self.keys).hex,
                outputs=outputs,
                came_in=self.flow.came_in.count,
                refused=self.refused.counts(),
                came_in_digest=self.flow.came_in.hex,
                refused_digest=self.flow.refused.hex,
                content_digest=self.flow.out.hex,
                counts=dict(counts or {}),
                seconds=seconds,
                warnings=warnings,
            )

        return self.attempt.commit(marker)


def commit_rows(
    attempt: Attempt,
    shard: str,
    *,
    stage: str,
    fingerprint: str,
    keys: list[str],
    input_digest: str,
    seconds: Mapping[str, float],
    counts: Mapping[str, float] | None = None,
) -> Marker:
    """Commit a sidecar of a stage that refuses no sample: one row out for every row in."""
    digest = keys_digest(keys)

    def marker(outputs: tuple[Output, ...]) -> Marker:
        return Marker(
            shard=shard,
            stage=stage,
            fingerprint=fingerprint,
            input_digest=input_digest,
            samples=len(keys),
            keys_digest=digest.hex,
            outputs=outputs,
            came_in=len(keys),
            came_in_digest=digest.hex,
            refused_digest=f"{0:032x}",
            counts=dict(counts or {}),
            seconds=seconds,
        )

    return attempt.commit(marker)


def conservation(markers: Iterable[Marker]) -> Conservation:
    """The whole data set's balance, from its markers. `holds()` proves that nothing was lost, swapped or doubled."""
    total = Conservation(SampleDigest(), SampleDigest(), SampleDigest())
    for m in markers:
        total.came_in = total.came_in + SampleDigest.parse(m.came_in, m.came_in_digest)
        total.out = total.out + SampleDigest.parse(m.samples, m.content_digest)
        total.refused = total.refused + SampleDigest.parse(sum(m.refused.values()), m.refused_digest)
    return total


@dataclass
class Summary:
    """What base shards took in and refused, over all shards of a data set."""

    came_in: int = 0
    out: int = 0
    bytes: int = 0  # of the tars
    refused: dict[str, int] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    def add(self, marker: Marker) -> None:
        self.came_in += marker.came_in
        self.out += marker.samples
        self.bytes += sum(o.bytes for o in marker.outputs if o.file.endswith(".tar"))
        for reason, count in marker.refused.items():
            self.refused[reason] = self.refused.get(reason, 0) + count
        self.warnings += marker.warnings

    @property
    def refusals(self) -> int:
        return sum(self.refused.values())

    def counted(self) -> str:
        """Refusals as a reader wants them: `3 x no_text, 1 x not_utf8`."""
        return ", ".join(f"{count} x {reason}" for reason, count in sorted(self.refused.items()))
