"""Claim: packing costs little beside decoding the photos once, which a plain loop with webdataset.TarWriter does not do.

    python -m benchmarks.pack FOLDER [PHOTOS]

Measures, in CPU seconds of this process for 1,000 photos (JPEG files of FOLDER with made-up texts, linked into a temporary
folder), in alternation: `villa shards pack` with --check full, header and none (listing, plan, reading, digests, tar,
index, origin sidecar, fsync, commit), the plain loop (open, read, TarWriter.write; no check, digest, index or commit), and
decoding alone, which --check full cannot do without. Ratios of one run are what to trust.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

import webdataset

from shards.decode import decode_image
from shards.pack import Packing, PackOptions
from shards.sources.find import Asked, open_source
from shards.work import run_here

ROUNDS = 5


def ours(src: Path, dst: Path, check: str) -> float:
    start = time.process_time()
    packing = Packing(open_source(Asked(str(src))), str(dst), PackOptions(check=check))
    packing.begin()
    run_here(packing.job, packing.missing, packing.account)
    packing.finish()
    return time.process_time() - start


def plain(src: Path, dst: Path) -> float:
    start = time.process_time()
    with webdataset.TarWriter(str(dst)) as sink:
        for path in sorted(src.glob("*.jpg")):
            text = path.with_suffix(".txt").read_bytes()
            sink.write({"__key__": path.stem, "jpg": path.read_bytes(), "txt": text})
    return time.process_time() - start


def decoding(src: Path) -> float:
    start = time.process_time()
    for path in src.glob("*.jpg"):
        decode_image(path.read_bytes())
    return time.process_time() - start


def main() -> None:
    photos = sorted(Path(sys.argv[1]).glob("*.jpg"))[: int(sys.argv[2]) if len(sys.argv) > 2 else None]
    measured: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        src = Path(folder, "src")
        src.mkdir()
        for path in photos:
            (src / path.name).symlink_to(path.resolve())
            (src / path.name).with_suffix(".txt").write_text(f"a text of {path.name}")
        for number in range(ROUNDS):
            for check in ("full", "header", "none"):
                measured.setdefault(check, []).append(ours(src, Path(folder, f"{check}{number}"), check))
            measured.setdefault("webdataset.TarWriter", []).append(plain(src, Path(folder, f"{number}.tar")))
            measured.setdefault("decoding alone", []).append(decoding(src))
    each = {name: statistics.median(seconds) * 1000 / len(photos) for name, seconds in measured.items()}
    size = sum(p.stat().st_size for p in photos) / len(photos)
    print(f"{'':24}CPU s / 1,000 photos    x the plain loop    MB/s a CPU")
    for name, seconds in each.items():
        print(f"{name:24}{seconds:20.2f}{seconds / each['webdataset.TarWriter']:20.2f}{size / seconds / 1e3:14.0f}")
    line = {"benchmark": "pack", "photos": len(photos), "mean_bytes": round(size)}
    print(json.dumps({**line, "cpu_seconds_per_1000": {k: round(v, 3) for k, v in each.items()}}))


if __name__ == "__main__":
    main()
