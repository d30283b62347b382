"""A folder of images with their texts beside them: `a/b.jpg` with `a/b.txt` and/or `a/b.json`.

Files of one folder that differ in their last suffix alone belong together. Every image of such a group is a sample with
the group's texts. A file of another suffix counts as an image where it has a text and no image has: its content decides.
Folders are walked in order of names and one at a time, so that memory is O(the largest folder).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from shards.errors import VillaError
from shards.plan import Row
from shards.sources.base import LeftOut, Listing, folder_given
from shards.sources.names import Names, safe_part

IMAGES = (
    *("jpg", "jpeg", "jpe", "jfif", "png", "webp"),
    *("bmp", "dib", "gif", "tif", "tiff", "ppm", "pgm", "pbm", "mpo", "jp2", "j2k", "jxl", "avif", "heic", "heif"),
    *("ico", "pcx", "dds", "tga"),
)
NO_FILE = -1  # size of what cannot be read: a link that leads nowhere or in circles, a pipe, a device


@dataclass(frozen=True)
class Entry:
    """A file by name. size: bytes, or NO_FILE."""

    name: str
    size: int
    trouble: str = ""

    @property
    def stem(self) -> str:
        return self.name.rpartition(".")[0] or self.name

    @property
    def suffix(self) -> str:
        stem, _, suffix = self.name.rpartition(".")
        return suffix.lower() if stem else ""


@dataclass(frozen=True)
class Level:
    """One folder: its path below the root and the safe form of that path, both empty or ending in `/`."""

    path: str
    prefix: str
    files: list[Entry]
    skipped: list[str]  # links to folders


def walk(root: str) -> Iterator[Level]:
    """The folders below `root`, each before those in it. Links to folders are not followed, so no loop is entered.

    Raises: VillaError naming a folder that cannot be listed.
    """
    pending = [("", "")]
    while pending:
        path, prefix = pending.pop()
        files, folders, skipped = [], [], []
        try:
            with os.scandir(os.path.join(root, path)) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        folders.append(entry.name)
                    elif _leads_to_folder(entry):
                        skipped.append(entry.name)
                    else:
                        files.append(_entry(entry))
        except OSError as error:
            place = os.path.join(root, path)
            raise VillaError(
                f"cannot list {place}: {error.strerror}; give this user read access, or move it"
            ) from error
        yield Level(path, prefix, sorted(files, key=lambda f: f.name), skipped)
        names = Names()
        below = [(f"{path}{name}/", f"{prefix}{names.give(name)}/") for name in sorted(folders)]
        pending.extend(reversed(below))


def _leads_to_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False


def _entry(entry: os.DirEntry[str]) -> Entry:
    try:
        if entry.is_file():
            return Entry(entry.name, entry.stat().st_size)
        return Entry(entry.name, NO_FILE, "no regular file, or a link that leads to none")
    except OSError as error:
        return Entry(entry.name, NO_FILE, error.strerror or "unreadable")


@dataclass
class FolderSource:
    """root: an absolute path."""

    root: str
    kind: str = "folder"
    warnings: list[str] = field(default_factory=list)

    @classmethod
    def open(cls, path: str) -> FolderSource:
        return cls(folder_given(path, "source"))

    def claim(self) -> dict[str, Any]:
        listing = Listing()
        for level in walk(self.root):
            for file in level.files:
                listing.add(level.path + file.name, file.size)
        return {"kind": self.kind, "place": self.root, **listing.claim()}

    def rows(self) -> Iterator[Row]:
        left_out, images = LeftOut(), 0
        self.warnings.clear()
        for level in walk(self.root):
            for _ in level.skipped:
                left_out.add("link to a folder")
            for row in _rows(level, left_out):
                images += row.refused != "no_image"
                yield row
        self.warnings += left_out.lines(f"{self.root}: files that are neither image nor text")
        if not images:
            found = "; ".join(self.warnings) or "it holds no files at all"
            raise VillaError(f"no images in {self.root} ({found}); point SRC at a folder of images, a table or tars")


def _rows(level: Level, left_out: LeftOut) -> Iterator[Row]:
    groups: dict[str, list[Entry]] = {}
    for file in level.files:
        if file.name.startswith("."):
            left_out.add("hidden file")
        else:
            groups.setdefault(file.stem, []).append(file)
    names = Names()
    for stem, files in groups.items():
        texts = {f.suffix: f for f in files if f.suffix in ("txt", "json") and f.size != NO_FILE}
        others = [f for f in files if f.suffix not in ("txt", "json")]
        images = [f for f in others if f.suffix in IMAGES] or (others if texts else [])
        for file in others if not images else [f for f in others if f not in images]:
            left_out.add(f".{file.suffix}" if file.suffix else "without suffix")
        for image in images:
            name = stem if len(images) == 1 else f"{safe_part(stem)}-{image.suffix or 'file'}"
            yield _row(level, level.prefix + names.give(name), image, texts)
        if texts and not images:
            alone = next(iter(texts.values()))
            yield Row(
                "file", level.prefix + names.give(f"{stem}"), level.path + alone.name,
                size=alone.size, refused="no_image", detail="a text without an image beside it",
            )  # fmt: skip


def _row(level: Level, key: str, image: Entry, texts: dict[str, Entry]) -> Row:
    beside = {suffix: level.path + file.name for suffix, file in texts.items()}
    refused, detail = "", ""
    if image.size == NO_FILE:
        refused, detail = "unreadable_file", image.trouble
    elif not texts:
        refused, detail = "no_text", f"no {image.stem}.txt or {image.stem}.json beside it"
    return Row(
        "file",
        key,
        level.path + image.name,
        text=beside.get("txt", ""),
        json=beside.get("json", ""),
        size=max(image.size, 0) + sum(f.size for f in texts.values()),
        refused=refused,
        detail=detail.encode("utf-8", "backslashreplace").decode(),
    )
