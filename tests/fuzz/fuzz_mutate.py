"""Mutations that know the structure of what they change: tar headers with their checksums, PAX records, PNG chunks, JSON
values, columns of a table. Everything is drawn from one seeded generator, so that a seed repeats a run."""

from __future__ import annotations

import io
import json
import random
import struct
import zlib
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

BLOCK = 512
NUMBERS = (
    0,
    1,
    2,
    3,
    7,
    127,
    128,
    255,
    256,
    511,
    512,
    513,
    4096,
    65535,
    65536,
    2**31 - 1,
    2**31,
    2**32,
    2**62,
    2**63 - 1,
)
FIELDS = {  # of a tar header: name -> (offset, length)
    "name": (0, 100),
    "mode": (100, 8),
    "uid": (108, 8),
    "gid": (116, 8),
    "size": (124, 12),
    "mtime": (136, 12),
    "type": (156, 1),
    "link": (157, 100),
    "magic": (257, 8),
    "uname": (265, 32),
    "devmajor": (329, 8),
    "prefix": (345, 155),
    "sparse": (386, 96),
    "extended": (482, 1),
    "realsize": (483, 12),
}
TYPES = b"01234567\0xgLKSXNADVM\xff "
MEMBER_NAMES = (
    b"",
    b".",
    b"..",
    b"../up.jpg",
    b"/abs.jpg",
    b"./a.jpg",
    b".hidden.jpg",
    b"a/",
    b"a//b.jpg",
    b"a\nb.jpg",
    b"\xff\xfe.jpg",
    b"a.jpg",
    "ä.jpg".encode(),
    b"a" * 100,
    b"dir/.jpg",
    b"no_dot",
    b"a.JPG",
    b"\xed\xa0\x80.jpg",
    b"a.jpg ",
    b" ",
    b"._a.jpg",
)
PAX_KEYS = (
    b"path",
    b"size",
    b"linkpath",
    b"mtime",
    b"hdrcharset",
    b"GNU.sparse.map",
    b"GNU.sparse.major",
    b"GNU.sparse.minor",
    b"GNU.sparse.name",
    b"GNU.sparse.size",
    b"GNU.sparse.realsize",
    b"GNU.sparse.numblocks",
    b"GNU.sparse.offset",
    b"GNU.sparse.numbytes",
    b"uid",
    b"comment",
    b"",
)
PAX_VALUES = (
    b"",
    b"0",
    b"1",
    b"-1",
    b"512",
    b"99999999999999999999999",
    b"-512",
    b"1e9",
    b"nan",
    b"inf",
    b"0x10",
    b"1,2,3",
    b"0,10,20",
    b"a.jpg",
    b"../x.jpg",
    b"BINARY",
    b"ISO-IR 10646 2000 UTF-8",
    b"\xff\xfe",
    b"\0",
    b"a\0b.jpg",
    b"1.0",
    b"0.1",
    b"9" * 40,
    b"_1",
    b"\xc2\xb2",
)

Mutation = Callable[[random.Random, bytearray], bytearray]


# ---- bytes


def flip(rng: random.Random, data: bytearray) -> bytearray:
    for _ in range(rng.choice((1, 1, 1, 2, 4, 16))):
        if data:
            data[rng.randrange(len(data))] = rng.choice((0, 0xFF, 0x7F, 0x80, rng.randrange(256)))
    return data


def cut(rng: random.Random, data: bytearray) -> bytearray:
    return data[: rng.randrange(len(data) + 1)]


def splice(rng: random.Random, data: bytearray) -> bytearray:
    """A piece is removed, repeated or moved."""
    if not data:
        return data
    a, b = sorted(rng.randrange(len(data) + 1) for _ in range(2))
    piece, at = data[a:b], rng.randrange(len(data) + 1)
    if rng.random() < 0.5:
        del data[a:b]
    return data[:at] + piece + data[at:] if rng.random() < 0.7 else data


def raw(rng: random.Random, data: bytes) -> bytes:
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 3))):
        out = rng.choice((flip, flip, cut, splice))(rng, out)
    return bytes(out)


# ---- tars


def with_checksum(block: bytearray) -> bytearray:
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return block


def tar_headers(data: bytes | bytearray) -> list[int]:
    """Blocks whose checksum is right."""
    found = []
    for at in range(0, len(data) - BLOCK + 1, BLOCK):
        block = data[at : at + BLOCK]
        try:
            recorded = int(bytes(block[148:156]).split(b"\0")[0].strip() or b"0", 8)
        except ValueError:
            continue
        if any(block) and recorded == sum(block) - sum(block[148:156]) + 256:
            found.append(at)
    return found


def tar_number(rng: random.Random, length: int) -> bytes:
    value = rng.choice(NUMBERS)
    kind = rng.randrange(6)
    if kind == 0:
        return (
            (b"\x80" + value.to_bytes(length - 1, "big", signed=False)) if length > 9 else b"\x80" + bytes(length - 1)
        )
    if kind == 1:  # a negative number in base 256
        return b"\xff" * (length - 2) + struct.pack(">H", 65536 - rng.choice((1, 512, 1024, 4096)))
    if kind == 2:
        return rng.choice((b"-1", b"-1000", b"0o17", b"1_0", b" 12 ", b"", b" ", b"9", b"\0001", b"+7", b"7 7"))[
            :length
        ].ljust(length, b"\0")
    return (b"%o" % value)[-length + 1 :].rjust(length - 1, b"0") + b"\0"


def tar_field(rng: random.Random, data: bytearray) -> bytearray:
    """One field of one header gets another value; the checksum is made right again, mostly."""
    places = tar_headers(data)
    if not places:
        return flip(rng, data)
    at = rng.choice(places)
    name = rng.choice((*FIELDS, "size", "size", "type", "type", "name"))
    offset, length = FIELDS[name]
    if name == "type":
        value = bytes([rng.choice(TYPES)])
    elif name in ("name", "link", "prefix"):
        value = rng.choice(MEMBER_NAMES)[:length].ljust(length, b"\0")
    elif name == "magic":
        value = rng.choice((b"ustar\00000", b"ustar  \0", bytes(8), b"ustar\0  "))
    elif name in ("uname", "sparse", "extended"):
        value = rng.choice((b"\xff" * length, bytes(length), b"".join(tar_number(rng, 12) for _ in range(8))))[:length]
    else:
        value = tar_number(rng, length)
    block = bytearray(data[at : at + BLOCK])
    block[offset : offset + length] = value
    data[at : at + BLOCK] = with_checksum(block) if rng.random() < 0.9 else block
    return data


def pax_record(rng: random.Random) -> bytes:
    body = b" " + rng.choice(PAX_KEYS) + b"=" + rng.choice(PAX_VALUES) + b"\n"
    length = len(body) + 1
    while len(b"%d" % length) + len(body) != length:
        length += 1
    stated = length if rng.random() < 0.85 else rng.choice((0, 1, 3, length - 1, length + 1, 10**6, 10**30))
    return b"%d" % stated + body


def extension(rng: random.Random) -> bytes:
    """A PAX header, a global one, or a GNU long name or link, with its payload."""
    kind = rng.choice(b"xxxgLKXN")
    if kind in b"LK":
        payload = rng.choice(MEMBER_NAMES) * rng.choice((1, 3, 200)) + rng.choice((b"\0", b""))
    else:
        payload = b"".join(pax_record(rng) for _ in range(rng.randrange(4))) + rng.choice(
            (b"", b"", b"junk", b"7" * 600)
        )
    block = bytearray(BLOCK)
    block[:4] = b"ext\0"
    block[100:136] = b"%07o\0%07o\0%07o\0%011o\0" % (0o644, 0, 0, len(payload))
    block[136:148] = b"%011o\0" % 0
    block[156] = kind
    block[257:265] = b"ustar\x00" + b"00"
    if rng.random() < 0.15:
        block[124:136] = tar_number(rng, 12)
    return bytes(with_checksum(block)) + payload.ljust((len(payload) + BLOCK - 1) // BLOCK * BLOCK, b"\0")


def tar_extension(rng: random.Random, data: bytearray) -> bytearray:
    places = tar_headers(data) or [0]
    at = rng.choice(places)
    return data[:at] + extension(rng) + data[at:]


def tar_blocks(rng: random.Random, data: bytearray) -> bytearray:
    """A block is zeroed, removed, repeated or exchanged with another."""
    count = len(data) // BLOCK
    if not count:
        return data
    a, b = (rng.randrange(count) * BLOCK for _ in range(2))
    first, second = data[a : a + BLOCK], data[b : b + BLOCK]
    kind = rng.randrange(4)
    if kind == 0:
        data[a : a + BLOCK] = bytes(BLOCK)
    elif kind == 1:
        del data[a : a + BLOCK]
    elif kind == 2:
        data[b:b] = first
    else:
        data[a : a + BLOCK], data[b : b + BLOCK] = second, first
    return data


def tar(rng: random.Random, data: bytes) -> bytes:
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 5))):
        out = rng.choice((tar_field, tar_field, tar_field, tar_extension, tar_extension, tar_blocks, flip, cut))(
            rng, out
        )
    return bytes(out[: 1 << 16])


# ---- Parquet


def column_value(rng: random.Random, kind: pa.DataType) -> Any:
    if pa.types.is_list(kind) or pa.types.is_fixed_size_list(kind):
        length = kind.list_size if pa.types.is_fixed_size_list(kind) else rng.choice((0, 1, 2, 5))
        return None if rng.random() < 0.1 else [column_value(rng, kind.value_type) for _ in range(length)]
    if rng.random() < 0.05:
        return None
    if pa.types.is_integer(kind):
        return (
            rng.choice(NUMBERS) % (1 << (kind.bit_width - 1)) * (rng.choice((1, 1, -1)) if "u" not in str(kind) else 1)
        )
    if pa.types.is_floating(kind):
        return rng.choice((0.0, 1.0, -1.0, 60_000.0, float("nan"), float("inf"), -float("inf")))
    return rng.choice(("", "k0", "k1", "zz", "../x", "f" * 32, "ä\n", "a" * 64))


OTHER_TYPES = (
    pa.string(),
    pa.int64(),
    pa.uint8(),
    pa.float64(),
    pa.list_(pa.int64()),
    pa.list_(pa.string()),
    pa.list_(pa.list_(pa.float32())),
    pa.binary(),
    pa.bool_(),
    pa.null(),
    pa.large_string(),
    pa.list_(pa.float64(), 3),
    pa.timestamp("ms"),
)


def table(rng: random.Random, made: pa.Table) -> bytes:
    """A valid Parquet file of a table that is not as it should be; now and then of bytes that are not valid either."""
    for _ in range(rng.choice((1, 1, 2, 3))):
        try:
            made = changed_table(rng, made)
        except (pa.ArrowException, ValueError, TypeError, OverflowError):
            continue  # values of one draw that make no column
    sink = io.BytesIO()
    pq.write_table(made, sink, compression=rng.choice(("zstd", "none", "snappy")), store_schema=rng.random() < 0.5)
    data = sink.getvalue()
    return raw(rng, data) if rng.random() < 0.2 else data


def changed_table(rng: random.Random, made: pa.Table) -> pa.Table:
    if made.num_columns:
        place = rng.randrange(made.num_columns)
        field = made.schema.field(place)
        kind = rng.randrange(7)
        if kind <= 2 and len(made):  # a value
            values = made.column(place).to_pylist()
            values[rng.randrange(len(values))] = column_value(rng, field.type)
            made = made.set_column(place, field.name, pa.array(values, type=field.type))
        elif kind == 3:  # a type
            other = rng.choice(OTHER_TYPES)
            made = made.set_column(place, field.name, pa.array([_of(rng, other) for _ in range(len(made))], type=other))
        elif kind == 4:
            made = made.remove_column(place)
        elif kind == 5:
            made = made.append_column(field.name, made.column(place))
        else:
            made = made.slice(rng.randrange(len(made) + 1))
    return made


def _of(rng: random.Random, kind: pa.DataType) -> Any:
    if pa.types.is_null(kind):
        return None
    if pa.types.is_binary(kind):
        return b"\xff\0"
    if pa.types.is_boolean(kind):
        return True
    if pa.types.is_timestamp(kind):
        return 1
    return column_value(rng, kind)


# ---- JSON

JSON_VALUES: tuple[Any, ...] = (
    None,
    True,
    0,
    -1,
    1.5,
    2**70,
    10**400,
    "",
    "x",
    [],
    {},
    [[]],
    [1],
    {"a": 1},
    "\ud800",
    float("nan"),
    float("inf"),
    "../x",
    "\0",
    [None],
    -0.0,
)


def json_value(rng: random.Random, value: Any) -> Any:
    """The value with one of its parts exchanged, removed or added."""
    if isinstance(value, dict) and value and rng.random() < 0.8:
        key = rng.choice(list(value))
        changed = dict(value)
        kind = rng.randrange(8)
        if kind == 0:
            del changed[key]
        elif kind == 1:
            changed[rng.choice(("extra", "", "text", "shard", "\ud800"))] = rng.choice(JSON_VALUES)
        else:
            changed[key] = json_value(rng, value[key])
        return changed
    if isinstance(value, list) and value and rng.random() < 0.6:
        at = rng.randrange(len(value))
        return [*value[:at], json_value(rng, value[at]), *value[at + 1 :]]
    return rng.choice(JSON_VALUES)


def json_bytes(rng: random.Random, data: bytes) -> bytes:
    kind = rng.randrange(10)
    if kind == 0:
        return rng.choice((b"[", b'{"a":', b'{"text":[')) * rng.choice((1, 900, 50_000))
    if kind <= 3:
        return raw(rng, data)
    try:
        value = json.loads(data)
    except ValueError:
        return raw(rng, data)
    for _ in range(rng.choice((1, 1, 2))):
        value = json_value(rng, value)
    return json.dumps(value).encode()


# ---- images


def png_chunks(rng: random.Random, data: bytes) -> bytes:
    """Chunks of a PNG changed, with lengths and checksums made right again."""
    chunks, at = [], 8
    while at + 12 <= len(data):
        length = int.from_bytes(data[at : at + 4], "big")
        chunks.append([data[at + 4 : at + 8], data[at + 8 : at + 8 + length]])
        at += 12 + length
    for _ in range(rng.choice((1, 1, 2))):
        place = rng.randrange(len(chunks))
        kind, body = chunks[place]
        what = rng.randrange(5)
        if what == 0:
            del chunks[place]
        elif what == 1:
            chunks.insert(rng.randrange(len(chunks) + 1), [kind, body])
        elif what == 2:
            chunks[place][0] = rng.choice(
                (b"tRNS", b"PLTE", b"acTL", b"fcTL", b"fdAT", b"eXIf", b"iCCP", b"zTXt", b"gAMA", b"IEND", b"sBIT")
            )
        elif kind == b"IHDR" and body:
            fields = list(struct.unpack(">IIBBBBB", body)) if len(body) == 13 else [1, 1, 8, 2, 0, 0, 0]
            fields[rng.randrange(7)] = rng.choice((0, 1, 2, 3, 4, 6, 8, 16, 255, 300))
            chunks[place][1] = struct.pack(">IIBBBBB", *fields[:2], *(f & 255 for f in fields[2:]))
        elif kind == b"IDAT" and rng.random() < 0.5:
            chunks[place][1] = zlib.compress(bytes(rng.randrange(2000)))
        else:
            chunks[place][1] = raw(rng, body)
        if not chunks:
            break
    parts = [struct.pack(">I", len(b)) + k + b + struct.pack(">I", zlib.crc32(k + b)) for k, b in chunks]
    return data[:8] + b"".join(parts)


def image(rng: random.Random, data: bytes) -> bytes:
    if data.startswith(b"\x89PNG") and rng.random() < 0.7:
        data = png_chunks(rng, data)
        return raw(rng, data) if rng.random() < 0.1 else data
    return raw(rng, data)
