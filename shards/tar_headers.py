"""Many tar headers at once: the plain ones, which are nearly all there are. What is not plain is left to the caller.

A header is plain when it is of a regular file, with a name within 100 bytes, a size of eleven octal digits and a checksum
of six that is right. Letters: H headers.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Int, UInt8

BLOCK = 512
NAME, SIZE, CHECKSUM, MAGIC = slice(0, 100), slice(124, 136), slice(148, 156), slice(257, 262)
KIND, PREFIX = 156, 345
_USTAR = np.frombuffer(b"ustar", np.uint8)
_OCTAL = 8 ** np.arange(10, -1, -1, dtype=np.int64)


def plain_run(data: memoryview, at: int, most: int) -> tuple[list[int], list[int], list[bytes]]:
    """(place, size, name) of up to `most` members from the header at byte `at` on, each with a plain header and lying whole
    in `data`; as many as follow each other."""
    starts: list[int] = []
    sizes: list[int] = []
    total = len(data)
    while len(starts) < most and at + BLOCK <= total:
        digits = bytes(data[at + 124 : at + 135])
        if not digits.isdigit() or b"8" in digits or b"9" in digits:
            break
        size = int(digits, 8)
        after = at + BLOCK + (size + BLOCK - 1) // BLOCK * BLOCK
        if at + BLOCK + size > total:
            break
        starts.append(at)
        sizes.append(size)
        at = after
    if not starts:
        return [], [], []
    headers = rows_at(data, np.array(starts))
    plain = plain_headers(headers, np.array(sizes))
    count = len(starts) if plain.all() else int(plain.argmin())
    return starts[:count], sizes[:count], names_of(headers[:count])


def rows_at(data: memoryview, at: Int[np.ndarray, " H"]) -> UInt8[np.ndarray, "H 512"]:
    """The blocks at bytes `at`, which are multiples of 512 inside `data`."""
    blocks = np.frombuffer(data, np.uint8, len(data) // BLOCK * BLOCK).reshape(-1, BLOCK)
    return np.asarray(blocks[at // BLOCK])


def plain_headers(headers: UInt8[np.ndarray, "H 512"], sizes: Int[np.ndarray, " H"]) -> Bool[np.ndarray, " H"]:
    """Which headers are plain and of a member of the size given."""
    kind, after = headers[:, KIND], headers[:, [SIZE.stop - 1, CHECKSUM.start + 6]]
    field = headers[:, SIZE][:, :11].astype(np.int64) - ord("0")
    told = headers[:, CHECKSUM][:, :6].astype(np.int64) - ord("0")
    digits = (
        ((field >= 0) & (field < 8)).all(1) & ((told >= 0) & (told < 8)).all(1) & ((after == 0) | (after == 32)).all(1)
    )
    found = headers.sum(1, dtype=np.int64) - headers[:, CHECKSUM].sum(1, dtype=np.int64) + 8 * ord(" ")
    known = (headers[:, MAGIC] == _USTAR).all(1) & ((kind == ord("0")) | (kind == 0)) & (headers[:, PREFIX] == 0)
    return np.asarray(digits & known & (told @ _OCTAL[-6:] == found) & (field @ _OCTAL == sizes))


def names_of(headers: UInt8[np.ndarray, "H 512"]) -> list[bytes]:
    """The names up to their first NUL."""
    names = np.ascontiguousarray(headers[:, NAME]).view("S100").reshape(-1).tolist()
    return [n.split(b"\0", 1)[0] if b"\0" in n else n for n in names]
