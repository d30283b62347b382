"""What the `whole` stage has made of a split: keys and classes shard by shard, embeddings as arrays on disk.

Letters: N images that are asked for, T distinct texts of them, D embedding.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterator
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
    """image, text: of unit length, mapped from a file without a name. text_of: of each image, the row of its text."""

    image: Float[np.ndarray, "N D"]
    text: Float[np.ndarray, "T D"]
    text_of: Int[np.ndarray, " N"]


def images_of(config: Config, split: str, row: str) -> int:
    """How many images a split has."""
    return manifest.read(_folder(config, split, row)).total


def names_of(config: Config, split: str, row: str) -> Iterator[tuple[list[str], list[str]]]:
    """Shard by shard the keys of the images and their classes, as `evaluate.classes.field` says, "" where it does not.

    Raises: ShardError when a sidecar is not as committed.
    """
    folder = _folder(config, split, row)
    for shard in manifest.read(folder).shards:
        table = read_sidecar(folder, shard, WHOLE)
        yield table["key"].to_pylist(), table["class"].to_pylist()


def drawn(images: int, most: int) -> Int[np.ndarray, " N"]:
    """Which of so many images are measured, ascending: `most` at most, by their number alone, so the same for all models."""
    if images <= most:
        return np.arange(images)
    return np.sort(np.random.default_rng(0).choice(images, most, replace=False))


def drawn_warning(images: int, most: int, what: str, effect: str) -> list[str]:
    """What is said where not all were drawn. effect: on the figures."""
    if images <= most:
        return []
    return [
        f"of {images:,} {what} {most:,} were drawn, the same for all models; {effect} among fewer (evaluate.recall_images)"
    ]


def read_whole(config: Config, split: str, row: str, images: Int[np.ndarray, " N"]) -> Whole:
    """Of these images of a split, ascending and at least one. Shards without one of them are not read.

    Raises: ShardError when a sidecar is not as committed.
    """
    folder = _folder(config, split, row)
    index = manifest.read(folder)
    edges = np.concatenate([[0], np.cumsum(index.samples)])
    cuts = np.searchsorted(images, edges)
    image = text = np.zeros((0, 0), np.float32)
    number: dict[int, int] = {}
    text_of = np.zeros(len(images), np.int64)
    for shard, first, start, stop in zip(index.shards, edges, cuts, cuts[1:], strict=False):
        if start == stop:
            continue
        table = read_sidecar(folder, shard, WHOLE).take(images[start:stop] - first)
        pixels, said = (vectors(table, name) for name in ("image", "text"))
        if not start:
            image, text = (on_disk(len(images), pixels.shape[1]) for _ in range(2))
        image[start:stop] = pixels
        for n, words in enumerate(table["text_number"].to_pylist()):
            if words not in number:
                text[len(number)] = said[n]
            text_of[start + n] = number.setdefault(words, len(number))
    return Whole(image, text[: len(number)], text_of)


def _folder(config: Config, split: str, row: str) -> StageFolder:
    return StageFolder(claims.dataset(config, split), f"whole-{row}")


def vectors(table: pa.Table, name: str) -> Float[np.ndarray, "N D"]:
    """A column of vectors of one width."""
    column = table[name].combine_chunks()
    column = column.chunk(0) if isinstance(column, pa.ChunkedArray) else column
    return column.flatten().to_numpy().reshape(len(table), -1)


def on_disk(rows: int, width: int) -> np.ndarray:
    """Zeros in a temporary file that is gone with the array."""
    with tempfile.TemporaryFile() as file:
        return np.memmap(file, np.float32, "w+", shape=(rows, width))
