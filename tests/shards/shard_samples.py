"""Small shards for tests: tars made by the standard library, and base shards committed the way ingest does it."""

from __future__ import annotations

import io
import itertools
import tarfile
from collections.abc import Iterable
from pathlib import Path

from shards.commit import Marker, Output, StageFolder
from shards.digest import SampleDigest, keys_digest, sample_hash
from shards.index import ShardIndex
from shards.reader import scan_tar
from shards.store import Store
from shards.tar import Sample, Scan, TarWriter

Samples = list[tuple[str, dict[str, bytes]]]

PLAIN: Samples = [
    ("a/000", {"jpg": b"\xff\xd8" + b"j" * 700, "txt": b"a red circle"}),
    ("a/001", {"jpg": b"\xff\xd8" + b"k" * 512, "txt": b"", "json": b"{}"}),
    ("a/002", {"png": b"\x89PNG" + b"p" * 1, "txt": b"t" * 1024}),
    ("b", {"webp": b"w" * 513, "txt": b"the last"}),
]
NON_ASCII: Samples = [
    ("künste/ä", {"jpg": b"1" * 600, "txt": b"eins"}),
    ("写真-001", {"jpg": b"2" * 100, "txt": b"zwei"}),
    ("x" * 130, {"jpg": b"3" * 10, "txt": b"drei"}),
    ("plain", {"jpg": b"4" * 10, "txt": b"vier"}),
]


def written(samples: Samples) -> bytes:
    """A tar by the project's writer."""
    sink = io.BytesIO()
    tar = TarWriter(sink)
    for key, members in samples:
        for suffix, data in members.items():
            tar.add(f"{key}.{suffix}", data)
    tar.close()
    return sink.getvalue()


def archived(samples: Samples, form: int) -> bytes:
    """The same members in a tar by the standard library: USTAR, GNU or PAX."""
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w", format=form) as tar:
        for key, members in samples:
            for suffix, data in members.items():
                info = tarfile.TarInfo(f"{key}.{suffix}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return sink.getvalue()


def scanned(folder: Path, data: bytes, limit: int = 1000) -> tuple[Samples, Scan]:
    """Samples that the reader finds in a tar of these bytes; a walk without end is cut at `limit`."""
    (folder / "scanned.tar").write_bytes(data)
    scan = Scan()
    found = [
        (sample.key, members)
        for sample, members in itertools.islice(scan_tar(Store(str(folder)), "scanned.tar", scan), limit)
    ]
    assert len(found) < limit, "the walk does not end"
    return found, scan


def marker(
    shard: str, outputs: Iterable[Output], samples: Samples = (), stage: str = "base", bound: str = "f"
) -> Marker:  # type: ignore[assignment]
    content = SampleDigest()
    for key, members in samples:
        content.add(sample_hash(key, members.items()))
    return Marker(
        shard=shard,
        stage=stage,
        fingerprint=bound,
        input_digest="in",
        samples=len(samples),
        keys_digest=keys_digest(k for k, _ in samples).hex,
        outputs=tuple(outputs),
        came_in=len(samples),
        came_in_digest=content.hex,
        refused_digest=f"{0:032x}",
        content_digest=content.hex,
    )


def commit_base(stage: StageFolder, shard: str, samples: Samples) -> Marker:
    with stage.attempt(shard) as attempt:
        file = attempt.open(f"{shard}.tar")
        tar = TarWriter(file)  # type: ignore[arg-type]
        rows = []
        for key, members in samples:
            parts = tuple(tar.add(f"{key}.{suffix}", data) for suffix, data in members.items())
            rows.append(Sample(key, parts, tuple(members)))
        tar.close()
        file.close()
        attempt.write(f"{shard}.idx", ShardIndex.of(rows).to_bytes())
        return attempt.commit(lambda outputs: marker(shard, outputs, samples))


def commit_file(stage: StageFolder, shard: str, data: bytes, suffix: str = ".bin") -> Marker:
    with stage.attempt(shard) as attempt:
        attempt.write(f"{shard}{suffix}", data)
        return attempt.commit(lambda outputs: marker(shard, outputs, bound=stage.bound_to() or "f"))


def files_below(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())
