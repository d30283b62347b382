"""Random access to the samples of a dataset, joined with one of its sidecars row by row."""

from __future__ import annotations

import tempfile
import threading
from collections import OrderedDict
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Protocol

import numpy as np
import pyarrow as pa

from shards import manifest, sidecar
from shards.commit import StageFolder
from shards.decode import DecodeError, decode_image, image_member, sample_text
from shards.errors import ShardError, storage_errors
from shards.order import GlobalOrder
from shards.reader import BaseShard, embeddings_of, read_sidecar
from shards.sample import ALL, chosen

OPEN_SHARDS, OPEN_BYTES = 64, 8 << 30  # so many, and so many bytes of their embeddings, which are mapped files
NO_BOXES = np.zeros((0, 4), np.float32)


@dataclass(frozen=True)
class Row:
    """One image with what its sidecar says of it. Unused arrays are empty."""

    pixels: np.ndarray | None  # H x W x 3 uint8
    text: str
    boxes: np.ndarray  # R x 4
    region: np.ndarray  # P
    attribute: np.ndarray  # P, or A mentioned ids for `regions`
    embedding: np.ndarray | None  # R x D


class SidecarRows:
    """A pairs-like or regions-like sidecar with its list columns opened once."""

    def __init__(self, table: pa.Table) -> None:
        self.boxes, self.box_at = sidecar.list_column(table, "boxes")
        name = "attribute" if "attribute" in table.column_names else "attributes"
        self.attribute, self.attribute_at = sidecar.list_column(table, name)
        self.region = sidecar.list_column(table, "region")[0] if "region" in table.column_names else None

    def row(self, i: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(boxes R x 4, region P, attribute P) of image i; region is empty for a regions sidecar."""
        pairs = slice(self.attribute_at[i], self.attribute_at[i + 1])
        region = self.region[pairs] if self.region is not None else np.zeros(0, np.uint16)
        return self.boxes[self.box_at[i] : self.box_at[i + 1]], region, self.attribute[pairs]


class Order(Protocol):
    """Which sample stands at a position of an endless stream."""

    def locate(self, start: int, stop: int) -> np.ndarray:
        """Positions [start, stop) as rows (epoch, shard, row), int64."""
        ...


class OpenShard:
    """A base shard with its joined sidecar; the sidecar's keys are checked against the base when it is opened."""

    def __init__(self, dataset_url: str, shard: str, stage: str | None, embeddings: bool) -> None:
        self.base = BaseShard(StageFolder(dataset_url, "base"), shard)
        self.rows: SidecarRows | None = None
        self.embedding: np.ndarray | None = None
        if stage:
            folder = StageFolder(dataset_url, stage)
            table = read_sidecar(folder, shard, sidecar.REGIONS if stage == "regions" else sidecar.PAIRS)
            sidecar.check_aligned(table, self.base.keys, folder.store.path(shard))
            check_made_of(folder, shard, self.base)
            self.rows = SidecarRows(table)
        if embeddings:
            image_row, read = embeddings_of(read_sidecar(StageFolder(dataset_url, "embeddings"), shard, None))
            self.embedding = mapped(read)
            self.embedding_at = np.searchsorted(image_row, np.arange(len(self.base) + 1))


def mapped(array: np.ndarray) -> np.ndarray:
    """The same numbers in a temporary file that is gone with the array: memory that the system can take back."""
    if not array.size:
        return array
    with tempfile.TemporaryFile() as file, storage_errors("TMPDIR, where embeddings in use are mapped"):
        np.ascontiguousarray(array).tofile(file)
        file.flush()
        return np.memmap(file, array.dtype, "r", shape=array.shape)


@dataclass
class _Opening:
    """A shard that is open, or that one thread is opening."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    shard: OpenShard | None = None

    @property
    def bytes(self) -> int:
        """Of its embeddings."""
        return 0 if self.shard is None or self.shard.embedding is None else self.shard.embedding.nbytes


def check_made_of(folder: StageFolder, shard: str, base: BaseShard) -> None:
    """Raises: ShardError when a sidecar was made of another tar, which may have the very same keys."""
    made_of, is_ = folder.marker(shard).input_digest, base.marker.output(".tar").sha256
    if len(made_of) == len(is_) and made_of != is_:  # `truth` is made of no tar
        raise ShardError(
            f"sidecar {folder.store.path(shard)} was made of another tar than {base.place} (sha256 {made_of[:12]}…, now "
            f"{is_[:12]}…); redo the stage {folder.stage!r} with --force"
        )


class Samples:
    """Samples of `<dataset>/base` joined with `<dataset>/<stage>`, by (shard index, row).

    stage: a sidecar stage (`pairs`, `truth`, `regions`) or None. below: only shards whose rank lies below it
    (`shards.sample`). texts: read those of a sidecar's images too. Keeps the most recently used shards open.
    """

    def __init__(
        self,
        dataset_url: str,
        stage: str | None,
        *,
        images: bool,
        embeddings: bool = False,
        max_pixels: int,
        below: int = ALL,
        texts: bool = False,
    ) -> None:
        self.dataset_url, self.stage = dataset_url, stage
        self.images, self.embeddings, self.max_pixels = images, embeddings, max_pixels
        self.below = below
        self.texts = texts or stage is None
        self._open: OrderedDict[int, _Opening] = OrderedDict()
        self._lock = threading.Lock()
        self._keys = lru_cache(OPEN_SHARDS)(lambda shard: BaseShard(StageFolder(dataset_url, "base"), shard).keys)

    @cached_property
    def manifest(self) -> manifest.Manifest:
        """Of the base shards, less those that `below` leaves out."""
        base = manifest.read(StageFolder(self.dataset_url, "base"))
        return base if self.below == ALL else base.of({s for s in base.shards if chosen(s, self.below)})

    def order(self, seed: int, window: int) -> Order:
        return GlobalOrder(self.manifest.samples, seed, window)

    def shard(self, index: int) -> OpenShard:
        """Safe in threads: each shard is opened by one of them, while others open others."""
        with self._lock:
            opening = self._open.setdefault(index, _Opening())
            self._open.move_to_end(index)
        with opening.lock:
            if opening.shard is None:
                opening.shard = OpenShard(self.dataset_url, self.manifest.shards[index], self.stage, self.embeddings)
                self._close_oldest()
            return opening.shard

    def _close_oldest(self) -> None:
        """What a thread still reads of a closed shard stays with it until then."""
        with self._lock:
            held = sum(opening.bytes for opening in self._open.values())
            while len(self._open) > OPEN_SHARDS or (held > OPEN_BYTES and len(self._open) > 1):
                held -= self._open.popitem(last=False)[1].bytes

    def key(self, index: int, row: int) -> str:
        """The key of a sample, by the base shard alone. Safe beside the thread that loads."""
        return self._keys(self.manifest.shards[index])[row]

    def row(self, index: int, row: int) -> Row:
        shard = self.shard(index)
        boxes, region, attribute = shard.rows.row(row) if shard.rows else (NO_BOXES, np.zeros(0), np.zeros(0))
        embedding = None
        if shard.embedding is not None:
            embedding = shard.embedding[shard.embedding_at[row] : shard.embedding_at[row + 1]]
        if not self.images:
            return Row(None, "", boxes, region, attribute, embedding)
        members = shard.base.sample(row)
        try:
            pixels = decode_image(image_member(members), self.max_pixels)
            text = sample_text(members) if self.texts else ""
        except DecodeError as error:
            raise ShardError(
                f"shard {shard.base.place}: sample {shard.base.keys[row]!r} cannot be used: {error}; restore the shard, or "
                "redo the ingest stage with --force, which leaves such samples out"
            ) from error
        return Row(pixels, text, boxes, region, attribute, embedding)
