"""A committed file as its marker recorded it: there, of that size and content, and readable."""

from __future__ import annotations

import pyarrow as pa

from shards import sidecar
from shards.commit import Output, StageFolder
from shards.digest import sha256
from shards.errors import ShardError
from shards.findings import Findings
from shards.verify_sidecar import COUNTS, REDO

ROWS = pa.schema([("row", pa.int32())])


def located(folder: StageFolder, output: Output, found: Findings) -> str:
    """The name under which an output lies now; empty, with a finding, where it is gone."""
    name = folder.locate(output)
    if folder.store.exists(name):
        return name
    found.add(
        "error",
        "missing file",
        folder.store.path(output.file),
        expected=f"{output.bytes} bytes",
        found="no file",
        remedy=REDO,
    )
    return ""


def read_output(folder: StageFolder, output: Output, found: Findings) -> tuple[bytes | None, str]:
    """(content, place) of a small output; None, with a finding, where it is not what its marker recorded."""
    name = located(folder, output, found)
    place = folder.store.path(name or output.file)
    if not name:
        return None, place
    data = folder.store.read(name)
    return (data if check_bytes(place, output, len(data), sha256(data), found) else None), place


def check_bytes(place: str, output: Output, size: int, digest: str, found: Findings) -> bool:
    if size != output.bytes:
        found.add("error", "another size", place, expected=f"{output.bytes} bytes", found=f"{size} bytes", remedy=REDO)
    elif output.sha256 and digest != output.sha256:
        found.add(
            "error", "another content", place, expected=f"sha256 {output.sha256}", found=f"sha256 {digest}", remedy=REDO
        )
    else:
        return True
    return False


def read_table(data: bytes, place: str, schema: pa.Schema | None, found: Findings) -> pa.Table | None:
    try:
        table = sidecar.from_bytes(data, place, schema)
        if schema is None and set(sidecar.ORIGIN.names) <= set(table.column_names):
            return sidecar.from_bytes(data, place, sidecar.ORIGIN, optional=("row",))
        for known in (ROWS, COUNTS) if schema is None else ():
            if set(known.names) <= set(table.column_names):
                table = sidecar.from_bytes(data, place, known)
    except ShardError as error:
        found.add("error", "unreadable sidecar", place, expected="a sidecar", found=error, remedy=REDO)
        return None
    return table
