"""Tar to tar: our reshard against a plain copy of the same bytes and against webdataset, in CPU seconds of one process.

    python -m benchmarks.reshard [--sample-bytes 30000] [--total-mb 400] [--folder /tmp]

Medians of `--rounds`, all in one run. Sources are a data set of ours with digests in its index, and the same bytes as
plain tars, in shards of 200 MB. Their samples are random bytes, which nothing decodes; what decodes reads JPEGs of noise and
gradients instead. Everything that reshards waits for the disk (fsync) before it is done; copyfile and webdataset do not.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import random
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import webdataset
from PIL import Image

from shards import manifest
from shards.commit import StageFolder
from shards.decode import decode_image, image_member, sample_text
from shards.reader import BaseShard, scan_tar, view_tar
from shards.reshard.options import ReshardOptions
from shards.reshard.run import reshard
from shards.store import Store
from shards.tar import Scan, TarWriter
from shards.work import run_here

COPY, WRITE = "shutil.copyfile", "webdataset -> TarWriter"
READ, DECODE = "read: webdataset", "decode: webdataset"


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


def make_photos(folder: Path, count: int) -> None:
    """JPEGs of 640 x 480 with some 65 kB, and captions, in one tar."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True)
    across = np.linspace(0, 200, 640)[None, :, None] + np.linspace(0, 55, 480)[:, None, None]
    with open(folder / "00000.tar", "wb") as f:
        tar = TarWriter(f)
        for key in range(count):
            pixels = np.clip(across + rng.normal(0, 12, (480, 640, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(found := io.BytesIO(), "jpeg", quality=75)
            tar.add(f"{key:06d}.jpg", found.getvalue())
            tar.add(f"{key:06d}.txt", b"a caption of some words")
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


def read_batches(dataset: str, size: int = 32) -> int:
    """As training reads: by index, in runs of rows."""
    base, total = StageFolder(dataset, "base"), 0
    for name in manifest.read(base).shards:
        shard = BaseShard(base, name)
        for row in range(0, len(shard), size):
            total += sum(len(m["jpg"]) for m in shard.batch(range(row, min(row + size, len(shard)))))
    return total


def read_foreign(folder: Path, read: Callable[..., Iterator[Any]]) -> int:
    tars = sorted(folder.glob("*.tar"))
    return sum(len(m["jpg"]) for path in tars for _, m in read(Store(str(folder)), path.name, Scan()))


def read_webdataset(folder: Path) -> int:
    urls = [str(p) for p in sorted(folder.glob("*.tar"))]
    return sum(len(s["jpg"]) for s in webdataset.WebDataset(urls, shardshuffle=False))


def decode_webdataset(folder: Path) -> int:
    urls = [str(p) for p in sorted(folder.glob("*.tar"))]
    found = webdataset.WebDataset(urls, shardshuffle=False).decode("rgb8")
    return sum(s["jpg"].shape[0] + len(s["txt"]) for s in found)


def decode_foreign(folder: Path) -> int:
    found = (m for p in sorted(folder.glob("*.tar")) for _, m in scan_tar(Store(str(folder)), p.name, Scan()))
    return sum(decode_image(image_member(m)).shape[0] + len(sample_text(m)) for m in found)


def decode_ours(dataset: str) -> int:
    base = StageFolder(dataset, "base")
    found = (m for s in manifest.read(base).shards for _, m in BaseShard(base, s).samples())
    return sum(decode_image(image_member(m)).shape[0] + len(sample_text(m)) for m in found)


def measured(work: Callable[[], object]) -> tuple[float, float]:
    """Seconds of CPU, and of the clock."""
    cpu, clock = time.process_time(), time.perf_counter()
    work()
    return time.process_time() - cpu, time.perf_counter() - clock


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
        data, photos, known = str(root / "data"), root / "photos", str(root / "known")
        ours(str(tars), root / "data")
        make_photos(photos, 500)
        ours(str(photos), root / "known")
        size = sum(p.stat().st_size for p in tars.glob("*.tar")) / 1e6
        pictures = sum(p.stat().st_size for p in photos.glob("*.tar")) / 1e6
        works: dict[str, Callable[[], object]] = {
            COPY: lambda: copy(tars, root / "copied"),
            WRITE: lambda: by_webdataset(tars, root / "w.tar"),
            "reshard, --no-hash (keys proved)": lambda: ours(data, root / "out", hashed=False),
            "reshard, --trust-digests (sha256)": lambda: ours(data, root / "out", trusted=True),
            "reshard (sha256, contents proved)": lambda: ours(data, root / "out"),
            "reshard of foreign tars, --no-hash": lambda: ours(str(tars), root / "out", hashed=False),
            "reshard of foreign tars, --trust-digests": lambda: ours(str(tars), root / "out", trusted=True),
            "reshard of foreign tars": lambda: ours(str(tars), root / "out"),
            "reshard --shuffle 1 --no-hash": lambda: ours(data, root / "out", hashed=False, shuffle=1),
            READ: lambda: read_webdataset(tars),
            "read: ours, any tar, views of it": lambda: read_foreign(tars, view_tar),
            "read: ours, any tar, copies": lambda: read_foreign(tars, scan_tar),
            "read: ours, data set by index, batches of 32": lambda: read_batches(data),
            "read: ours, data set, sha256 checked": lambda: read_ours(data),
            DECODE: lambda: decode_webdataset(photos),
            "decode: ours, any tar": lambda: decode_foreign(photos),
            "decode: ours, data set, sha256 checked": lambda: decode_ours(known),
        }
        seconds: dict[str, list[tuple[float, float]]] = {n: [] for n in works}
        for _ in range(given.rounds):
            for what, work in works.items():
                seconds[what].append(measured(work))
        cpu = {n: statistics.median(s for s, _ in each) for n, each in seconds.items()}
        clock = {n: statistics.median(s for _, s in each) for n, each in seconds.items()}
    print(f"{size:.0f} MB, {given.sample_bytes} bytes an image, median of {given.rounds}")
    print(f"{'':<46}{'CPU s':>8}{'clock s':>9}{'MB per CPU s':>14}{'x webdataset':>14}{'x copyfile':>12}")
    for what, value in cpu.items():
        kind = what.split(":")[0]
        over = cpu[{"read": READ, "decode": DECODE}.get(kind, WRITE)]
        rate = (pictures if kind == "decode" else size) / value
        against = f"{cpu[COPY] / value:12.2f}" if kind not in ("read", "decode") else ""
        print(f"{what:<46}{value:8.3f}{clock[what]:9.2f}{rate:14.0f}{over / value:14.2f}{against}")
    print(json.dumps({n: round(v, 4) for n, v in cpu.items()}))


if __name__ == "__main__":
    main()
