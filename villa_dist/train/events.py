"""TensorBoard's event files, written without TensorBoard: records of a small protocol buffer, each with two checksums.

A file is TFRecords: length (8 bytes, little-endian), its masked CRC-32C, the event, its masked CRC-32C. An event has
wall_time (field 1, double), step (2, varint) and one of file_version (3), summary (5) and session_log (7).
"""

from __future__ import annotations

import os
import socket
import struct
import time
from collections.abc import Mapping
from functools import cache
from pathlib import Path

VERSION = b"brain.Event:2"
VARINT, DOUBLE, BYTES, FLOAT = 0, 1, 2, 5  # wire types
SESSION_START = 1


class EventFile:
    """One file of scalars. start: the step that training continues from; what other files of the folder say of later steps
    is hidden."""

    def __init__(self, folder: Path, start: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = (
            folder / f"events.out.tfevents.{time.time_ns() // 1_000_000:013d}.{socket.gethostname()}.{os.getpid()}"
        )
        self._append(event(time.time(), 0, _field(3, VERSION)))
        if start:
            self._append(event(time.time(), start + 1, _field(7, _number(1, SESSION_START))))

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """One event with a scalar for each value, by its name."""
        self._append(event(time.time(), step, _field(5, b"".join(scalar(n, v) for n, v in values.items()))))

    def _append(self, data: bytes) -> None:
        with open(self.path, "ab") as f:
            f.write(record(data))


def event(wall_time: float, step: int, rest: bytes) -> bytes:
    return _tag(1, DOUBLE) + struct.pack("<d", wall_time) + _number(2, step) + rest


def scalar(name: str, value: float) -> bytes:
    """A summary's value: tag (1) and simple_value (2)."""
    return _field(1, _field(1, name.encode()) + _tag(2, FLOAT) + struct.pack("<f", value))


def record(data: bytes) -> bytes:
    length = struct.pack("<Q", len(data))
    return length + struct.pack("<I", masked(length)) + data + struct.pack("<I", masked(data))


def masked(data: bytes) -> int:
    crc = crc32c(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def crc32c(data: bytes) -> int:
    """CRC-32 with Castagnoli's polynomial (RFC 3720)."""
    table, crc = _table(), 0xFFFFFFFF
    for byte in data:
        crc = table[(crc ^ byte) & 0xFF] ^ crc >> 8
    return crc ^ 0xFFFFFFFF


@cache
def _table() -> tuple[int, ...]:
    table = []
    for crc in range(256):
        for _ in range(8):
            crc = crc >> 1 ^ 0x82F63B78 if crc & 1 else crc >> 1
        table.append(crc)
    return tuple(table)


def _tag(field: int, kind: int) -> bytes:
    return _varint(field << 3 | kind)


def _number(field: int, value: int) -> bytes:
    return _tag(field, VARINT) + _varint(value)


def _field(field: int, data: bytes) -> bytes:
    return _tag(field, BYTES) + _varint(len(data)) + data


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
