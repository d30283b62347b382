"""Reading shards: foreign tars sample by sample, and committed base shards by index."""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa

from shards import sidecar
from shards.commit import Output, StageFolder
from shards.errors import ShardError
from shards.index import ShardIndex
from shards.store import Store
from shards.tar import Sample, Scan, group, walk


def scan_tar(store: Store, name: str, scan: Scan) -> Iterator[tuple[Sample, dict[str, bytes]]]:
    """Samples of any WebDataset tar with their members' bytes. What was refused or damaged is left in `scan`."""
    if not store.local:
        raise ShardError(f"{store.path(name)}: reading foreign tars from an object store is not supported here")
    path = Path(store.path(name))
    if not path.is_file():
        raise ShardError(
            f"{path} was listed and is gone; restore it, or take it out of the source and repeat with --force"
        )
    if path.stat().st_size == 0:
        scan.problem = "empty file, no tar header"
        return
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        view = memoryview(mapped)
        try:
            for sample in group(walk(view, file, scan), scan):
                yield (
                    sample,
                    {
                        s: bytes(view[m.offset : m.offset + m.size])
                        for s, m in zip(sample.suffixes, sample.members, strict=True)
                    },
                )
        finally:
            view.release()


class BaseShard:
    """Random access to one committed base shard: its index in memory, its samples by range reads."""

    def __init__(self, stage: StageFolder, shard: str) -> None:
        marker = stage.marker(shard)
        self.shard, self.marker, self.store = shard, marker, stage.store
        tar, idx = marker.output(".tar"), marker.output(".idx")
        self.tar = stage.locate(tar)
        self.place = self.store.path(self.tar)
        try:
            size = self.store.size(self.tar)
        except FileNotFoundError as error:
            raise ShardError(
                f"shard {self.place} is missing although its marker stands; restore the file, or redo the ingest "
                "stage with --force"
            ) from error
        if size != tar.bytes:
            raise ShardError(
                f"shard {self.place} has {size} bytes, its marker says {tar.bytes}: it was cut or changed after it was "
                "committed; restore the file, or redo the ingest stage with --force"
            )
        name, data = read_committed(stage, idx)
        self.index = ShardIndex.from_bytes(data, name)

    def __len__(self) -> int:
        return len(self.index)

    @property
    def keys(self) -> list[str]:
        return self.index.keys

    def sample(self, row: int) -> dict[str, bytes]:
        """Suffix -> bytes of the sample in tar row `row`, by one range read."""
        start, length = int(self.index.offsets[row]), int(self.index.lengths[row])
        data = self.store.read_range(self.tar, start, length)
        if len(data) != length:
            raise ShardError(f"shard {self.place}: sample {row} was cut while it was read; restore the file")
        return {suffix: data[at - start : at - start + size] for suffix, at, size in self.index.members(row)}

    def samples(self) -> Iterator[tuple[str, dict[str, bytes]]]:
        """All samples in tar order, from one sequential read of the tar.

        Raises: ShardError when the content no longer has the digest its marker recorded.
        """
        data = self.store.read(self.tar)
        if not self.marker.output(".tar").is_content(data):
            raise ShardError(
                f"shard {self.place} no longer has the content its marker recorded; restore the file, or redo the "
                "ingest stage with --force"
            )
        for row, key in enumerate(self.keys):
            yield key, {suffix: data[at : at + size] for suffix, at, size in self.index.members(row)}


def read_sidecar(stage: StageFolder, shard: str, schema: pa.Schema) -> pa.Table:
    """A committed sidecar's table. Raises: ShardError when it is not committed, not readable or changed."""
    if not stage.store.exists(f"{shard}.done.json"):
        raise ShardError(f"stage {stage.stage!r} has not committed shard {shard} in {stage.store.path()}; run it first")
    place, data = read_committed(stage, stage.marker(shard).output(".parquet"))
    return sidecar.from_bytes(data, place, schema)


def read_committed(stage: StageFolder, output: Output) -> tuple[str, bytes]:
    """(path, content) of a committed file, read whole. Raises: ShardError when it is not what its marker recorded."""
    name = stage.locate(output)
    data, place = stage.store.read(name), stage.store.path(name)
    if not output.is_content(data):
        raise ShardError(
            f"{place} no longer has the content its marker recorded ({len(data)} bytes, {output.bytes} expected); restore "
            "the file, or redo the stage with --force"
        )
    return place, data


def embeddings_of(table: pa.Table) -> tuple[np.ndarray, np.ndarray]:
    """(row R, embedding R x D float16) of an embeddings sidecar."""
    column = table["embedding"].combine_chunks()
    if isinstance(column, pa.ChunkedArray):
        column = column.chunk(0)
    flat = column.flatten().to_numpy(zero_copy_only=False)
    return table["row"].to_numpy(), flat.reshape(len(table), column.type.list_size)
