"""Reading shards: foreign tars sample by sample, and committed base shards by index."""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator, Sequence
from typing import BinaryIO

import numpy as np
import pyarrow as pa

from shards import sidecar
from shards.commit import Output, StageFolder
from shards.errors import ShardError
from shards.index import ShardIndex
from shards.ranges import Range
from shards.store import Store
from shards.tar import Sample, Scan, tar_samples


def scan_tar(store: Store, name: str, scan: Scan) -> Iterator[tuple[Sample, dict[str, bytes]]]:
    """Samples of any WebDataset tar with their members' bytes. What was refused or damaged is left in `scan`.

    From an object store the tar is fetched into a temporary file, which is gone when the generator ends or is left.
    """
    for sample, members in view_tar(store, name, scan):
        yield sample, {suffix: bytes(data) for suffix, data in members.items()}


def view_tar(store: Store, name: str, scan: Scan) -> Iterator[tuple[Sample, dict[str, memoryview]]]:
    """The same without a copy: the members' bytes where they lie in the mapped tar, which stays mapped while one is held."""
    try:
        file = store.open(name)
    except (FileNotFoundError, IsADirectoryError):
        raise ShardError(
            f"{store.shown(name)} was listed and is gone; restore it, or take it out of the source and repeat with --force"
        ) from None
    with file:
        if os.fstat(file.fileno()).st_size == 0:
            scan.problem = "empty file, no tar header"
            return
        view = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        for sample in tar_samples(view, file, scan):
            _, members, suffixes = sample
            yield sample, {s: view[at : at + n] for s, (_, _, at, n) in zip(suffixes, members, strict=True)}


class BaseShard:
    """Random access to one committed base shard: its index in memory, its samples by range reads."""

    def __init__(self, stage: StageFolder, shard: str) -> None:
        marker = stage.marker(shard)
        self.shard, self.marker, self.store = shard, marker, stage.store
        tar, idx = marker.output(".tar"), marker.output(".idx")
        self.tar, size = stage.find(tar)
        self.place = self.store.path(self.tar)
        if size is None:
            raise ShardError(
                f"shard {self.place} is missing although its marker stands; restore the file, or redo the ingest "
                "stage with --force"
            )
        if size != tar.bytes:
            raise ShardError(
                f"shard {self.place} has {size} bytes, its marker says {tar.bytes}: it was cut or changed after it was "
                "committed; restore the file, or redo the ingest stage with --force"
            )
        name, data = read_committed(stage, idx)
        self.index = ShardIndex.from_bytes(data, name)
        self._fetched: BinaryIO | None = None

    def __len__(self) -> int:
        return len(self.index)

    @property
    def keys(self) -> list[str]:
        return self.index.keys

    def sample(self, row: int) -> dict[str, bytes]:
        """Suffix -> bytes of the sample in tar row `row`, by one range read."""
        return self.batch([row])[0]

    def batch(self, rows: Sequence[int]) -> list[dict[str, bytes]]:
        """The samples of tar rows `rows`, in that order; neighbours in the tar come by one range read."""
        spans = [(int(self.index.offsets[row]), int(self.index.lengths[row])) for row in rows]
        found = []
        for row, (start, length), data in zip(rows, spans, self._ranges(spans), strict=True):
            if len(data) != length:
                raise ShardError(f"shard {self.place}: sample {row} was cut while it was read; restore the file")
            found.append({s: bytes(data[at - start : at - start + size]) for s, at, size in self.index.members(row)})
        return found

    def _ranges(self, spans: Sequence[Range]) -> Sequence[memoryview]:
        try:
            return self.store.read_ranges(self.tar, spans)
        except FileNotFoundError:
            self.tar = self.marker.output(".tar").file  # the attempt was moved since
            return self.store.read_ranges(self.tar, spans)

    def fetch(self) -> None:
        """Do now what `samples` begins with: get the tar and check its content."""
        self._fetched = self._checked()

    def _checked(self) -> BinaryIO:
        output = self.marker.output(".tar")
        try:
            file = self.store.open(self.tar, output.bytes)
        except FileNotFoundError:
            file = self.store.open(output.file, output.bytes)  # the attempt was moved since
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped, memoryview(mapped) as data:
            if output.is_content(data):
                return file
        file.close()
        raise ShardError(
            f"shard {self.place} no longer has the content its marker recorded; restore the file, or redo the ingest "
            "stage with --force"
        )

    def samples(self) -> Iterator[tuple[str, dict[str, bytes]]]:
        """All samples in tar order, from one sequential read of the tar into memory-mapped storage.

        Raises: ShardError, before the first sample, when the content no longer has the digest its marker recorded.
        """
        file, self._fetched = self._fetched or self._checked(), None
        with file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped, memoryview(mapped) as data:
            for row, key in enumerate(self.keys):
                yield key, {suffix: bytes(data[at : at + size]) for suffix, at, size in self.index.members(row)}


def read_sidecar(stage: StageFolder, shard: str, schema: pa.Schema) -> pa.Table:
    """A committed sidecar's table. Raises: ShardError when it is not committed, not readable or changed."""
    marker = stage.find_marker(shard)
    if marker is None:
        raise ShardError(f"stage {stage.stage!r} has not committed shard {shard} in {stage.store.path()}; run it first")
    place, data = read_committed(stage, marker.output(".parquet"))
    return sidecar.from_bytes(data, place, schema)


def read_committed(stage: StageFolder, output: Output) -> tuple[str, bytes]:
    """(path, content) of a committed file, read whole. Raises: ShardError when it is not what its marker recorded."""
    data = stage.store.find(output.file)
    if data is not None and output.is_content(data):
        return stage.store.path(output.file), data
    waiting = stage.store.find(output.attempt)  # committed and not yet moved, over what an earlier commit left
    if waiting is not None and output.is_content(waiting):
        return stage.store.path(output.attempt), waiting
    place = stage.store.path(output.file)
    if data is None:
        data = stage.store.find(output.file)  # moved between the two looks
        if data is None:
            raise ShardError(f"{place} does not exist although its marker stands; redo the stage with --force")
        if output.is_content(data):
            return place, data
    raise ShardError(
        f"{place} no longer has the content its marker recorded ({len(data)} bytes, {output.bytes} expected); restore "
        "the file, or redo the stage with --force"
    )


def embeddings_of(table: pa.Table) -> tuple[np.ndarray, np.ndarray]:
    """(row R, embedding R x D float16) of an embeddings sidecar."""
    column = table["embedding"].combine_chunks()
    if isinstance(column, pa.ChunkedArray):
        column = column.chunk(0)
    flat = column.flatten().to_numpy(zero_copy_only=False)
    return table["row"].to_numpy(), flat.reshape(len(table), column.type.list_size)
