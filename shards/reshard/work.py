"""What the passes after the scan share: the work folder, the rows of a source that are kept, and a source's bytes."""

from __future__ import annotations

import mmap
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
import pyarrow as pa
from jaxtyping import Int

from shards import sidecar
from shards.commit import StageFolder
from shards.errors import ShardError
from shards.index import ShardIndex
from shards.reader import BaseShard
from shards.reshard.options import WORK, ReshardOptions
from shards.reshard.scan import KEPT
from shards.reshard.sources import Sources
from shards.reshard.units import Scans, Units
from shards.store import Store

DUPLICATES = "duplicates.bits"


@dataclass(frozen=True)
class Rows:
    """The kept samples of one source: `row` in its index, `length` in bytes, `gapped` where members are not adjacent."""

    row: Int[np.ndarray, " K"]
    length: Int[np.ndarray, " K"]
    gapped: np.ndarray


class Workplace:
    """`<DST>/.work` of one reshard, as a worker or the driver reads it."""

    def __init__(self, options: ReshardOptions) -> None:
        self.options = options
        self.store = Store(f"{options.dst}/{WORK}")
        self.sources = Sources.from_bytes(self.store.read("sources.parquet"), self.store.path("sources.parquet"))
        self.scans = Scans(StageFolder(self.store.url, "scan"), Units(self.sources.size))
        self._starts: np.ndarray | None = None
        self._base: tuple[int, BaseShard] | None = None  # the last one, whose index is asked for before its bytes

    def index(self, at: int) -> ShardIndex:
        made = self.scans.made(at)
        return self._shard(at).index if made is None else made

    def _shard(self, at: int) -> BaseShard:
        if self._base is None or self._base[0] != at:
            self._base = at, self.sources.base(at)
        return self._base[1]

    def kept(self, at: int) -> Rows:
        table = self.scans.rows(at)
        kept = table["dropped"].to_numpy() == KEPT
        if self.options.dedupe:
            kept = kept & ~self._duplicates(at, len(kept))
        row = np.flatnonzero(kept)
        return Rows(row, table["length"].to_numpy()[row], table["gapped"].to_numpy(zero_copy_only=False)[row])

    def _duplicates(self, at: int, rows: int) -> np.ndarray:
        if self._starts is None:
            self._starts = np.frombuffer(self.store.read(f"{DUPLICATES}.starts"), "<i8")
        first = int(self._starts[at])
        data = self.store.read_range(DUPLICATES, first, (rows + 7) // 8)
        return np.unpackbits(np.frombuffer(data, np.uint8), count=rows).astype(bool)

    def sidecar(self, at: int, stage: str, keys: list[str]) -> pa.Table:
        table = self.sources.rows(at, stage)
        sidecar.check_aligned(table, keys, f"{self.sources.dataset}/{stage}/{self.sources.name[at]}.parquet")
        return table

    @contextmanager
    def open(self, at: int) -> Iterator[Bytes]:
        """The bytes of a source tar, as they were when it was listed."""
        name = self.sources.name[at]
        if self.sources.dataset:
            name = self._shard(at).tar
        with mapped(Store(self.sources.url[at]), name) as found:
            self.sources.check_size(at, len(found.view))
            yield found


@dataclass(frozen=True)
class Bytes:
    """A file's bytes, mapped: `view` and the open `file` behind it."""

    view: memoryview
    file: BinaryIO


@contextmanager
def mapped(store: Store, name: str) -> Iterator[Bytes]:
    """A file as a memory map; from an object store, of a temporary copy that is gone afterwards."""
    try:
        file = store.open(name)
    except FileNotFoundError:
        raise ShardError(
            f"{store.shown(name)} was listed and is gone; restore it and run the same command again"
        ) from None
    with file:
        yield from _map(file)


@contextmanager
def part_of(store: Store, name: str, low: int, high: int) -> Iterator[tuple[Bytes, int]]:
    """Bytes [low, high) of a file, and the offset at which what is mapped begins: one range read from an object store."""
    if store.local:
        with mapped(store, name) as found:
            yield found, 0
        return
    with tempfile.TemporaryFile(prefix="villa-reshard-") as copy:
        for at in range(low, high, 8 << 20):
            copy.write(store.read_range(name, at, min(8 << 20, high - at)))
        copy.flush()
        for found in _map(copy):  # type: ignore[arg-type]
            yield found, low


def _map(file: BinaryIO) -> Iterator[Bytes]:
    file.seek(0, 2)
    if file.tell() == 0:
        yield Bytes(memoryview(b""), file)
        return
    with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as whole:
        view = memoryview(whole)
        try:
            yield Bytes(view, file)
        finally:
            view.release()
