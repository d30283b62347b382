"""Tar to tar: our reshard against a plain copy of the same bytes and against webdataset, in CPU seconds of one process.

    python -m benchmarks.reshard [--sample-bytes 30000] [--total-mb 400] [--folder /tmp]

Medians of `--rounds`, all in one run. Sources are a data set of ours with digests in its index, and the same bytes as
plain tars. The synthetic samples are random bytes: nothing is decoded by any of them.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import webdataset

from shards import manifest
from shards.commit import StageFolder
from shards.reader import BaseShard, scan_tar
from shards.reshard.options import ReshardOptions
from shards.reshard.run import reshard
from shards.store import Store
from shards.tar import Scan, TarWriter
from shards.work import run_here


class NoMeter:
    def advance(self, count: int = 1) -> None:
        pass


@contextlib.contextmanager
def no_meter(name: str, total: int, unit: str, done: int) -> Iterator[NoMeter]:
    yield NoMeter()


def make_tars(folder: Path, total: int, sample_bytes: int, shard_bytes: int) -> None:
    """Samples of jpg, txt and json in tars of `shard_bytes`."""
    rng, key = random.Random(0), 0
    folder.mkdir(parents=True)
    for shard in range(total // shard_bytes):
        with open(folder / f"{shard:05d}.tar", "wb") as f:
            tar = TarWriter(f)
            while tar.offset < shard_bytes:
                image = rng.randbytes(int(sample_bytes * rng.uniform(0.5, 1.5)))
                for suffix, data in (("jpg", image), ("txt", b"a caption of some words"), ("json", b'{"width": 640}')):
                    tar.add(f"{key:09d}.{suffix}", data)
                key += 1
            tar.close()


def ours(src: str, dst: Path, **options: Any) -> dict[str, Any]:
    shutil.rmtree(dst, ignore_errors=True)
    return reshard(src, ReshardOptions(str(dst), max_bytes=256 << 20, **options), run_here, no_meter)


def copy(src: Path, dst: Path) -> None:
    dst.mkdir(exist_ok=True)
    for path in sorted(src.glob("*.tar")):
        shutil.copyfile(path, dst / path.name)


def by_webdataset(src: Path, dst: Path) -> None:
    urls = [str(p) for p in sorted(src.glob("*.tar"))]
    with webdataset.TarWriter(str(dst), encoder=False, mtime=0) as out:
        for sample in webdataset.WebDataset(urls, shardshuffle=False):
            out.write({k: v for k, v in sample.items() if k == "__key__" or not k.startswith("__")})


def read_ours(dataset: str) -> int:
    base = StageFolder(dataset, "base")
    return sum(len(m["jpg"]) for s in manifest.read(base).shards for _, m in BaseShard(base, s).samples())


def read_foreign(folder: Path) -> int:
    total = 0
    for path in sorted(folder.glob("*.tar")):
        total += sum(len(m["jpg"]) for _, m in scan_tar(Store(str(folder)), path.name, Scan()))
    return total


def read_webdataset(folder: Path) -> int:
    urls = [str(p) for p in sorted(folder.glob("*.tar"))]
    return sum(len(s["jpg"]) for s in webdataset.WebDataset(urls, shardshuffle=False))


def cpu_seconds(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sample-bytes", type=int, default=30_000)
    parser.add_argument("--total-mb", type=int, default=400)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", default=None)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=given.folder) as name:
        root = Path(name)
        tars = root / "tars"
        make_tars(tars, given.total_mb * 1_000_000, given.sample_bytes, 200_000_000)
        data = str(root / "data")
        ours(str(tars), root / "data")
        size = sum(p.stat().st_size for p in tars.glob("*.tar")) / 1e6
        works: dict[str, Callable[[], object]] = {
            "shutil.copyfile": lambda: copy(tars, root / "copied"),
            "webdataset -> TarWriter": lambda: by_webdataset(tars, root / "w.tar"),
            "reshard, keys proved": lambda: ours(data, root / "out", hashed=False),
            "reshard, sha256 and contents proved": lambda: ours(data, root / "out"),
            "reshard of foreign tars, keys proved": lambda: ours(str(tars), root / "out", hashed=False),
            "reshard of foreign tars, contents proved": lambda: ours(str(tars), root / "out"),
            "reshard with a global shuffle, keys proved": lambda: ours(data, root / "out", hashed=False, shuffle=1),
            "read raw: webdataset": lambda: read_webdataset(tars),
            "read raw: ours, any tar": lambda: read_foreign(tars),
            "read raw: ours, data set, sha256 checked": lambda: read_ours(data),
        }
        seconds: dict[str, list[float]] = {n: [] for n in works}
        for _ in range(given.rounds):
            for what, work in works.items():
                seconds[what].append(cpu_seconds(work))
        median = {n: statistics.median(s) for n, s in seconds.items()}
    print(f"{size:.0f} MB, {given.sample_bytes} bytes an image, CPU seconds, median of {given.rounds}")
    for what, value in median.items():
        over = median["read raw: webdataset"] if what.startswith("read") else median["webdataset -> TarWriter"]
        print(
            f"{what:<46}{value:8.2f} s {size / value:8.0f} MB/s {over / value:7.1f}x webdataset "
            f"{median['shutil.copyfile'] / value:7.2f}x copyfile"
        )
    print(json.dumps({n: round(v, 4) for n, v in median.items()}))


if __name__ == "__main__":
    main()
