"""What the `whole` stage has made of a split, as arrays on disk: memory does not grow with the images.

Letters: N images, T distinct texts, D embedding.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from jaxtyping import Float, Int

from shards import manifest
from shards.commit import StageFolder
from shards.reader import read_sidecar
from villa_dist import claims
from villa_dist.config import Config

WHOLE = pa.schema([("key", pa.string()), ("class", pa.string()), ("text_number", pa.int64())])


def text_number(text: str) -> int:
    """Of what a text says, its surrounding space left out: equal texts have equal numbers."""
    return int.from_bytes(hashlib.blake2b(text.strip().encode(), digest_size=8).digest(), "big", signed=True)


@dataclass(frozen=True)
class Whole:
    """image, text: of unit length, mapped from a file without a name. text_of: of each image, the row of its text. classes:
    as `evaluate.classes.field` says, "" where it does not."""

    image: Float[np.ndarray, "N D"]
    text: Float[np.ndarray, "T D"]
    text_of: Int[np.ndarray, " N"]
    keys: list[str]
    classes: list[str]


def read_whole(config: Config, split: str, row: str) -> Whole:
    """Raises: ShardError when a sidecar is not as committed."""
    folder = StageFolder(claims.dataset(config, split), f"whole-{row}")
    index = manifest.read(folder)
    images: np.ndarray | None = None
    texts: np.ndarray | None = None
    number: dict[int, int] = {}
    text_of = np.zeros(index.total, np.int64)
    keys: list[str] = []
    classes: list[str] = []
    for table in _tables(folder, index.shards):
        start, stop = len(keys), len(keys) + len(table)
        image, text = (vectors(table, name) for name in ("image", "text"))
        if images is None or texts is None:
            images, texts = (on_disk(index.total, image.shape[1]) for _ in range(2))
        images[start:stop] = image
        for n, said in enumerate(table["text_number"].to_pylist()):
            if said not in number:
                texts[len(number)] = text[n]
            text_of[start + n] = number.setdefault(said, len(number))
        keys += table["key"].to_pylist()
        classes += table["class"].to_pylist()
    assert images is not None and texts is not None, "ingest leaves no split without a sample"
    return Whole(images, texts[: len(number)], text_of, keys, classes)


def _tables(folder: StageFolder, shards: Sequence[str]) -> Iterator[pa.Table]:
    return (read_sidecar(folder, shard, WHOLE) for shard in shards)


def vectors(table: pa.Table, name: str) -> Float[np.ndarray, "N D"]:
    """A column of vectors of one width."""
    column = table[name].combine_chunks()
    column = column.chunk(0) if isinstance(column, pa.ChunkedArray) else column
    return column.flatten().to_numpy().reshape(len(table), -1)


def on_disk(rows: int, width: int) -> np.ndarray:
    """Zeros in a temporary file that is gone with the array."""
    with tempfile.TemporaryFile() as file:
        return np.memmap(file, np.float32, "w+", shape=(rows, width))
