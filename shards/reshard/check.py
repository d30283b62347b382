"""That a tar is what its index says: its headers before they are copied, the whole after it is written.

Letters: N samples, M members.
"""

from __future__ import annotations

import mmap
import os
from typing import BinaryIO

import numpy as np
import pyarrow.compute as pc
from jaxtyping import Int

from shards.errors import ShardError
from shards.index import ShardIndex, flat
from shards.tar import BLOCK, END, Scan, tar_samples
from shards.tar_headers import names_of, plain_headers, rows_at

TOGETHER = 1024  # headers looked at together
LOOKS = 32  # headers of a written tar that are read back


def all_plain(view: memoryview, index: ShardIndex) -> bool:
    """Whether each of these samples is a row of members with plain headers, of the names and sizes that the index has, and
    nothing between them; `view` is the tar."""
    at_M, size_M, count_N = index.flat_members()
    if not len(at_M):
        return True
    last_N = np.cumsum(count_N) - 1
    first_N = last_N - count_N + 1
    after_M = at_M + (size_M + BLOCK - 1) // BLOCK * BLOCK  # where the next header is, or the next sample
    next_M = np.append(at_M[1:] - BLOCK, 0)
    next_M[last_N] = index.offsets + index.lengths
    if (at_M % BLOCK).any() or not np.array_equal(after_M, next_M) or (at_M[first_N] - BLOCK != index.offsets).any():
        return False
    names: list[bytes] = []
    for low in range(0, len(at_M), TOGETHER):
        headers = rows_at(view, at_M[low : low + TOGETHER] - BLOCK)
        if not plain_headers(headers, size_M[low : low + TOGETHER]).all():
            return False
        names += names_of(headers)
    return b"\n".join(names).lower() == "\n".join(_names(index, count_N)).encode().lower()


def _names(index: ShardIndex, count_N: Int[np.ndarray, " N"]) -> list[str]:
    keys = index.table["key"].combine_chunks().take(np.repeat(np.arange(len(index)), count_N))
    return pc.binary_join_element_wise(keys, flat(index.table["suffixes"]), ".").to_pylist()  # type: ignore[no-any-return]


def check_written(path: str, index: ShardIndex, *, plain: bool) -> None:
    """Hold a new tar against its index: samples end to end, nothing between or behind, and every header as it should be.

    plain: all headers were found plain where they were copied from; then a few are read back from the disk, else every one.
    Raises: ShardError naming the first sample that is not as it should be.
    """
    with open(path, "rb") as file:
        if not plain or not _holds(file, index):
            _check_by_walk(file, index, path)


def _holds(file: BinaryIO, index: ShardIndex) -> bool:
    handle, ends = file.fileno(), index.offsets + index.lengths
    size = os.fstat(handle).st_size
    if not np.array_equal(index.offsets, np.append(0, ends)[:-1]) or size != (ends[-1] if len(ends) else 0) + len(END):
        return False
    if os.pread(handle, len(END), size - len(END)) != END:
        return False
    firsts = np.append(0, np.cumsum(pc.list_value_length(index.table["suffixes"]).to_numpy()))
    sizes, suffixes = flat(index.table["member_sizes"]).to_numpy(), flat(index.table["suffixes"])
    for row in np.unique(np.linspace(0, len(index) - 1, LOOKS).astype(int)).tolist() if len(index) else ():
        at, member = int(index.offsets[row]), int(firsts[row])
        header = np.frombuffer(os.pread(handle, BLOCK, at), np.uint8).reshape(1, BLOCK)
        name = f"{index.keys[row]}.{suffixes[member].as_py()}".encode()
        if not plain_headers(header, sizes[member : member + 1]).all() or names_of(header)[0].lower() != name.lower():
            return False
    return True


def _check_by_walk(file: BinaryIO, index: ShardIndex, path: str) -> None:
    with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as whole, memoryview(whole) as view:
        scan = Scan()
        found = ShardIndex.of(list(tar_samples(view, file, scan)))
    wrong = scan.problem or ("" if len(found) == len(index) else f"{len(found)} samples, {len(index)} in its index")
    for row in range(len(index) if not wrong else 0):
        if found.keys[row] != index.keys[row] or found.members(row) != index.members(row):
            wrong = (
                f"sample {row} is {found.keys[row]!r}, {index.keys[row]!r} in its index, or its members lie elsewhere"
            )
            break
    if wrong:
        raise ShardError(
            f"{path} is not what the sources' indexes say ({wrong}): a header in a source is damaged. Nothing was "
            "committed; find it by `villa shards verify` and restore it"
        )
