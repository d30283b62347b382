"""Sources for packing tests, and packing in this process."""

from __future__ import annotations

import hashlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from shards import sidecar
from shards.commit import StageFolder
from shards.pack import Packing, PackOptions, check_apart
from shards.reader import BaseShard
from shards.sources.find import Asked, open_source
from shards.work import run_here

SHARED_DATA = next(
    (p / "shared/data" for p in Path(__file__).resolve().parents if (p / "shared/data").is_dir()), Path("/none")
)


def image(seed: int, form: str = "PNG", size: tuple[int, int] = (9, 7)) -> bytes:
    sink = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(sink, form)
    return sink.getvalue()


def write(folder: Path, files: dict[str, bytes | str]) -> Path:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data.encode() if isinstance(data, str) else data)
    return folder


def photos(folder: Path, count: int) -> Path:
    """`count` images with texts, in three folders."""
    files: dict[str, bytes | str] = {}
    for i in range(count):
        files[f"{'abc'[i % 3]}/{i:03d}.png"] = image(i)
        files[f"{'abc'[i % 3]}/{i:03d}.txt"] = f"photo {i}"
    return write(folder, files)


def packing(src: object, dst: object, options: dict[str, Any] | None = None, **asked: Any) -> Packing:
    chosen = PackOptions(**{"max_refused_fraction": 1.0, **(options or {})})
    source = open_source(Asked(str(src), max_count=chosen.max_count, max_bytes=chosen.max_bytes, **asked))
    check_apart(str(src), str(dst), source)
    return Packing(source, str(dst), chosen)


def pack(
    src: object,
    dst: object,
    options: dict[str, Any] | None = None,
    *,
    force: bool = False,
    order: int = 1,
    **asked: Any,
) -> dict[str, Any]:
    """The result of a whole packing in this process; order -1 does the units backwards."""
    work = packing(src, dst, options, **asked)
    work.begin(force=force)
    run_here(work.job, work.missing[::order], work.account)
    return {**work.finish(), "done": work.missing, "warnings": [*work.notes, *work.summary.warnings]}


def samples(dst: object) -> dict[str, dict[str, bytes]]:
    base = StageFolder(str(dst), "base")
    return {key: members for shard in base.shards_done() for key, members in BaseShard(base, shard).samples()}


def origins(dst: object) -> dict[str, tuple[str, str, int | None]]:
    found = {}
    for path in sorted(Path(str(dst), "origin").glob("0*.parquet")):
        for row in sidecar.from_bytes(path.read_bytes(), str(path), sidecar.ORIGIN, ("row",)).to_pylist():
            found[row["key"]] = (row["file"], row["member"], row["row"])
    return found


def refused(dst: object) -> dict[str, tuple[str, str]]:
    """key -> (reason, detail); the last one of equal keys."""
    found = {}
    for path in sorted(Path(str(dst), "base/quarantine").glob("*.parquet")):
        for row in sidecar.from_bytes(path.read_bytes(), str(path), sidecar.QUARANTINE).to_pylist():
            found[row["key"]] = (row["reason"], row["detail"])
    return found


def contents(dst: object) -> dict[str, str]:
    """sha256 of every file that must not depend on how the packing went: all but markers, which hold times."""
    return {
        str(p.relative_to(str(dst))): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(Path(str(dst)).rglob("*"))
        if p.is_file() and not p.name.endswith(".done.json")
    }


def coco(images: list[dict[str, Any]], annotations: list[dict[str, Any]], categories: Any = ()) -> str:
    return json.dumps({"images": images, "annotations": annotations, "categories": list(categories)})
