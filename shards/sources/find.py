"""From what a user points at to a source: its kind by looking, its files by folder, pattern or brace list."""

from __future__ import annotations

import glob
import itertools
import math
import os
import re
from dataclasses import dataclass

from shards.errors import VillaError
from shards.sources import folder, table, tars
from shards.sources.base import URL, Source, folder_given, nearest
from shards.sources.coco import CocoSource
from shards.sources.folder import FolderSource
from shards.sources.table import Columns, TableSource
from shards.sources.tars import TarSource

KINDS = ("folder", "coco", "table", "tars")
MOST_NAMES = 1_000_000
_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")


@dataclass(frozen=True)
class Asked:
    """src: a folder, file, glob pattern or brace list. kind: of KINDS, or "" to look. images: folder of a list's images."""

    src: str
    kind: str = ""
    images: str = ""
    coco: tuple[str, ...] = ()
    columns: Columns | None = None
    max_count: int | None = None
    max_bytes: int = 512 << 20


def open_source(asked: Asked) -> Source:
    """Raises: VillaError when there is no such source, or it is of no kind that can be packed."""
    scheme = URL.match(asked.src)
    if scheme or asked.src.startswith("pipe:"):
        raise VillaError(
            f"source {asked.src!r}: only local files are packed, nothing is downloaded or run; copy it first"
        )
    kind = asked.kind or _guess(asked)
    if kind == "folder":
        return FolderSource.open(asked.src)
    if kind == "coco":
        if os.path.isdir(asked.src):
            if not asked.coco:
                raise VillaError("a COCO source needs its captions file: --coco captions.json")
            return CocoSource.open(asked.coco, asked.images or asked.src)
        own = () if asked.src in asked.coco else (asked.src,)
        return CocoSource.open((*own, *asked.coco), asked.images or os.path.dirname(os.path.abspath(asked.src)))
    if kind == "table":
        root, files = _files(asked.src, table.SUFFIXES)
        if asked.columns is None or not asked.columns.image:
            raise VillaError("a table needs --image-column")
        images = folder_given(asked.images, "images folder") if asked.images else root
        return TableSource(images, tuple(os.path.join(root, f) for f in files), asked.columns)
    root, files = _files(asked.src, tars.SUFFIXES)
    return TarSource(root, files, asked.max_bytes, asked.max_count)


def _guess(asked: Asked) -> str:
    if asked.coco:
        return "coco"
    if os.path.isdir(asked.src):
        return "table" if asked.columns and asked.columns.image else _look(asked.src)
    first = next(iter(_expanded(asked.src)), asked.src)
    kind = _kind_of(first)
    if not kind:
        raise VillaError(
            f"source {asked.src!r} is nothing that can be packed; give a folder of images, a COCO .json, a .parquet, "
            ".csv or .tsv, or WebDataset .tar, .tgz or .tar.gz files"
        )
    return kind


def _kind_of(name: str) -> str:
    lower = name.lower()
    if lower.endswith(tars.SUFFIXES):
        return "tars"
    if lower.endswith(table.SUFFIXES):
        return "table"
    return "coco" if lower.endswith(".json") else ""


def _look(path: str) -> str:
    """folder or tars, by the first folder that has images or tars; a folder with both has to be told apart by the user."""
    for level in folder.walk(folder_given(path, "source")):
        images = any(f.suffix in folder.IMAGES for f in level.files)
        archives = any(f.name.lower().endswith(tars.SUFFIXES) for f in level.files)
        if images and archives:
            place = os.path.join(path, level.path)
            raise VillaError(f"{place} holds both images and tars; say which to pack: --kind folder or --kind tars")
        if images or archives:
            return "tars" if archives else "folder"
    return "folder"


def _files(src: str, suffixes: tuple[str, ...]) -> tuple[str, tuple[str, ...]]:
    """(folder, files relative to it). Raises: VillaError when there are none, or one that is listed is missing."""
    if os.path.isdir(src):
        root = folder_given(src, "source")
        found = [
            level.path + file.name
            for level in folder.walk(root)
            for file in level.files
            if file.name.lower().endswith(suffixes) and file.size != folder.NO_FILE and not file.name.startswith(".")
        ]
        if not found:
            raise VillaError(f"source {src!r} holds no {' or '.join(suffixes)} files")
        return root, tuple(found)
    paths = [os.path.realpath(p) for p in _expanded(src)]
    strange = next((p for p in paths if not p.lower().endswith(suffixes)), None)
    if strange:
        raise VillaError(f"{strange} is no {' or '.join(suffixes)} file; narrow the pattern {src!r}")
    root = os.path.commonpath([os.path.dirname(p) for p in paths])
    return root, tuple(os.path.relpath(p, root) for p in dict.fromkeys(paths))


def _expanded(src: str) -> list[str]:
    """Files of a path, glob pattern or brace list, in order."""
    if os.path.isfile(src):
        return [src]
    found: list[str] = []
    listed = braces(src)
    missing = []
    for name in listed:
        if glob.has_magic(name) and not os.path.exists(name):
            found += sorted(p for p in glob.glob(name, recursive=True) if os.path.isfile(p))
        elif os.path.isfile(name):
            found.append(name)
        else:
            missing.append(name)
    if missing and len(listed) > 1:
        raise VillaError(
            f"source {src!r} lists {len(listed)} files and {len(missing)} are missing, such as {missing[0]}; restore them, "
            "or list what is there"
        )
    if not found:
        folder_of = os.path.dirname(os.path.abspath(src))
        near = nearest(os.path.basename(src.rstrip("/")), os.listdir(folder_of)) if os.path.isdir(folder_of) else ""
        raise VillaError(f"source {src!r} does not exist{near}" if missing else f"nothing matches the pattern {src!r}")
    return found


def braces(pattern: str) -> list[str]:
    """Names of a brace list: `{00..11}` counts with its zeros, `{a,b}` lists; several are combined, the last one fastest."""
    parts = _BRACES.split(pattern)  # text, inside, text, inside, ... text
    choices = [_choices(part) if at % 2 else [part] for at, part in enumerate(parts)]
    size = math.prod(len(each) for each in choices)
    if size > MOST_NAMES:
        raise VillaError(
            f"a brace list of {size:,} names, {MOST_NAMES:,} at most; put the files into a folder and give that"
        )
    return ["".join(chosen) for chosen in itertools.product(*choices)]


def _choices(inside: str) -> list[str]:
    counted = _RANGE.fullmatch(inside)
    if not counted:
        return inside.split(",") if "," in inside else [f"{{{inside}}}"]
    first, last = int(counted[1]), int(counted[2])
    if abs(last - first) >= MOST_NAMES:
        raise VillaError(
            f"brace list {{{inside}}} counts over {MOST_NAMES:,} names; put the files into a folder and give that"
        )
    step = 1 if last >= first else -1
    wide = len(counted[1]) if counted[1].startswith("0") or len(counted[1]) == len(counted[2]) else 0
    return [str(n).zfill(wide) for n in range(first, last + step, step)]
