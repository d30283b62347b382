"""Reading rows whose image is a file: of a folder, of a COCO file, or of a table with paths."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence

from shards.decode import DecodeError
from shards.plan import Row
from shards.sources.base import MAX_MEMBER_BYTES, Item, shown


def read_files(root: str, rows: Sequence[Row]) -> Iterator[Item]:
    """One item a row; what cannot be read is refused in it."""
    for row in rows:
        item = Item(row.key, {}, shown(row.source or row.file), shown(row.member), row.row, row.refused, row.detail)
        if not row.refused:
            try:
                _fill(item, root, row)
            except DecodeError as error:
                item.refused, item.detail = error.reason, error.detail
        yield item


def _fill(item: Item, root: str, row: Row) -> None:
    suffix = row.file.rpartition(".")[2].lower()
    item.members[suffix if suffix.isalnum() else "image"] = read_file(root, row.file)
    texts = (("txt", row.text, row.txt), ("json", row.json, row.meta))
    for name, path, content in texts:
        if path:
            item.members[name] = read_file(root, path)
        elif content is not None:
            item.members[name] = content


def read_file(root: str, name: str) -> bytes:
    """Content of a regular file. Raises: DecodeError with reason unreadable_file or too_many_bytes."""
    try:
        handle = os.open(os.path.join(root, name), os.O_RDONLY | os.O_NONBLOCK)  # a pipe must not hold us up
    except OSError as error:
        raise DecodeError("unreadable_file", f"{shown(name)}: {error.strerror}") from error
    with open(handle, "rb") as file:
        found = os.fstat(handle)
        if not stat.S_ISREG(found.st_mode):
            raise DecodeError("unreadable_file", f"{shown(name)}: no regular file")
        if found.st_size > MAX_MEMBER_BYTES:
            raise DecodeError("too_many_bytes", f"{shown(name)}: {found.st_size} bytes, {MAX_MEMBER_BYTES} at most")
        try:
            return file.read()
        except OSError as error:
            raise DecodeError("unreadable_file", f"{shown(name)}: {error.strerror}") from error
