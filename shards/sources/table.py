"""A table of images and texts: Parquet, CSV or TSV, one file or several, read row by row.

The image column holds paths below the images folder or, in Parquet, the bytes themselves (also as the struct with `bytes`
that Hugging Face data sets have). Every row is a sample, under `<table>/<row number>` or the key column's value; rows of
one image with different texts stay apart.
"""

from __future__ import annotations

import csv
import json
import os
import string
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from shards.decode import DecodeError
from shards.errors import VillaError
from shards.plan import Row
from shards.sources.base import URL, Listing, nearest, shown, unsafe_path
from shards.sources.cells import image_bytes
from shards.sources.names import safe_key, tag

SUFFIXES = (".parquet", ".csv", ".tsv")
LONGEST_CELL = 16 << 20
BATCH_ROWS = 1024
csv.field_size_limit(LONGEST_CELL)


@dataclass(frozen=True)
class Columns:
    """image: column of paths or bytes. text: columns joined by " . ", unless `template` ("{title}. {colour}") says how.
    key: column of unique names. keep: columns that go into the .json member."""

    image: str
    text: tuple[str, ...] = ()
    template: str = ""
    key: str = ""
    keep: tuple[str, ...] = ()

    def names(self) -> list[str]:
        """All columns that are read, the image's first. Raises: VillaError for a template that is more than names."""
        named: list[str] = [self.image, *self.text, *self.fields(), *([self.key] if self.key else []), *self.keep]
        return list(dict.fromkeys(named))

    def fields(self) -> list[str]:
        try:
            parts = list(string.Formatter().parse(self.template))
        except ValueError as error:
            raise VillaError(
                f"--text-template {self.template!r}: {error}; write it like '{{title}}. {{colour}}'"
            ) from None
        for _, name, form, conversion in parts:
            if name is not None and (form or conversion or not name or any(c in name for c in ".[]")):
                raise VillaError(
                    f"--text-template {self.template!r}: {{{name}}} is not the plain name of a column; write it like "
                    "'{title}. {colour}'"
                )
        return [name for _, name, _, _ in parts if name]

    def said(self, row: dict[str, Any]) -> str:
        """The text of a row; empty where all its columns are."""
        if not self.template:
            return " . ".join(t for t in (_text(row[c]) for c in self.text) if t)
        values = {c: _text(row[c]) for c in self.fields()}
        return self.template.format(**values) if any(values.values()) else ""


@dataclass
class TableSource:
    """files: tables of one kind of columns, absolute paths. root: the folder that paths in them are relative to."""

    root: str
    files: tuple[str, ...]
    columns: Columns
    kind: str = "table"
    warnings: list[str] = field(default_factory=list)

    def claim(self) -> dict[str, Any]:
        listing = Listing()
        for path in self.files:
            listing.add(path, os.path.getsize(path))
        return {"kind": self.kind, "place": self.root, **listing.claim(), "columns": asdict(self.columns)}

    def rows(self) -> Iterator[Row]:
        if not self.columns.text and not self.columns.template:
            raise VillaError("a table needs --text-column (repeatable) or --text-template")
        for path in self.files:
            check_columns(path, self.columns.names())
        repeated = self._repeated_keys() if self.columns.key else set()
        seen: set[str] = set()
        missing, paths, found = "", 0, 0
        for path in self.files:
            for row in self._of(path):
                paths += row.kind == "file"
                if row.refused == "unreadable_file":
                    missing = missing or row.member
                else:
                    found += 1
                if self.columns.key and _hash(row.key) in repeated:
                    if row.key in seen:
                        row = _refused(row, "duplicate_key", f"an earlier row has the same {self.columns.key}")
                    seen.add(row.key)
                yield row
        if not paths and not found:
            raise VillaError(f"{', '.join(self.files)}: no rows")
        if not found:
            raise VillaError(
                f"no image that the column {self.columns.image!r} names is in {self.root} (such as {missing}); point "
                "--images at their folder"
            )

    def _of(self, path: str) -> Iterator[Row]:
        prefix = safe_key(os.path.basename(path).rpartition(".")[0])
        if len(self.files) > 1:
            prefix = f"{prefix}-{tag(os.path.relpath(path, os.path.dirname(self.files[0])))}"
        read = _parquet_rows if path.endswith(".parquet") else _csv_rows
        for at, group, index, size, values in read(path, self.columns):
            key = f"{prefix}/{at:07d}"
            if self.columns.key:
                given = values[self.columns.key]
                named = _text(given) if isinstance(given, str | int) else ""
                if not named:
                    yield _refused(self._row(path, at, group, index, size, values, key), "no_key", self.columns.key)
                    continue
                key = safe_key(named)
            yield self._row(path, at, group, index, size, values, key)

    def _row(self, path: str, at: int, group: int, index: int, size: int, values: dict[str, Any], key: str) -> Row:
        source = os.path.relpath(path, self.root) if path.startswith(f"{self.root}/") else os.path.basename(path)
        image = values.get(self.columns.image)  # absent for bytes, which the worker reads
        text, meta, refused, detail = None, None, "", ""
        try:
            text, meta = self._contents(values)
        except DecodeError as error:
            refused, detail = error.reason, error.detail
        row = Row("cell", key, path, source=source, row=at, member=self.columns.image)
        if group < 0:
            name = str(image or "")
            _refuse_url(path, at, self.columns.image, name)
            if not refused and unsafe_path(name):
                refused, detail = "unsafe_path", f"{shown(name)!r}: {unsafe_path(name)}"
            if not refused:
                try:
                    size = os.stat(os.path.join(self.root, name)).st_size
                except OSError as error:
                    refused, detail = "unreadable_file", f"{shown(name)}: {error.strerror}"
            row = Row(
                "file", key, shown(name, 4096) if refused else name, source=source, row=at, member=shown(name, 4096)
            )
        if refused:
            return _refused(row, refused, detail)
        size += len(text or b"") + len(meta or b"")
        return Row(
            row.kind, key, row.file, txt=text, meta=meta, source=source, member=row.member, row=at,
            first=max(group, 0), last=index, size=size,
        )  # fmt: skip

    def _contents(self, values: dict[str, Any]) -> tuple[bytes, bytes | None]:
        """(txt, json) members. Raises: DecodeError with reason not_utf8, bad_row or no_text."""
        if None in values:
            raise DecodeError("bad_row", f"{values[None]} cells, and the head has another number")  # type: ignore[index]
        for name, value in values.items():
            if isinstance(value, str) and not _is_utf8(value):
                raise DecodeError("not_utf8", f"column {name!r}: {shown(value, 80)!r}")
        text = self.columns.said(values)
        if not text.strip():
            raise DecodeError("no_text", f"nothing in {self.columns.template or ', '.join(self.columns.text)}")
        kept = {c: values[c] for c in self.columns.keep}
        meta = json.dumps(kept, ensure_ascii=False, default=str).encode() if kept else None
        return text.encode(), meta

    def _repeated_keys(self) -> set[int]:
        """Hashes that more than one row's key has: 8 bytes of memory a row, and as many again to sort them."""
        hashes: list[np.ndarray] = []
        chunk: list[int] = []
        for path in self.files:
            for row in self._keys(path):
                chunk.append(row)
                if len(chunk) == 1 << 16:
                    hashes.append(np.array(chunk, np.uint64))
                    chunk = []
        every = np.sort(np.concatenate([*hashes, np.array(chunk, np.uint64)]))
        return {int(h) for h in every[1:][every[1:] == every[:-1]]}

    def _keys(self, path: str) -> Iterator[int]:
        read = _parquet_rows if path.endswith(".parquet") else _csv_rows
        only = Columns(self.columns.key, key=self.columns.key)
        for _, _, _, _, values in read(path, only):
            given = values.get(self.columns.key)
            yield _hash(safe_key(_text(given) if isinstance(given, str | int) else ""))


# (row number, row group or -1, row in its group, bytes of the image, column -> value)
Rows = Iterator[tuple[int, int, int, int, dict[str, Any]]]


def _parquet_rows(path: str, columns: Columns) -> Rows:
    file = parquet_file(path)
    binary = image_bytes(file.schema_arrow.field(columns.image).type)
    wanted = [c for c in columns.names() if not (binary and c == columns.image)]
    if not wanted:
        raise VillaError(f"{path}: column {columns.image!r} holds images, so the text has to come from another column")
    at = 0
    for group in range(file.num_row_groups):
        count = file.metadata.row_group(group).num_rows
        size = _mean_size(file, group, columns.image) if binary else 0
        index = 0
        for batch in file.iter_batches(BATCH_ROWS, row_groups=[group], columns=wanted):
            lists = {name: _values(path, name, batch.column(name)) for name in wanted}
            for row in range(batch.num_rows):
                yield at, group if binary else -1, index, size, {name: lists[name][row] for name in wanted}
                at, index = at + 1, index + 1
        assert index == count


def _values(path: str, name: str, column: pa.Array) -> list[Any]:
    """Python values; text that is not UTF-8 keeps its bytes as lone surrogates, as file names do."""
    kind = column.type
    if pa.types.is_dictionary(kind):
        column, kind = column.dictionary_decode(), kind.value_type
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        raw = column.cast(pa.large_binary() if pa.types.is_large_string(kind) else pa.binary()).to_pylist()
        return [None if v is None else v.decode("utf-8", "surrogateescape") for v in raw]
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        raise VillaError(f"{path}: column {name!r} holds bytes, where text is needed")
    try:
        return column.to_pylist()
    except (ValueError, ArithmeticError) as error:
        raise VillaError(f"{path}: column {name!r} is not readable: {error}") from error


def _mean_size(file: pq.ParquetFile, group: int, image: str) -> int:
    """Mean bytes of an image in a row group, from the file's own figures."""
    found = file.metadata.row_group(group)
    chunks = [found.column(i) for i in range(found.num_columns)]
    total = sum(c.total_uncompressed_size for c in chunks if c.path_in_schema.split(".")[0] == image)
    return total // max(found.num_rows, 1)


def parquet_file(path: str) -> pq.ParquetFile:
    """Raises: VillaError when it is none."""
    try:
        return pq.ParquetFile(path, memory_map=True)
    except (pa.ArrowException, OSError) as error:
        raise VillaError(f"table {path} is not readable as Parquet: {error}") from error


def _csv_rows(path: str, columns: Columns) -> Rows:
    with _opened(path) as file:
        reader = csv.reader(file, delimiter="\t" if path.endswith(".tsv") else ",")
        try:
            head = next(reader, [])
            places = {name: head.index(name) for name in columns.names()}
            for at, cells in enumerate(c for c in reader if c):
                if len(cells) != len(head):
                    values: dict[Any, Any] = {**dict.fromkeys(places, ""), None: len(cells)}
                else:
                    values = {name: cells[place] for name, place in places.items()}
                yield at, -1, 0, 0, values
        except csv.Error as error:
            raise VillaError(
                f"table {path}, line {reader.line_num}: {error}; a quote that is never closed does this (cells have at most "
                f"{LONGEST_CELL >> 20} MiB)"
            ) from error


def _opened(path: str) -> Any:
    try:
        return open(path, encoding="utf-8-sig", errors="surrogateescape", newline="")
    except OSError as error:
        raise VillaError(f"table {path} cannot be read: {error.strerror}") from error


def check_columns(path: str, wanted: list[str]) -> None:
    """Raises: VillaError naming a column that the table lacks, the nearest it has, and all it has."""
    if path.endswith(".parquet"):
        head = parquet_file(path).schema_arrow.names
    else:
        with _opened(path) as file:
            head = next(csv.reader(file, delimiter="\t" if path.endswith(".tsv") else ","), [])
    for name in wanted:
        if name not in head:
            raise VillaError(
                f"table {path} has no column {name!r}{nearest(name, head)}; it has {shown(', '.join(head), 500)}"
            )
        if head.count(name) > 1:
            raise VillaError(f"table {path} has {head.count(name)} columns called {name!r}; rename all but one")


def _refuse_url(path: str, at: int, column: str, value: str) -> None:
    if URL.match(value):
        raise VillaError(
            f"{path}, row {at}: column {column!r} holds a URL ({shown(value, 80)}); packing downloads nothing. Fetch the "
            "images first (img2dataset writes tars that this command packs), or name a column of paths"
        )


def _refused(row: Row, reason: str, detail: str) -> Row:
    return Row(
        "file",
        row.key,
        row.file,
        source=row.source,
        member=row.member,
        row=row.row,
        refused=reason,
        detail=shown(detail),
    )


def _text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, list):
        return " . ".join(t for t in map(_text, value) if t)
    return str(value).strip()


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _hash(key: str) -> int:
    return int(tag(key, 16), 16)
