"""What is known of a split's images: true boxes from a COCO or LVIS file or from the samples, and proposals, as sidecars.

    truth file -> <run>/detection/truth-<digest>.parquet, or samples' .json -> `boxes` sidecars -> `split_truth`

Workers see the parquet, never the file, which may be on the driver's disk alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa

from shards import sidecar
from shards.digest import sha256
from shards.store import Store
from villa_dist.evaluate.classes import Classes
from villa_dist.evaluate.detection import Truth
from villa_dist.evaluate.detection_files import read_truth
from villa_dist.evaluate.errors import EvaluationError

TRUE_BOX = pa.list_(pa.float64(), 4)
TRUTH = pa.schema(
    [
        ("image", pa.int64()),
        ("boxes", pa.list_(TRUE_BOX)),  # x, y, width, height
        ("names", pa.list_(pa.string())),
        ("crowd", pa.list_(pa.bool_())),
    ]
)
KNOWN = pa.schema(
    [
        ("key", pa.string()),
        ("image", pa.int64()),  # its id in the truth, or NONE; with the samples' own boxes any other number
        ("true_box", pa.list_(TRUE_BOX)),  # x, y, width, height
        ("true_name", pa.list_(pa.string())),
        ("true_crowd", pa.list_(pa.bool_())),
        ("proposal", pa.list_(sidecar.BOX)),
        ("proposal_score", pa.list_(pa.float32())),
    ]
)
NONE = -1  # no truth
FOLDER = "detection"


@dataclass(frozen=True)
class TruthFile:
    """A truth as read, and the digest of its file."""

    place: str
    truth: Truth
    digest: str


def read_file(path: str) -> TruthFile:
    """Raises: EvaluationError, see `read_truth`; for an image id below 0."""
    try:
        digest = sha256(Path(path).read_bytes())[:16]
    except FileNotFoundError:
        raise EvaluationError(f"evaluate.detection.truth: {path} does not exist") from None
    except OSError as error:
        raise EvaluationError(f"evaluate.detection.truth: {path} cannot be read: {error.strerror}") from error
    truth = read_truth(path)
    if len(truth.images) and truth.images[0] < 0:
        raise EvaluationError(f"{path}: image id {truth.images[0]} is below 0; number the images from 0 or 1")
    return TruthFile(path, truth, digest)


def put_truth(store: Store, file: TruthFile) -> str:
    """Write a truth for the workers, where it is not yet. Returns the file's name in the run."""
    name = f"{FOLDER}/truth-{file.digest}.parquet"
    if store.exists(name):
        return name
    truth = file.truth
    order = np.argsort(truth.image, kind="stable")
    lengths = np.bincount(np.searchsorted(truth.images, truth.image), minlength=len(truth.images))
    names = np.array(truth.names, object)[np.searchsorted(truth.categories, truth.category[order])]
    columns = {"boxes": truth.box[order], "names": names, "crowd": truth.crowd[order]}
    table = {n: sidecar.ragged(TRUTH.field(n).type, values, lengths) for n, values in columns.items()}
    store.put(name, sidecar.to_bytes(pa.table({"image": truth.images, **table}, schema=TRUTH)))
    return name


@dataclass(frozen=True)
class SplitTruth:
    """The truth of a split's images. rows: of each image of the split in shard order, its id; NONE where it has no truth,
    or no box of the classes and such images are left out."""

    truth: Truth
    rows: np.ndarray
    warnings: tuple[str, ...]


def names_of(tables: Sequence[pa.Table]) -> list[str]:
    """The category names of the samples' own boxes, sorted."""
    return sorted({n for table in tables for n in sidecar.list_column(table, "true_name")[0].tolist()})


def of_samples(tables: Sequence[pa.Table], names: Sequence[str]) -> tuple[Truth, np.ndarray]:
    """The samples' own boxes as a truth, and the image id of each row. Images and categories are numbered from 1.

    An area is the box's: COCO's area ranges take the segment's, so APs, APm and APl may differ from those of the file.
    """
    known = np.concatenate([table["image"].to_numpy() for table in tables] or [np.zeros(0, np.int64)]) != NONE
    rows = np.where(known, np.arange(1, len(known) + 1), NONE)
    box, counts, category, crowd, start = [], [], [], [], 0
    number = {name: i for i, name in enumerate(names, 1)}
    for table in tables:
        boxes, at = sidecar.list_column(table, "true_box")
        box.append(boxes)
        counts.append(np.repeat(rows[start : start + len(table)], np.diff(at)))
        category += [number[name] for name in sidecar.list_column(table, "true_name")[0]]
        crowd.append(sidecar.list_column(table, "true_crowd")[0].astype(bool))
        start += len(table)
    boxes = np.concatenate([np.zeros((0, 4)), *box])
    truth = Truth(
        rows[known],
        np.arange(1, len(names) + 1),
        tuple(names),
        np.concatenate([np.zeros(0, np.int64), *counts]),
        np.array(category, np.int64),
        boxes,
        boxes[:, 2] * boxes[:, 3],
        np.concatenate([np.zeros(0, bool), *crowd]),
    )
    return truth, rows


def of_file(tables: Sequence[pa.Table], file: TruthFile) -> tuple[Truth, np.ndarray, list[str]]:
    """The truth of the images that have a sample, the image id of each row, and what is said of the others.

    Raises: EvaluationError when two samples are the same image.
    """
    rows = np.concatenate([table["image"].to_numpy() for table in tables] or [np.zeros(0, np.int64)])
    found, times = np.unique(rows[rows != NONE], return_counts=True)
    if (times > 1).any():
        keys = [k for table in tables for k in table["key"].to_pylist()]
        twice = found[np.argmax(times > 1)]
        same = [keys[i] for i in np.flatnonzero(rows == twice)[:2]]
        raise EvaluationError(f"samples {same[0]!r} and {same[1]!r} are both image {twice} of {file.place}")
    missing = len(file.truth.images) - len(found)
    warnings = [f"{missing} of {len(file.truth.images)} images of {file.place} have no sample here and do not count"]
    return of_images(file.truth, found), rows, warnings if missing else []


def of_images(truth: Truth, images: np.ndarray) -> Truth:
    """The truth of some of its images."""
    part = truth.take(np.isin(truth.image, images))

    def kept(pairs: np.ndarray | None) -> np.ndarray | None:
        return None if pairs is None else pairs[np.isin(pairs[:, 0], images)]

    return replace(part, images=images, negative=kept(truth.negative), not_exhaustive=kept(truth.not_exhaustive))


def split_truth(
    tables: Sequence[pa.Table], file: TruthFile | None, names: Sequence[str], classes: Classes, drop_empty: bool
) -> SplitTruth:
    """What a split is judged by. names: of all categories, in the order of their ids, where there is no file.

    Raises: EvaluationError when no image of the split has a truth, or none a box of the classes.
    """
    if file is None:
        truth, rows = of_samples(tables, names)
        warnings: list[str] = []
    else:
        truth, rows, warnings = of_file(tables, file)
    without = int((rows == NONE).sum())
    if without:
        warnings.append(f"{without} of {len(rows)} samples have no truth and do not count")
    if without == len(rows):
        raise EvaluationError(
            f"none of {len(rows)} samples has a truth: "
            + (
                "none has a list 'boxes' in its .json member; pack them with their instances file, or name one in "
                "evaluate.detection.truth"
                if file is None
                else f"no image id of {file.place} is the image_id of a sample's .json, or the number its key ends in"
            )
        )
    truth = truth.only(np.array(classes.ids), drop_empty_images=drop_empty)
    if not len(truth.image):
        raise EvaluationError(
            f"no image of the split has a box of the {len(classes.ids)} classes asked for; see evaluate.detection.classes"
        )
    bare = len(classes.ids) - len(np.unique(truth.category))
    if bare:
        warnings.append(f"{bare} of {len(classes.ids)} classes have no box in these images; no figure counts them")
    return SplitTruth(truth, np.where(np.isin(rows, truth.images), rows, NONE), tuple(warnings))
