"""Checks of one sidecar: row for row with its base shard, and values in range.

Letters: N images, P pairs, B boxes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from shards import sidecar
from shards.commit import Marker
from shards.errors import ShardError
from shards.findings import Findings
from shards.verify_base import Size

REDO = "redo the stage with --force"
SCHEMAS = {"pairs": sidecar.PAIRS, "truth": sidecar.PAIRS, "regions": sidecar.REGIONS}
MADE_OF_BASE = ("pairs", "regions", "embeddings", "vocabulary")
GIVEN = {"regions", "mentions", "decoded"}
QUALITY = {"doubt_bits", "scored", "empty", "presence_won", "presence_of"}
COUNTED = {
    "truth": {"pairs", "regions"},
    "pairs": {"pairs", *GIVEN, *QUALITY},
    "regions": {*GIVEN, "images_without_regions", "dropped_boxes"},
}
COUNTS = pa.schema([("phrase", pa.int32()), ("count", pa.int64())])


@dataclass(frozen=True)
class Base:
    """What a sidecar is held against. keys and sizes: of the base shard's samples; None where there is no sound base."""

    keys: Sequence[str] | None
    sizes: Sequence[Size] = ()
    tar_sha256: str = ""
    attributes: int | None = None  # size of the vocabulary, where there is one
    counts: dict[str, dict[str, int]] = field(default_factory=dict)  # stage -> what was counted in its sidecar


def check_sidecar(table: pa.Table, stage: str, base: Base, place: str, found: Findings) -> dict[str, int]:
    """Report what is wrong with a stage's table. Returns what it holds: regions, pairs, mentions."""
    names = table.column_names
    if "key" in names and base.keys is not None:
        _check_keys(table, base.keys, place, found)
    counted: dict[str, int] = {}
    rows = len(base.keys) if base.keys is not None else None
    if "boxes" in names:
        counted["regions"] = _check_boxes(table, base, place, found)
    if "region" in names and "boxes" in names:
        counted["pairs"] = _check_pairs(table, base.attributes, place, found)
    if "attributes" in names:
        counted["mentions"] = _check_ids(table, "attributes", base.attributes, place, found, ascending=True)
    if "objectness" in names:
        _check_lengths(table, ("boxes", "objectness"), place, found)
        _check_finite(table, "objectness", place, found)
    if "width" in names and base.sizes:
        _check_sizes(table, base.sizes, place, found)
    if "row" in names and "embedding" in names:  # `origin` has a row too, of the table it came from
        counted["regions"] = _check_rows(table, rows, place, found)
    if names == COUNTS.names:
        _check_phrases(table, rows, place, found)
    return counted


def check_counts(marker: Marker, counted: dict[str, int], base: Base, place: str, found: Findings) -> None:
    """A marker's counts against its sidecar; `pairs` counts the regions and mentions that it was given."""
    expected = {**counted, **{k: v for k, v in base.counts.get("regions", {}).items() if marker.stage == "pairs"}}
    for name, said in marker.counts.items():
        if name in expected and said != expected[name]:
            _differs(found, f"{place} counts.{name}", expected[name], said)
    names = {name.split(":")[0] for name in marker.counts}  # some are also of a group, after a colon
    unknown = names - COUNTED.get(marker.stage, names)
    if marker.counts and (unknown or not set(counted) <= set(marker.counts)):
        _differs(found, f"{place} counts", sorted(counted), sorted(marker.counts))


def check_sidecar_marker(marker: Marker, base_marker: Marker | None, base: Base, place: str, found: Findings) -> None:
    """Counts, keys and input of a sidecar's marker against its base shard's."""
    if base_marker is not None:
        for name in ("samples", "keys_digest"):
            if getattr(marker, name) != getattr(base_marker, name):
                _differs(found, f"{place} {name}", getattr(base_marker, name), getattr(marker, name))
        tar = base.tar_sha256
        allowed = {tar, marker.fingerprint}  # the latter where a shard moved with its base, or was made with it
        if marker.stage not in MADE_OF_BASE and not marker.stage.startswith("evaluate-"):
            allowed.add(base_marker.input_digest)
        if tar and marker.input_digest not in allowed:
            found.add(
                "error",
                "made from another base",
                f"{place} input_digest",
                expected=tar,
                found=marker.input_digest,
                remedy=REDO,
            )
    refused = sum(marker.refused.values())
    if marker.came_in != marker.samples + refused:
        found.add(
            "error",
            "conservation",
            f"{place} came_in",
            expected=marker.samples + refused,
            found=marker.came_in,
            remedy=REDO,
        )
    if refused == 0:
        wanted = {"came_in_digest": marker.keys_digest, "refused_digest": f"{0:032x}"}
        wanted |= {"content_digest": marker.keys_digest} if marker.content_digest else {}
        for name, expected in wanted.items():
            if getattr(marker, name) != expected:
                found.add(
                    "error",
                    "conservation",
                    f"{place} {name}",
                    expected=expected,
                    found=getattr(marker, name),
                    remedy=REDO,
                )


def _differs(found: Findings, place: str, expected: object, said: object) -> None:
    found.add("error", "marker differs", place, expected=expected, found=said, remedy=REDO)


def _check_keys(table: pa.Table, keys: Sequence[str], place: str, found: Findings) -> None:
    try:
        sidecar.check_aligned(table, keys, place)
    except ShardError as error:
        found.add(
            "error", "not aligned", place, expected="the base shard's keys in their order", found=error, remedy=REDO
        )


def _lists(table: pa.Table, name: str) -> tuple[np.ndarray, np.ndarray]:
    return sidecar.list_column(table, name)


def _wrong(
    found: Findings, kind: str, place: str, row_of: np.ndarray, wrong: np.ndarray, expected: str, values: np.ndarray
) -> None:
    """One finding an image with a wrong value, naming the first."""
    rows, first = np.unique(row_of[wrong], return_index=True)
    for row, at in zip(rows.tolist(), first.tolist(), strict=True):
        found.add("error", kind, f"{place} row {row}", expected=expected, found=values[wrong][at].tolist(), remedy=REDO)


def _rows_of(at: np.ndarray) -> np.ndarray:
    return np.repeat(np.arange(len(at) - 1), np.diff(at))


def _check_boxes(table: pa.Table, base: Base, place: str, found: Findings) -> int:
    boxes, at = _lists(table, "boxes")
    row_B = _rows_of(at)
    sane_B = np.isfinite(boxes).all(1)
    _wrong(found, "box not finite", place, row_B, ~sane_B, "finite numbers", boxes)
    flat_B = sane_B & ~(boxes[:, 2:] > boxes[:, :2]).all(1)
    _wrong(found, "box without area", place, row_B, flat_B, "x1 < x2 and y1 < y2", boxes)
    limit = np.full((len(at) - 1, 2), np.inf)
    for row, size in enumerate(base.sizes[: len(limit)]):
        if size is not None:
            limit[row] = size
    outside_B = sane_B & ((boxes < 0).any(1) | (boxes[:, 2:] > limit[row_B]).any(1))
    for row in np.unique(row_B[outside_B]).tolist():
        worst = boxes[outside_B & (row_B == row)][0].tolist()
        inside = "x".join(str(int(v)) for v in limit[row]) if np.isfinite(limit[row]).all() else "not known"
        found.add(
            "error",
            "box outside the image",
            f"{place} row {row}",
            expected=f"inside {inside}",
            found=worst,
            remedy=REDO,
        )
    return len(boxes)


def _check_pairs(table: pa.Table, attributes: int | None, place: str, found: Findings) -> int:
    listed = [n for n in ("region", "attribute", "score") if n in table.column_names]
    if not _check_lengths(table, listed, place, found):
        return int(_lists(table, "region")[1][-1])
    region_P, at = _lists(table, "region")
    _, box_at = _lists(table, "boxes")
    boxes_P = np.diff(box_at)[_rows_of(at)]
    _wrong(found, "region out of range", place, _rows_of(at), region_P >= boxes_P, "a box of the same image", region_P)
    if "attribute" in listed:
        _check_ids(table, "attribute", attributes, place, found, ascending=False)
        attribute_P, _ = _lists(table, "attribute")
        said = np.stack([_rows_of(at), region_P.astype(np.int64), attribute_P.astype(np.int64)])
        if np.unique(said, axis=1).shape[1] != len(region_P):
            found.add(
                "warning", "pair twice", place, expected="each region and attribute once", found="repeats", remedy=REDO
            )
    if "score" in listed:
        _check_finite(table, "score", place, found)
    return len(region_P)


def _check_lengths(table: pa.Table, names: Sequence[str], place: str, found: Findings) -> bool:
    at = {n: _lists(table, n)[1] for n in names}
    first = names[0]
    for name in names[1:]:
        wrong = np.diff(at[name]) != np.diff(at[first])
        for row in np.nonzero(wrong)[0].tolist():
            found.add(
                "error",
                "lists of different length",
                f"{place} row {row}",
                expected=f"{np.diff(at[first])[row]} as in {first}",
                found=f"{np.diff(at[name])[row]} in {name}",
                remedy=REDO,
            )
        if wrong.any():
            return False
    return True


def _check_ids(
    table: pa.Table, name: str, attributes: int | None, place: str, found: Findings, *, ascending: bool
) -> int:
    ids, at = _lists(table, name)
    row = _rows_of(at)
    limit = attributes if attributes is not None else np.iinfo(np.int32).max
    expected = f"0 to {limit - 1}, as the vocabulary has" if attributes is not None else "0 or more"
    _wrong(found, "attribute out of range", place, row, (ids < 0) | (ids >= limit), expected, ids)
    if ascending and len(ids) > 1:
        down = np.concatenate([[False], (ids[1:] <= ids[:-1]) & (row[1:] == row[:-1])])
        _wrong(found, "attributes not ascending", place, row, down, "ascending ids, each once", ids)
    return len(ids)


def _check_finite(table: pa.Table, name: str, place: str, found: Findings) -> None:
    values, at = _lists(table, name)
    _wrong(found, f"{name} not finite", place, _rows_of(at), ~np.isfinite(values), "finite numbers", values)


def _check_sizes(table: pa.Table, sizes: Sequence[Size], place: str, found: Findings) -> None:
    said = zip(table["width"].to_pylist(), table["height"].to_pylist(), strict=True)
    for row, (mine, size) in enumerate(zip(said, sizes, strict=False)):
        if size is not None and mine != size:
            found.add("error", "image size differs", f"{place} row {row}", expected=size, found=mine, remedy=REDO)


def _check_rows(table: pa.Table, rows: int | None, place: str, found: Findings) -> int:
    """Tables with one row a region, such as embeddings."""
    image_R = table["row"].to_numpy()
    limit = rows if rows is not None else np.iinfo(np.int32).max
    wrong = (image_R < 0) | (image_R >= limit)
    wrong[1:] |= image_R[1:] < image_R[:-1]
    if wrong.any():
        at = int(wrong.argmax())
        found.add(
            "error",
            "row out of range",
            f"{place} row {at}",
            expected=f"ascending, below {limit}",
            found=int(image_R[at]),
            remedy=REDO,
        )
    if "embedding" in table.column_names:
        column = table["embedding"].combine_chunks()
        chunks = column.chunks if isinstance(column, pa.ChunkedArray) else [column]
        if not all(np.isfinite(c.flatten().to_numpy(zero_copy_only=False)).all() for c in chunks):
            found.add(
                "error", "embedding not finite", place, expected="finite numbers", found="NaN or infinity", remedy=REDO
            )
    return len(image_R)


def _check_phrases(table: pa.Table, rows: int | None, place: str, found: Findings) -> None:
    phrase, count = table["phrase"].to_numpy(), table["count"].to_numpy()
    wrong = (phrase < 0) | (count < 1) | (count > (rows if rows is not None else np.iinfo(np.int64).max))
    wrong[1:] |= phrase[1:] <= phrase[:-1]
    if wrong.any():
        at = int(wrong.argmax())
        found.add(
            "error",
            "phrase count out of range",
            f"{place} row {at}",
            expected=f"ascending phrases, counts from 1 to {rows}",
            found=f"phrase {phrase[at]}, count {count[at]}",
            remedy=REDO,
        )
