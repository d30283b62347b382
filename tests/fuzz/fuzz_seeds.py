"""Valid inputs to start from, for each kind of input that comes from outside."""

from __future__ import annotations

import io
import json
import struct
import tarfile
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from shards import manifest, sidecar
from shards.commit import Marker, Output
from shards.index import ShardIndex
from shards.tar import Member, Sample, TarWriter, header

FILES = {"a/0.jpg": b"j" * 700, "a/0.txt": b"a red circle", "a/1.png": b"p", "a/1.json": b"{}", "b.webp": b"w" * 513}
NAMES = {"künste/ä.jpg": b"1" * 600, "写真.txt": b"zwei", "x" * 130 + ".jpg": b"3" * 10, "y" * 300 + ".txt": b"4"}


def written(files: dict[str, bytes]) -> bytes:
    sink = io.BytesIO()
    tar = TarWriter(sink)
    for name, data in files.items():
        tar.add(name, data)
    tar.close()
    return sink.getvalue()


def archived(form: int) -> bytes:
    """Regular files, a folder and a link, by the standard library."""
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w", format=form) as tar:
        folder = tarfile.TarInfo("a")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
        for name, data in (FILES if form == tarfile.USTAR_FORMAT else {**FILES, **NAMES}).items():
            info = tarfile.TarInfo(name)
            info.size, info.mtime = len(data), 1.5 if form == tarfile.PAX_FORMAT else 1
            tar.addfile(info, io.BytesIO(data))
        link = tarfile.TarInfo("link.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "a/0.jpg"
        tar.addfile(link)
    return sink.getvalue()


def old_style() -> bytes:
    """Headers without magic (V7), and a size in base 256."""
    parts = []
    for name, data in FILES.items():
        block = bytearray(header(name, len(data)))
        block[257:512] = bytes(255)
        if name == "a/1.png":
            block[124:136] = b"\x80" + len(data).to_bytes(11, "big")
        block[148:156] = b" " * 8
        block[148:156] = b"%06o\0 " % sum(block)
        parts.append(bytes(block) + data.ljust((len(data) + 511) // 512 * 512, b"\0"))
    return b"".join(parts) + bytes(1024)


def tars() -> list[bytes]:
    forms = (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)
    return [written(FILES), written({**FILES, **NAMES}), *(archived(f) for f in forms), old_style()]


def index_table() -> pa.Table:
    samples = []
    at = 0
    for n in range(4):
        members = []
        for suffix, size in (("jpg", 700 + n), ("txt", 12)):
            members.append(Member(f"k{n}.{suffix}", at, at + 512, size))
            at += 512 + (size + 511) // 512 * 512
        samples.append(Sample(f"k{n}", tuple(members), ("jpg", "txt")))
    return ShardIndex.of(samples, [[bytes(16), bytes(range(16))]] * len(samples)).table


def pairs_table() -> pa.Table:
    types = {f.name: f.type for f in sidecar.PAIRS}
    pairs = [3, 0, 2]
    columns = {
        "key": ["k0", "k1", "k2"],
        "boxes": sidecar.ragged(types["boxes"], np.arange(16, dtype=np.float32).reshape(4, 4), [2, 0, 2]),
        "region": sidecar.ragged(types["region"], np.array([0, 1, 1, 0, 1], np.uint16), pairs),
        "attribute": sidecar.ragged(types["attribute"], np.arange(5, dtype=np.int32), pairs),
        "score": sidecar.ragged(types["score"], np.ones(5, np.float16), pairs),
    }
    return sidecar.table(sidecar.PAIRS, columns)


def regions_table() -> pa.Table:
    types = {f.name: f.type for f in sidecar.REGIONS}
    columns = {
        "key": ["k0", "k1"],
        "width": [10, 20],
        "height": [10, 20],
        "boxes": sidecar.ragged(types["boxes"], np.arange(8, dtype=np.float32).reshape(2, 4), [2, 0]),
        "objectness": sidecar.ragged(types["objectness"], np.ones(2, np.float32), [2, 0]),
        "attributes": sidecar.ragged(types["attributes"], np.arange(3, dtype=np.int32), [1, 2]),
    }
    return sidecar.table(sidecar.REGIONS, columns)


def manifest_table() -> pa.Table:
    rows: dict[str, list[Any]] = {
        "shard": ["000000", "000001"],
        "samples": [4, 3],
        "bytes": [9000, 8000],
        "sha256": ["a" * 64, "b" * 64],
        "keys_digest": ["0" * 32, "f" * 32],
        "came_in": [5, 3],
        "refused": [1, 0],
        "fingerprint": ["c" * 16, "c" * 16],
    }
    return sidecar.table(manifest.SCHEMA, rows)


def marker() -> bytes:
    outputs = tuple(
        Output(f"000000.{s}", f".attempts/000000.h-1.ab12cd34/000000.{s}", 9000, "a" * 64) for s in ("tar", "idx")
    )
    made = Marker(
        shard="000000",
        stage="base",
        fingerprint="c" * 16,
        input_digest="x.tar:9000",
        samples=4,
        keys_digest="0" * 32,
        outputs=outputs,
        came_in=5,
        refused={"no_text": 1},
        came_in_digest="1" * 32,
        refused_digest="2" * 32,
        content_digest="3" * 32,
        counts={"pairs": 7.0},
        seconds={"check": 0.25},
        warnings=("one",),
    )
    return made.to_bytes()


def images() -> list[bytes]:
    gradient = np.linspace(0, 255, 12 * 9 * 3).reshape(9, 12, 3).astype(np.uint8)
    colour = Image.fromarray(gradient)
    exif = Image.Exif()
    exif[0x0112] = 6
    frames = [Image.new("RGB", (8, 8), c) for c in ("red", "green")]
    made: list[tuple[Image.Image, str, dict[str, Any]]] = [
        (colour, "PNG", {}),
        (colour.convert("P"), "PNG", {"transparency": 3}),
        (colour.convert("LA"), "PNG", {}),
        (Image.fromarray(gradient[..., 0].astype(np.uint16) * 257), "PNG", {}),
        (frames[0], "PNG", {"save_all": True, "append_images": frames[1:], "duration": 10}),
        (colour, "JPEG", {"exif": exif, "quality": 90}),
        (colour.convert("CMYK"), "JPEG", {}),
        (colour, "JPEG", {"progressive": True}),
        (colour, "WEBP", {"lossless": True, "exif": exif}),
        (colour.convert("RGBA"), "WEBP", {}),
        (frames[0], "WEBP", {"save_all": True, "append_images": frames[1:], "duration": 10}),
    ]
    out = []
    for image, form, options in made:
        sink = io.BytesIO()
        image.save(sink, form, **options)
        out.append(sink.getvalue())
    return out


def texts() -> list[bytes]:
    return [
        "a red circle, grün, 写真".encode(),
        b"\xef\xbb\xbfwith a mark",
        json.dumps({"text": "first", "caption": "second", "width": 3, "nested": {"a": [1, 2.5, None, True]}}).encode(),
        b'{"text": "\\ud83d\\ude00 \\u0000", "caption": 7}',
        struct.pack("<4H", 0xFEFF, 65, 66, 67),
    ]
