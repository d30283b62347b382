"""Checks of one base shard's content: the tar's structure, the index against a fresh walk, counts and digests, conservation,
and with `deep` every image and text.

Letters: N samples.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import BinaryIO

import pyarrow as pa

from shards.commit import Marker
from shards.decode import (
    IMAGE_SUFFIXES,
    MAX_PIXELS,
    TEXT_SUFFIXES,
    DecodeError,
    decode_image,
    image_member,
    sample_text,
    upright_size,
)
from shards.digest import SampleDigest, hash_of, keys_digest, member_digest
from shards.errors import ShardError
from shards.findings import Findings
from shards.index import ShardIndex
from shards.tar import END, Sample, Scan, tar_samples

RESTORE = "restore the file, or redo the ingest stage with --force"
Size = tuple[int, int] | None  # width and height of an image, where they are known


@dataclass(frozen=True)
class Walked:
    """What a walk over a tar gave: samples in order, their digests, and the images' sizes where they were asked for."""

    samples: list[Sample]
    digests: list[list[bytes]]  # of each sample's members, of our own tars
    content: SampleDigest
    sizes: list[Size]

    @property
    def keys(self) -> list[str]:
        return [s.key for s in self.samples]


def walk_tar(
    view: memoryview,
    file: BinaryIO,
    place: str,
    found: Findings,
    *,
    ours: bool,
    deep: bool,
    sizes: bool,
    max_pixels: int = MAX_PIXELS,
) -> Walked:
    """Walk a tar and report what is wrong with its structure, its keys and, with `deep`, its samples.

    ours: of a base shard, where nothing may be refused and nothing may follow the end.
    """
    scan, samples, digests, known = Scan(), [], [], []
    content = SampleDigest()
    for sample in tar_samples(view, file, scan):
        samples.append(sample)
        members = {s: view[m.offset : m.offset + m.size] for s, m in zip(sample.suffixes, sample.members, strict=True)}
        if ours:
            digests.append([member_digest(data) for data in members.values()])
            content.add(hash_of(sample.key, zip(members, digests[-1], strict=True)))
        if deep or sizes:
            known.append(_look(sample, members, place, found, deep, max_pixels))
    remedy = RESTORE if ours else "fetch the shard again"
    if scan.problem:
        found.add(
            "error", "damaged tar", place, expected="headers up to two zero blocks", found=scan.problem, remedy=remedy
        )
    for reason, count in Counter(reason for _, reason in scan.refused).items():
        first = next(name for name, r in scan.refused if r == reason)
        found.add(
            "error" if ours else "warning",
            f"refused member ({reason})",
            place,
            expected="regular files with a safe name",
            found=f"{count}, such as {first!r}",
            remedy=remedy if ours else "ingest will count them as refused; mend the source to keep them",
        )
    stop = samples[-1].stop + len(END) if samples else len(END)
    if ours and not scan.problem and len(view) != stop:
        found.add("error", "trailing data", place, expected=f"{stop} bytes", found=f"{len(view)} bytes", remedy=RESTORE)
    _check_names(samples, place, found, ours)
    return Walked(samples, digests, content, known)


def _look(
    sample: Sample, members: dict[str, memoryview], place: str, found: Findings, deep: bool, max_pixels: int
) -> Size:
    """The size of a sample's image; None where it has none that is readable. Findings only with `deep`."""
    size: Size = None
    raw = {s: bytes(v) for s, v in members.items() if deep or s in IMAGE_SUFFIXES}
    try:
        image = image_member(raw)
        size = upright_size(image)
        if deep:
            height, width = decode_image(image, max_pixels).shape[:2]
            if (width, height) != size:
                size = (width, height)
            sample_text(raw)
    except DecodeError as error:
        if deep:
            found.add(
                "error",
                error.reason,
                f"{place}: sample {sample.key!r}",
                expected="an image that decodes and a text",
                found=error.detail,
                remedy="take the sample out of its source, or ingest it, which refuses such samples",
            )
    return size


def _check_names(samples: list[Sample], place: str, found: Findings, ours: bool) -> None:
    severity = "error" if ours else "warning"
    for key, count in Counter(s.key for s in samples).items():
        if count > 1:
            found.add(
                severity,
                "duplicate key",
                f"{place}: sample {key!r}",
                expected="each key once",
                found=f"{count} times",
                remedy=RESTORE if ours else "ingest keeps the first and refuses the others; rename them to keep them",
            )
    if ours:
        for suffix, count in Counter(s for sample in samples for s in sample.suffixes).items():
            if suffix not in IMAGE_SUFFIXES + TEXT_SUFFIXES:
                found.add(
                    "note",
                    "unknown suffix",
                    place,
                    expected=", ".join(IMAGE_SUFFIXES + TEXT_SUFFIXES),
                    found=f".{suffix} x {count}",
                    remedy="such members are never read; ingest the shard to be rid of them",
                )


def check_index(index: pa.Table, walked: Walked, place: str, found: Findings, remedy: str) -> None:
    """Every key, offset, size and suffix of an index equals a fresh walk's, and every digest the content's."""
    hashed = bool(walked.digests) and not index["digests"].null_count
    fresh = ShardIndex.of(walked.samples, walked.digests if hashed else None).table
    if index.equals(fresh):
        return
    if len(index) != len(fresh):
        expected, met = f"{len(fresh)} samples", f"{len(index)} rows"
        found.add("error", "index differs", place, expected=expected, found=met, remedy=remedy)
    for row in range(min(len(index), len(fresh))):
        mine, theirs = (t.slice(row, 1).to_pylist()[0] for t in (fresh, index))
        for name in mine:
            if mine[name] != theirs[name] and (hashed or name != "digests"):
                where = f"{place} row {row} {name}"
                found.add("error", "index differs", where, expected=mine[name], found=theirs[name], remedy=remedy)


def check_base_marker(marker: Marker, walked: Walked, place: str, found: Findings, *, hashed: bool) -> None:
    """Counts and digests of a base shard's marker against its tar, and that what came in went out or was refused.

    hashed: whether contents were hashed when the shard was written; else the digests are of keys alone.
    """
    keys = keys_digest(walked.keys)
    content = walked.content if hashed else keys
    refused = sum(marker.refused.values())
    came_in = content + SampleDigest.parse(refused, marker.refused_digest or "0")
    for name, expected, said in (
        ("samples", len(walked.samples), marker.samples),
        ("keys_digest", keys.hex, marker.keys_digest),
        ("content_digest", content.hex, marker.content_digest),
        ("came_in", came_in.count, marker.came_in),
        ("came_in_digest", came_in.hex, marker.came_in_digest),
    ):
        if expected != said:
            kind = "conservation" if name.startswith("came_in") else "marker differs"
            found.add("error", kind, f"{place} {name}", expected=expected, found=said, remedy=RESTORE)


def read_index(data: bytes, place: str, found: Findings, remedy: str) -> pa.Table | None:
    try:
        return ShardIndex.from_bytes(data, place).table
    except ShardError as error:
        found.add("error", "unreadable index", place, expected="an index", found=error, remedy=remedy)
        return None
