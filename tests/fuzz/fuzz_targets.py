"""What is fuzzed: each target reads hostile bytes and says what must hold of what it gives. Allowed are a value, a
ShardError, a DecodeError, and a recorded `scan.problem`; anything else is a defect."""

from __future__ import annotations

import io
import random
import tarfile
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import fuzz_mutate
import fuzz_seeds
import numpy as np
import pyarrow as pa

from shards import manifest, sidecar
from shards.commit import StageFolder
from shards.decode import DecodeError, decode_image, decode_json, decode_text, sample_text
from shards.digest import SampleDigest
from shards.errors import ShardError
from shards.index import ShardIndex
from shards.marker_check import read_marker
from shards.tar import Member, Scan, group, padded, tar_samples, walk

MOST_PIXELS = 100_000


def tar(data: bytes) -> None:
    """Members lie in the file, in order; samples are made of them; and tarfile finds the same where both read it all."""
    scan = Scan()
    view = memoryview(data)
    members = []
    for member in walk(view, io.BytesIO(data), scan):
        members.append(member)
        assert len(members) <= len(data) // 512, "the walk does not end"
    end = 0
    for m in members:
        assert end <= m.start < m.offset <= m.offset + m.size <= len(data), m
        end = m.offset + padded(m.size)
    again = Scan()
    samples = list(group(iter(members), again))
    fast = Scan()
    assert list(tar_samples(view, io.BytesIO(data), fast)) == list(
        group(iter(members), whole := Scan(problem=scan.problem))
    )
    assert (sorted(fast.refused), fast.problem) == (sorted(scan.refused + whole.refused), scan.problem)
    for sample in samples:
        assert sample.key.encode() and not sample.key.endswith("/")
        assert len(set(sample.suffixes)) == len(sample.members)
        assert [m.start for m in sample.members] == sorted(m.start for m in sample.members)
    assert sum(len(s.members) for s in samples) + len(again.refused) == len(members)
    if not scan.problem:
        differential(data, members)


def differential(data: bytes, members: list[Member]) -> None:
    theirs = by_tarfile(data)
    if theirs is not None:
        mine = [(m.name, data[m.offset : m.offset + m.size]) for m in members]
        assert mine == theirs, f"mine: {[n for n, _ in mine]}, tarfile's: {[n for n, _ in theirs]}"


def by_tarfile(data: bytes) -> list[tuple[str, bytes]] | None:
    """Regular members by the standard library; None where it refuses, stops at a header that it takes for damaged (a number
    of a field that is of no use here), or goes round for ever."""
    found, last = [], -1
    try:
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:", encoding="utf-8") as tar:
            for info in tar:
                if tar.offset <= last or info.size < 0:
                    return None
                last = tar.offset
                if info.type in (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE) and not info.issparse():
                    if info.type != tarfile.AREGTYPE and info.name.endswith("/"):
                        return None
                    found.append((info.name.removeprefix("./"), data[info.offset_data : info.offset_data + info.size]))
            whole = not any(data[tar.offset : tar.offset + 512])
    except Exception:
        return None
    return found if whole else None


def index(data: bytes) -> None:
    found = ShardIndex.from_bytes(data, "x.idx")
    assert len(found.keys) == len(found)
    for row in range(len(found)):
        start, stop = int(found.offsets[row]), int(found.offsets[row] + found.lengths[row])
        members = found.members(row)
        assert members and 0 <= start < stop
        for suffix, at, size in members:
            assert isinstance(suffix, str)
            assert start <= at <= at + size <= stop
        found.keys[row].encode()


def marker(data: bytes) -> None:
    found = read_marker(data, "x.done.json")
    assert read_marker(found.to_bytes(), "x.done.json") == found
    assert found.output("").file.encode()
    SampleDigest.parse(found.samples, found.keys_digest)


def pairs(data: bytes) -> None:
    table = sidecar.from_bytes(data, "pairs/x.parquet", sidecar.PAIRS)
    sidecar_columns(table, sidecar.PAIRS)


def regions(data: bytes) -> None:
    table = sidecar.from_bytes(data, "regions/x.parquet", sidecar.REGIONS)
    sidecar_columns(table, sidecar.REGIONS)


def sidecar_columns(table: pa.Table, schema: pa.Schema) -> None:
    for field in schema:
        if not pa.types.is_list(field.type):
            assert table[field.name].null_count == 0
            continue
        values, at = sidecar.list_column(table, field.name)
        assert len(at) == len(table) + 1 and at[0] == 0 and (np.diff(at) >= 0).all()
        assert len(values) == at[-1]
        if field.name == "boxes":
            assert values.shape[1:] == (4,)
    try:
        sidecar.check_aligned(table, ["k0"], "x")
    except ShardError:
        pass


def manifests(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "base").mkdir()
        (Path(folder) / "base" / manifest.NAME).write_bytes(data)
        found = manifest.read(StageFolder(folder, "base"))
    assert len(found.digest) == 16
    assert found.total >= 0
    assert len(found.keys.hex) == 32


def image(data: bytes) -> None:
    pixels = decode_image(data, MOST_PIXELS)
    assert pixels.dtype == np.uint8
    assert pixels.ndim == 3 and pixels.shape[2] == 3 and pixels.size


def text(data: bytes) -> None:
    decode_text(data).encode()


def json_object(data: bytes) -> None:
    assert isinstance(decode_json(data), dict)


def text_of_sample(data: bytes) -> None:
    for members in ({"json": data}, {"txt": data}):
        try:
            assert sample_text(members).encode().strip()
        except DecodeError as error:
            error.detail.encode()
            last: DecodeError | None = error
        else:
            last = None
    if last:
        raise last


@dataclass(frozen=True)
class Target:
    """run: the oracle. mutate: draws one hostile input."""

    run: Callable[[bytes], None]
    mutate: Callable[[random.Random], bytes]


def _of(seeds: list[bytes], mutate: Callable[[random.Random, bytes], bytes]) -> Callable[[random.Random], bytes]:
    return lambda rng: mutate(rng, rng.choice(seeds))


def _table(made: pa.Table) -> Callable[[random.Random], bytes]:
    return lambda rng: fuzz_mutate.table(rng, made)


def targets() -> dict[str, Target]:
    texts = fuzz_seeds.texts()
    return {
        "tar": Target(tar, _of(fuzz_seeds.tars(), fuzz_mutate.tar)),
        "index": Target(index, _table(fuzz_seeds.index_table())),
        "marker": Target(marker, _of([fuzz_seeds.marker()], fuzz_mutate.json_bytes)),
        "pairs": Target(pairs, _table(fuzz_seeds.pairs_table())),
        "regions": Target(regions, _table(fuzz_seeds.regions_table())),
        "manifest": Target(manifests, _table(fuzz_seeds.manifest_table())),
        "image": Target(image, _of(fuzz_seeds.images(), fuzz_mutate.image)),
        "text": Target(text, _of(texts, fuzz_mutate.raw)),
        "json": Target(json_object, _of(texts, fuzz_mutate.json_bytes)),
        "sample_text": Target(text_of_sample, _of(texts, fuzz_mutate.json_bytes)),
    }


def outcome(target: Target, data: bytes) -> str:
    """'value' or 'refused'. Raises: whatever is neither."""
    try:
        target.run(data)
    except (ShardError, DecodeError) as error:
        assert str(error).encode(errors="strict") is not None
        return "refused"
    return "value"
