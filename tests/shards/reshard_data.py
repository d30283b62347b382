"""Data sets for the reshard tests, and readers that share no code with what is tested."""

from __future__ import annotations

import contextlib
import io
import random
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from shard_samples import commit_base

from shards import manifest, sidecar
from shards.commit import Marker, Output, StageFolder
from shards.digest import keys_digest
from shards.reshard.options import ReshardOptions
from shards.reshard.run import reshard
from shards.work import run_here

Sample = tuple[str, dict[str, bytes]]


def some_samples(seed: int, shards: int, most: int) -> list[list[Sample]]:
    """Shards of samples with sizes around a tar block's, a few of them equal in content."""
    rng = random.Random(seed)
    made, number = [], 0
    for _ in range(shards):
        rows = []
        for _ in range(rng.randint(0, most)):
            image = rng.randbytes(rng.choice([0, 1, 511, 512, 513, 2000])) if rng.random() < 0.8 else b"the same image"
            members = {"jpg": image, "txt": f"text {number % 7}".encode()}
            if rng.random() < 0.3:
                members["json"] = b"{}"
            rows.append((f"s/{number:05d}", members))
            number += 1
        made.append(rows)
    return made


def data_set(root: Path, shards: Sequence[Sequence[Sample]]) -> str:
    """A committed data set with a `pairs` sidecar of which row n has n % 5 pairs."""
    base, pairs = StageFolder(str(root), "base"), StageFolder(str(root), "pairs")
    number = 0
    for at, rows in enumerate(shards):
        name = f"{at:06d}"
        commit_base(base, name, list(rows))
        counts = [(number + i) % 5 for i in range(len(rows))]
        number += len(rows)
        commit_pairs(pairs, name, [k for k, _ in rows], counts)
    names = [f"{at:06d}" for at in range(len(shards))]
    for folder in (base, pairs):
        manifest.write(folder, names)
    return str(root)


def commit_pairs(stage: StageFolder, shard: str, keys: list[str], counts: list[int]) -> None:
    total, types = sum(counts), {f.name: f.type for f in sidecar.PAIRS}
    columns = {
        "key": keys,
        "boxes": sidecar.ragged(types["boxes"], np.zeros((len(keys), 4), np.float32), np.ones(len(keys), int)),
        "region": sidecar.ragged(types["region"], np.zeros(total, np.uint16), counts),
        "attribute": sidecar.ragged(types["attribute"], np.arange(total, dtype=np.int32), counts),
        "score": sidecar.ragged(types["score"], np.ones(total, np.float16), counts),
    }
    digest = keys_digest(keys).hex

    def marker(outputs: tuple[Output, ...]) -> Marker:
        return Marker(shard, "pairs", "f", "in", len(keys), digest, outputs, len(keys), {}, digest, f"{0:032x}", digest)

    with stage.attempt(shard) as attempt:
        attempt.write(f"{shard}.parquet", sidecar.to_bytes(sidecar.table(sidecar.PAIRS, columns)))
        attempt.commit(marker)


def pairs_by_key(root: str | Path) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for path in sorted(Path(root, "pairs").glob("*.parquet")):
        if path.name != "manifest.parquet":
            table = pq.read_table(path).to_pydict()
            found.update(zip(table["key"], table["attribute"], strict=True))
    return found


def read_tar(path: Path) -> list[Sample]:
    """By the standard library alone."""
    rows: list[Sample] = []
    with tarfile.open(path) as tar:
        for info in tar:
            key, _, suffix = info.name.partition(".")
            file = tar.extractfile(info)
            assert file is not None
            if not rows or rows[-1][0] != key:
                rows.append((key, {}))
            rows[-1][1][suffix] = file.read()
    return rows


def read_shards(root: str | Path) -> list[list[Sample]]:
    return [read_tar(p) for p in sorted(Path(root, "base").glob("*.tar"))]


def foreign_tar(path: Path, rows: Sequence[Sample], between: Sequence[str] = ()) -> None:
    """A tar as others write it: owner, time, and a folder or link between the members of the samples in `between`."""
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as tar:
        for key, members in rows:
            for n, (suffix, data) in enumerate(members.items()):
                if n == 1 and key in between:
                    link = tarfile.TarInfo("somewhere")
                    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
                    tar.addfile(link)
                info = tarfile.TarInfo(f"{key}.{suffix}")
                info.size, info.mtime, info.uname, info.uid = len(data), 1_700_000_000, "somebody", 1000
                tar.addfile(info, io.BytesIO(data))


class NoMeter:
    def advance(self, count: int = 1) -> None:
        pass


@contextlib.contextmanager
def no_meter(name: str, total: int, unit: str, done: int) -> Iterator[NoMeter]:
    yield NoMeter()


def run(src: str, dst: Path | str, **options: Any) -> dict[str, Any]:
    force, budget = options.pop("force", False), options.pop("budget", 0.1)
    made = ReshardOptions(str(dst), **options)
    return reshard(src, made, run_here, no_meter, force=force, max_refused_fraction=budget)
