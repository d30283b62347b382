"""Handwritten digits, 28x28 grey, in three disjoint splits.

The default is scikit-learn's bundled set (1,797 digits of 8x8, upscaled), so that nothing is downloaded. MNIST's idx
files are read from `digits.mnist_dir`; without its test files the test digits are cut from the training files.
"""

from __future__ import annotations

import gzip
import math
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from shards.errors import VillaError

SPLIT_SEED = 23
SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class Digits:
    """images: N x 28 x 28 uint8; labels: N, 0 to 9."""

    images: np.ndarray
    labels: np.ndarray


def load(split: str, mnist_dir: str | None) -> Digits:
    """The digits of one split: 64 / 16 / 20 % of the set (80 / 20 % and MNIST's own test digits where present)."""
    if mnist_dir is None:
        return _take(_sklearn(), split)
    folder = Path(mnist_dir)
    train = _pair(folder, "train")
    if not _find(folder, "t10k-images-idx3-ubyte"):
        return _take(train, split)
    if split == "test":
        return _pair(folder, "t10k")
    return _take(train, split, bounds=(0.0, 0.8, 1.0, 1.0))


def _pair(folder: Path, name: str) -> Digits:
    """Images with their labels. Raises: VillaError when they do not belong together."""
    images = _idx(folder, f"{name}-images-idx3-ubyte", 3)
    labels = _idx(folder, f"{name}-labels-idx1-ubyte", 1)
    if images.shape[1:] != (28, 28):
        raise VillaError(f"{folder}/{name}-images-idx3-ubyte holds images of {images.shape[1:]}, expected 28x28")
    if len(labels) != len(images) or (len(labels) and labels.max() > 9):
        raise VillaError(
            f"{folder}/{name}-labels-idx1-ubyte holds {len(labels)} labels up to {labels.max(initial=0)} for {len(images)} "
            "images of digits 0 to 9; fetch both files again"
        )
    return Digits(images, labels)


def _take(all_digits: Digits, split: str, bounds: tuple[float, ...] = (0.0, 0.64, 0.80, 1.0)) -> Digits:
    order = np.random.default_rng(SPLIT_SEED).permutation(len(all_digits.labels))
    at = SPLITS.index(split)
    chosen = order[int(bounds[at] * len(order)) : int(bounds[at + 1] * len(order))]
    return Digits(all_digits.images[chosen], all_digits.labels[chosen])


def _sklearn() -> Digits:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    small = np.clip(bunch.images * (255.0 / 16.0), 0, 255).astype(np.uint8)
    inner = 20  # MNIST's digits, too, fill the 20x20 in the middle
    large = [np.asarray(Image.fromarray(d).resize((inner, inner), Image.Resampling.BICUBIC)) for d in small]
    margin = (28 - inner) // 2
    return Digits(np.pad(np.stack(large), ((0, 0), (margin, margin), (margin, margin))), bunch.target.astype(np.int64))


def _find(folder: Path, stem: str) -> Path | None:
    return next((p for p in (folder / stem, folder / f"{stem}.gz") if p.is_file()), None)


def _idx(folder: Path, stem: str, rank: int) -> np.ndarray:
    """An idx file (big-endian header: magic, sizes; then bytes). Raises: VillaError naming the file."""
    path = _find(folder, stem)
    if path is None:
        raise VillaError(
            f"digits.mnist_dir={str(folder)!r} holds no {stem} or {stem}.gz; point it at a folder with MNIST's idx "
            "files, or leave it out to use the bundled digits"
        )
    try:
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise VillaError(f"{path} is not readable: {error}; fetch it again") from error
    sizes = [int.from_bytes(raw[4 + 4 * i : 8 + 4 * i], "big") for i in range(rank)]
    if len(raw) < 4 + 4 * rank or raw[:4] != bytes([0, 0, 8, rank]) or len(raw) != 4 + 4 * rank + math.prod(sizes):
        raise VillaError(f"{path} is not a whole idx file of rank {rank} ({len(raw)} bytes); fetch it again")
    values = np.frombuffer(raw, np.uint8, offset=4 + 4 * rank).reshape(sizes)
    return values if rank == 3 else values.astype(np.int64)
