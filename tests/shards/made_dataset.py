"""A small correct data set with every kind of stage, committed the way the stages do it, and ways to change it."""

from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image
from shard_samples import Samples

from shards import manifest, marked, sidecar
from shards.commit import Marker, Output, StageFolder
from shards.digest import SampleDigest, keys_digest, member_digest, sample_hash, sha256
from shards.index import ShardIndex
from shards.tar import Sample, TarWriter

SHARDS = ("000000", "000001", "000002")
IMAGES, SIDE, REGIONS, ATTRIBUTES, DIM = 4, 16, 3, 5, 8
VOCABULARY = pa.schema([("attribute", pa.int32()), ("phrase", pa.string())])
COUNTS = pa.schema([("phrase", pa.int32()), ("count", pa.int64())])


def png(seed: int, side: int = SIDE) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side + 4, 3)).astype(np.uint8)
    sink = io.BytesIO()
    Image.fromarray(pixels).save(sink, "PNG")
    return sink.getvalue()


def samples(shard: str) -> Samples:
    first = int(shard) * IMAGES
    return [(f"{shard}/{n:03d}", {"png": png(first + n), "txt": f"text {n}".encode()}) for n in range(IMAGES)]


def tar_and_index(made: Samples) -> tuple[bytes, bytes]:
    sink = io.BytesIO()
    tar = TarWriter(sink)
    rows = []
    for key, members in made:
        parts = tuple(tar.add(f"{key}.{suffix}", data) for suffix, data in members.items())
        rows.append(Sample(key, parts, tuple(members)))
    tar.close()
    digests = [[member_digest(data) for data in members.values()] for _, members in made]
    return sink.getvalue(), ShardIndex.of(rows, digests).to_bytes()


def base_marker(shard: str, made: Samples, refused: list[tuple[str, str, int]], bound: str) -> Callable[..., Marker]:
    content, out, away = SampleDigest(), SampleDigest(), SampleDigest()
    for key, members in made:
        content.add(sample_hash(key, members.items()))
        out.add(sample_hash(key, members.items()))
    for *_, value in refused:
        away.add(value)
    reasons = [r for _, r, _ in refused]
    total = out + away
    return lambda outputs: Marker(
        shard=shard,
        stage="base",
        fingerprint=bound,
        input_digest="source.tar:9000",
        samples=len(made),
        keys_digest=keys_digest(k for k, _ in made).hex,
        outputs=outputs,
        came_in=total.count,
        refused={r: reasons.count(r) for r in sorted(set(reasons))},
        came_in_digest=total.hex,
        refused_digest=away.hex,
        content_digest=content.hex,
        seconds={"check": 0.125},
        warnings=("one",) if refused else (),
    )


def quarantine(refused: list[tuple[str, str, int]]) -> bytes:
    columns = {
        "key": [k for k, _, _ in refused],
        "reason": [r for _, r, _ in refused],
        "detail": ["why" for _ in refused],
        "digest": [f"{v:032x}" for _, _, v in refused],
    }
    return sidecar.to_bytes(sidecar.table(sidecar.QUARANTINE, columns))


def tables(shard: str) -> dict[str, pa.Table]:
    """A sidecar of each stage. Image n has REGIONS boxes, and a pair for each of them."""
    keys = [k for k, _ in samples(shard)]
    rng = np.random.default_rng(int(shard))
    low = rng.uniform(0, SIDE / 2, (IMAGES * REGIONS, 2))
    boxes = np.concatenate([low, low + rng.uniform(1, SIDE / 2, low.shape)], 1).astype(np.float32)
    counts = [REGIONS] * IMAGES
    pair_types = {f.name: f.type for f in sidecar.PAIRS}
    types = {f.name: f.type for f in sidecar.REGIONS}
    region = np.tile(np.arange(REGIONS), IMAGES).astype(np.uint16)
    attribute = np.tile(np.arange(REGIONS), IMAGES).astype(np.int32)
    pairs = sidecar.table(
        sidecar.PAIRS,
        {
            "key": keys,
            "boxes": sidecar.ragged(pair_types["boxes"], boxes, counts),
            "region": sidecar.ragged(pair_types["region"], region, counts),
            "attribute": sidecar.ragged(pair_types["attribute"], attribute, counts),
            "score": sidecar.ragged(pair_types["score"], np.full(len(region), 0.5, np.float16), counts),
        },
    )
    regions = sidecar.table(
        sidecar.REGIONS,
        {
            "key": keys,
            "width": [SIDE + 4] * IMAGES,
            "height": [SIDE] * IMAGES,
            "boxes": sidecar.ragged(types["boxes"], boxes, counts),
            "objectness": sidecar.ragged(types["objectness"], np.ones(len(boxes), np.float32), counts),
            "attributes": sidecar.ragged(types["attributes"], attribute, counts),
        },
    )
    embedding = sidecar.embeddings_schema(DIM)
    flat = pa.array(np.ones(len(boxes) * DIM, np.float16))
    embeddings = sidecar.table(
        embedding,
        {
            "row": np.repeat(np.arange(IMAGES), REGIONS).astype(np.int32),
            "region": region,
            "embedding": pa.FixedSizeListArray.from_arrays(flat, type=embedding.field("embedding").type),
        },
    )
    vocabulary = sidecar.table(COUNTS, {"phrase": [0, 2], "count": [1, IMAGES]})
    return {"pairs": pairs, "truth": pairs, "regions": regions, "embeddings": embeddings, "vocabulary": vocabulary}


def sidecar_marker(stage: str, shard: str, tar: str, bound: str) -> Callable[..., Marker]:
    digest = keys_digest(k for k, _ in samples(shard))
    total = IMAGES * REGIONS
    counts = {
        "pairs": {"pairs": total, "regions": total, "mentions": total},
        "truth": {"pairs": total, "regions": total},
        "regions": {"regions": total, "mentions": total},
    }
    return lambda outputs: Marker(
        shard=shard,
        stage=stage,
        fingerprint=bound,
        input_digest=tar if stage != "truth" else bound,
        samples=IMAGES,
        keys_digest=digest.hex,
        outputs=outputs,
        came_in=IMAGES,
        came_in_digest=digest.hex,
        refused_digest=f"{0:032x}",
        counts=counts.get(stage, {}),
        seconds={"map": 0.5},
    )


def make(root: Path) -> Path:
    """<root>/train with three shards in six stages, and <root>/vocabulary.parquet. Returns the data set."""
    dataset = root / "train"
    base = StageFolder(str(dataset), "base")
    bound = base.claim({"source": "x", "max_pixels": 1_000_000})
    for shard in SHARDS:
        made = samples(shard)
        tar, index = tar_and_index(made)
        refused = (
            [("bad/0", "no_text", 3), ("bad/1", "no_text", 4), ("bad/2", "no_image", 5)] if shard == "000001" else []
        )
        with base.attempt(shard) as attempt:
            attempt.write(f"{shard}.tar", tar)
            attempt.write(f"{shard}.idx", index)
            if refused:
                attempt.write(f"quarantine/{shard}.parquet", quarantine(refused))
            attempt.commit(base_marker(shard, made, refused, bound))
        for stage, table in tables(shard).items():
            folder = StageFolder(str(dataset), stage)
            mine = folder.claim({"stage": stage})
            with folder.attempt(shard) as attempt:
                attempt.write(f"{shard}.parquet", sidecar.to_bytes(table))
                attempt.commit(sidecar_marker(stage, shard, sha256(tar), mine))
    for stage in ("base", *tables(SHARDS[0])):
        manifest.write(StageFolder(str(dataset), stage), SHARDS)
    words = sidecar.table(VOCABULARY, {"attribute": range(ATTRIBUTES), "phrase": [f"p{i}" for i in range(ATTRIBUTES)]})
    (root / "vocabulary.parquet").write_bytes(sidecar.to_bytes(words))
    return dataset


# ---- changes that hide their traces: marker and manifest are made to agree


def edit_marker(dataset: Path, stage: str, shard: str, *, follow: bool = True, **changes: Any) -> None:
    """follow: the manifest is made anew, so that it agrees."""
    folder = StageFolder(str(dataset), stage)
    marker = dataclasses.replace(folder.marker(shard), **changes)
    (dataset / stage / f"{shard}.done.json").write_bytes(marker.to_bytes())
    if follow:
        remake_manifest(dataset, stage)


def remake_manifest(dataset: Path, stage: str) -> None:
    folder = StageFolder(str(dataset), stage)
    rows = [marked.row_of(folder.marker(s)) for s in folder.shards_done()]
    columns = {name: [row[name] for row in rows] for name in manifest.SCHEMA.names}
    (dataset / stage / manifest.NAME).write_bytes(sidecar.to_bytes(sidecar.table(manifest.SCHEMA, columns)))


def replace_output(dataset: Path, stage: str, shard: str, file: str, data: bytes, **changes: Any) -> None:
    """Another content, and a marker and manifest that say so."""
    marker = StageFolder(str(dataset), stage).marker(shard)
    (dataset / stage / file).write_bytes(data)
    outputs = tuple(
        dataclasses.replace(o, bytes=len(data), sha256=sha256(data)) if o.file == file else o for o in marker.outputs
    )
    edit_marker(dataset, stage, shard, outputs=outputs, **changes)


def replace_base(dataset: Path, shard: str, made: Samples, *, all_of_it: bool) -> None:
    """Another tar with its index; all_of_it: counts and digests of the marker follow, too."""
    tar, index = tar_and_index(made)
    replace_output(dataset, "base", shard, f"{shard}.tar", tar)
    replace_output(dataset, "base", shard, f"{shard}.idx", index)
    if all_of_it:
        old = StageFolder(str(dataset), "base").marker(shard)
        new = base_marker(shard, made, [], old.fingerprint)(old.outputs)
        edit_marker(
            dataset, "base", shard, **{f: getattr(new, f) for f in ("samples", "keys_digest", "content_digest")}
        )
        edit_marker(dataset, "base", shard, came_in=new.came_in, came_in_digest=new.came_in_digest)


def change_column(
    dataset: Path, stage: str, shard: str, name: str, change: Callable[[list[Any]], None], **first: Any
) -> None:
    """Edit the values of one column of a sidecar (and the first value of others), and let marker and manifest follow."""
    table = tables(shard)[stage]
    for column in (name, *first):
        values = table[column].to_pylist()
        if column == name:
            change(values)
        else:
            values[0] = first[column]
        field = table.schema.field(column)
        table = table.set_column(table.schema.get_field_index(column), field, pa.array(values, type=field.type))
    replace_output(dataset, stage, shard, f"{shard}.parquet", sidecar.to_bytes(table))


def edit_json(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    value = json.loads(path.read_bytes())
    change(value)
    path.write_text(json.dumps(value, sort_keys=True, indent=1) + "\n", encoding="utf-8")


def output_of(dataset: Path, stage: str, shard: str, suffix: str) -> Output:
    return StageFolder(str(dataset), stage).marker(shard).output(suffix)
