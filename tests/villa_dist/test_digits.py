"""Digits: three splits that share no digit, and damaged MNIST files that are named."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest

from shards.errors import VillaError
from villa_dist.docmnist import digits
from villa_dist.docmnist.digits import SPLITS, Digits, load

SHARED_DATA = Path(__file__).resolve().parents[2].parent / "shared" / "data"
MNIST = SHARED_DATA / "mnist"
IMAGES, LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"


def idx(array: np.ndarray) -> bytes:
    return (
        bytes([0, 0, 8, array.ndim])
        + b"".join(int(n).to_bytes(4, "big") for n in array.shape)
        + array.astype(np.uint8).tobytes()
    )


def write(folder: Path, count: int = 50, stem: str = "train") -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(count)
    images, labels = random.integers(0, 256, (count, 28, 28), np.uint8), random.integers(0, 10, count)
    (folder / f"{stem}-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(images)))
    (folder / f"{stem}-labels-idx1-ubyte").write_bytes(idx(labels))
    return images, labels


def check_disjoint(splits: dict[str, Digits], total: int, shares: tuple[float, ...]) -> None:
    seen = {name: {d.tobytes() for d in split.images} for name, split in splits.items()}
    for a, b in (("train", "validation"), ("train", "test"), ("validation", "test")):
        assert not seen[a] & seen[b]
    for (name, split), share in zip(splits.items(), shares, strict=True):
        assert len(split.images) == len(split.labels) == pytest.approx(share * total, abs=1), name
        assert split.images.dtype == np.uint8
        assert split.images.shape[1:] == (28, 28)
        assert set(split.labels.tolist()) == set(range(10))
    assert sum(len(s.labels) for s in splits.values()) == total


def test_splits_of_the_bundled_digits_are_disjoint() -> None:
    splits = {name: load(name, None) for name in SPLITS}
    check_disjoint(splits, 1797, (0.64, 0.16, 0.20))
    assert all((s.images.reshape(len(s.images), -1) >= 120).sum(1).min() > 10 for s in splits.values()), (
        "every digit has ink"
    )


def test_splits_are_the_same_in_every_process() -> None:
    first, second = load("train", None), load("train", None)
    assert np.array_equal(first.images, second.images)
    assert first.labels[:12].tolist() == second.labels[:12].tolist()


def test_splits_take_each_digit_once() -> None:
    whole = Digits(np.arange(100, dtype=np.int64)[:, None, None], np.arange(100))
    taken = [digits._take(whole, split).labels.tolist() for split in SPLITS]
    assert [len(t) for t in taken] == [64, 16, 20]
    assert sorted(i for t in taken for i in t) == list(range(100))


@pytest.mark.skipif(not MNIST.is_dir(), reason=f"no {MNIST}")
def test_splits_of_mnist_are_disjoint() -> None:
    check_disjoint({name: load(name, str(MNIST)) for name in SPLITS}, 60_000, (0.64, 0.16, 0.20))


def test_mnists_own_test_digits_are_used_where_they_are(tmp_path: Path) -> None:
    train, _ = write(tmp_path)
    without = {name: load(name, str(tmp_path)) for name in SPLITS}
    assert [len(without[n].labels) for n in SPLITS] == [32, 8, 10]
    images, labels = write(tmp_path, 21, "t10k")
    test = load("test", str(tmp_path))
    assert np.array_equal(test.images, images)
    assert np.array_equal(test.labels, labels)
    parts = [load(name, str(tmp_path)).images for name in ("train", "validation")]
    assert [len(p) for p in parts] == [40, 10]
    assert {d.tobytes() for p in parts for d in p} == {d.tobytes() for d in train}


def test_a_folder_without_mnist_is_named(tmp_path: Path) -> None:
    with pytest.raises(VillaError, match=rf"{tmp_path}.* holds no {IMAGES}"):
        load("train", str(tmp_path))


DAMAGE = {
    "empty": lambda raw: b"",
    "cut in the magic": lambda raw: raw[:3],
    "cut in the sizes": lambda raw: raw[:9],
    "cut in the content": lambda raw: raw[:-1],
    "one byte more": lambda raw: raw + b"\0",
    "another magic": lambda raw: b"\0\0\x0d" + raw[3:],
    "another rank": lambda raw: raw[:3] + b"\2" + raw[4:],
    "sizes too large": lambda raw: raw[:4] + b"\xff" * 8 + raw[12:],
}


@pytest.mark.parametrize("packed", [True, False], ids=["gz", "plain"])
@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("stem", [IMAGES, LABELS])
def test_a_damaged_idx_file_is_named(stem: str, damage: str, packed: bool, tmp_path: Path) -> None:
    images, labels = write(tmp_path)
    raw = DAMAGE[damage](idx(images if stem == IMAGES else labels))
    for path in tmp_path.glob(f"{stem}*"):
        path.unlink()
    path = tmp_path / (f"{stem}.gz" if packed else stem)
    path.write_bytes(gzip.compress(raw) if packed else raw)
    with pytest.raises(VillaError, match=str(path)):
        load("train", str(tmp_path))


def test_a_damaged_gz_file_is_named(tmp_path: Path) -> None:
    write(tmp_path)
    path = tmp_path / f"{IMAGES}.gz"
    whole = path.read_bytes()
    for damaged in (
        b"",
        whole[:5],
        whole[: len(whole) // 2],
        b"no gzip at all",
        whole[:-4] + b"\0\0\0\0",
        whole[:10] + b"\xff" * 50 + whole[60:],
    ):
        path.write_bytes(damaged)
        with pytest.raises(VillaError, match=str(path)):
            load("train", str(tmp_path))


def test_images_and_labels_that_do_not_fit_are_named(tmp_path: Path) -> None:
    images, labels = write(tmp_path)
    for other in (labels[:-1], np.append(labels, 3)):
        (tmp_path / LABELS).write_bytes(idx(other))
        with pytest.raises(VillaError, match=LABELS):
            load("train", str(tmp_path))
    (tmp_path / LABELS).write_bytes(idx(np.full(50, 10)))
    with pytest.raises(VillaError, match=LABELS):
        load("train", str(tmp_path))
    (tmp_path / LABELS).write_bytes(idx(labels))
    (tmp_path / f"{IMAGES}.gz").write_bytes(gzip.compress(idx(images[:, :20, :20])))
    with pytest.raises(VillaError, match=IMAGES):
        load("train", str(tmp_path))
