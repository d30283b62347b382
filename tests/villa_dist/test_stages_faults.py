"""What goes wrong in regions, pairs and embed, each by itself: samples, numbers, storage, space.

On a data set with models of random weights.
"""

from __future__ import annotations

import errno
import io
import os
import shutil
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from offline_run import Stages, config_of, ingested, write_models
from PIL import Image
from safetensors.numpy import load, save

import shards.commit
from shards import manifest
from shards.collect import Collector
from shards.commit import Marker, StageFolder
from shards.decode import decode_image
from shards.digest import sha256
from shards.errors import ShardError, StorageFullError
from shards.reader import BaseShard
from shards.sample import ALL
from shards.tar import TarWriter
from villa_dist.config import Config
from villa_dist.data.samples import Samples
from villa_dist.pipeline import Pipeline
from villa_dist.runner import LocalRunner

SHARD = "000000"
SHARDS = ["000000", "000001", "000002"]
FROZEN = {"mapping": {"encoder": "frozen"}}
ROW = 2  # the sample that is changed


def regions(stages: Stages) -> Marker:
    return stages.regions([SHARD], keep=ALL)[0]


def pairs(stages: Stages) -> Marker:
    """In one pass, so that it reads samples, too."""
    return stages.pairs("pairs", [SHARD], fused=True)[0]


def embed(stages: Stages) -> Marker:
    model = f"{stages.config.run}/models/one_to_one"
    return stages.request("embed", "evaluate-one_to_one", model=model).worker().process(SHARD)


STAGES: dict[str, Callable[[Stages], Marker]] = {"regions": regions, "pairs": pairs, "evaluate-one_to_one": embed}
every_stage = pytest.mark.parametrize("folder", STAGES)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("stages") / "run"
    write_models(ingested(run), "frozen")
    return run


@pytest.fixture
def run(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "run"))


def frozen(run: Path | str, **sections: Any) -> Stages:
    return Stages(config_of(run, **FROZEN, **sections))  # type: ignore[arg-type]


def samples(run: Path) -> list[tuple[str, dict[str, bytes]]]:
    return list(BaseShard(StageFolder(f"{run}/train", "base"), SHARD).samples())


def committed_again(run: Path, given: list[tuple[str, dict[str, bytes]]]) -> None:
    """The base shard with other samples, as sound as any."""
    base = StageFolder(f"{run}/train", "base")
    old = base.marker(SHARD)
    base.store.remove(f"{SHARD}.done.json")
    with base.attempt(SHARD) as attempt:
        collector = Collector(attempt, SHARD)
        for key, members in given:
            collector.add(key, members)
        collector.commit(stage="base", fingerprint=old.fingerprint, input_digest="", seconds={})


def changed(run: Path, **members: bytes) -> str:
    """Give one sample other members. Returns its key."""
    given = samples(run)
    key, had = given[ROW]
    given[ROW] = key, {**had, **members}
    committed_again(run, given)
    return key


def png(side: int) -> bytes:
    """A header that claims so many pixels, and none of them."""
    sink = io.BytesIO()
    Image.new("L", (1, 1)).save(sink, "PNG")
    data = bytearray(sink.getvalue())
    data[16:24] = side.to_bytes(4, "big") * 2
    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    return bytes(data)


# ---- samples


BAD = {
    "undecodable_image": {"png": b"\x89PNG\r\n\x1a\nnot really"},
    "too_many_pixels": {"png": png(12_000)},
    "not_utf8": {"txt": b"caf\xe9"},
    "no_text": {"txt": b" \n"},
}


@every_stage
@pytest.mark.parametrize("reason", BAD)
def test_a_sample_that_ingest_would_have_refused_is_named(run: Path, folder: str, reason: str) -> None:
    """A base shard that something else than this ingest has made, or that was made with another cap."""
    key = changed(run, **BAD[reason])
    if folder.startswith("evaluate") and "txt" in BAD[reason]:  # it reads no text
        assert STAGES[folder](frozen(run)).samples > 0
        return
    with pytest.raises(ShardError, match=rf"shard .*{SHARD}.*sample '{key}': {reason}.*redo the ingest stage"):
        STAGES[folder](frozen(run))
    assert StageFolder(f"{run}/train", folder).shards_done() == []
    assert not list(Path(run, "train", folder).rglob("*.parquet"))


@pytest.mark.parametrize("reason", [r for r in BAD if "png" in BAD[r]])
def test_training_names_an_image_that_ingest_would_have_refused(run: Path, reason: str) -> None:
    key = changed(run, **BAD[reason])
    truth = StageFolder(f"{run}/train", "truth")
    rebind(truth, BaseShard(StageFolder(f"{run}/train", "base"), SHARD).marker.output(".tar").sha256)
    training = Samples(f"{run}/train", "truth", images=True, max_pixels=64_000_000)
    assert training.row(0, ROW - 1) is not None
    with pytest.raises(ShardError, match=rf"sample '{key}' cannot be used: {reason}"):
        training.row(0, ROW)


def test_training_names_a_text_that_ingest_would_have_refused(run: Path) -> None:
    key = changed(run, txt=b"caf\xe9")
    manifest.write(StageFolder(f"{run}/train", "base"), SHARDS)
    training = Samples(f"{run}/train", None, images=True, max_pixels=64_000_000, texts=True)
    with pytest.raises(ShardError, match=rf"sample '{key}' cannot be used: not_utf8"):
        training.row(0, ROW)


def rebind(folder: StageFolder, digest: str) -> None:
    """Have a sidecar's marker say that it was made of another tar."""
    marker = folder.marker(SHARD)
    folder.store.put(f"{SHARD}.done.json", replace(marker, input_digest=digest).to_bytes())


def odd(pixels: np.ndarray, n: int) -> dict[str, bytes]:
    """An image of the same size in the n-th of the ways that are not 8-bit RGB."""
    image, sink = Image.fromarray(pixels), io.BytesIO()
    grey = pixels[..., 0].astype(np.uint16) * 200 + 300
    exif = Image.Exif()
    exif[0x0112] = 6
    ways: list[tuple[str, Callable[[], None]]] = [
        ("png", lambda: Image.fromarray(grey).save(sink, "PNG")),
        ("jpg", lambda: image.convert("CMYK").save(sink, "JPEG")),
        ("png", lambda: image.convert("P").save(sink, "PNG")),
        ("png", lambda: image.convert("1").save(sink, "PNG")),
        ("png", lambda: image.convert("LA").save(sink, "PNG")),
        ("webp", lambda: image.convert("RGBA").save(sink, "WEBP", lossless=True)),
        ("jpg", lambda: image.save(sink, "JPEG", exif=exif)),
    ]
    suffix, write = ways[n % len(ways)]
    write()
    return {suffix: sink.getvalue()}


def rgb(pixels: np.ndarray) -> dict[str, bytes]:
    sink = io.BytesIO()
    Image.fromarray(pixels).save(sink, "PNG")
    return {"png": sink.getvalue()}


@every_stage
def test_odd_pixel_formats_give_what_their_rgb_pixels_give(run: Path, folder: str) -> None:
    """The same sidecar, byte for byte."""
    plain = samples(run)
    strange = [(key, {**odd(decode_image(had["png"]), n), "txt": had["txt"]}) for n, (key, had) in enumerate(plain)]
    committed_again(run, strange)
    STAGES[folder](frozen(run))
    found = frozen(run).bytes(folder, SHARD)
    shutil.rmtree(run / "train" / folder)
    shutil.rmtree(run / "train/embeddings", ignore_errors=True)
    straight = [(key, {**rgb(decode_image(next(iter(had.values())))), "txt": had["txt"]}) for key, had in strange]
    committed_again(run, straight)
    STAGES[folder](frozen(run))
    assert frozen(run).bytes(folder, SHARD) == found


def test_training_sees_the_rgb_pixels_of_odd_formats(run: Path) -> None:
    strange = [({**odd(decode_image(had["png"]), n), "txt": had["txt"]}) for n, (_, had) in enumerate(samples(run))]
    committed_again(run, [(key, new) for (key, _), new in zip(samples(run), strange, strict=True)])
    manifest.write(StageFolder(f"{run}/train", "base"), SHARDS)
    training = Samples(f"{run}/train", None, images=True, max_pixels=64_000_000, texts=True)
    for row, members in enumerate(strange):
        assert np.array_equal(training.row(0, row).pixels, decode_image(next(iter(members.values()))))


@every_stage
@pytest.mark.parametrize("damage", ["flipped", "cut", "gone"])
def test_a_shard_that_is_not_what_was_committed_is_refused(run: Path, folder: str, damage: str) -> None:
    tar = run / f"train/base/{SHARD}.tar"
    data = bytearray(tar.read_bytes())
    data[600] ^= 1
    tar.write_bytes(data if damage == "flipped" else data[:-1024])
    if damage == "gone":
        tar.unlink()
    said = {"flipped": "no longer has the content", "cut": "marker says", "gone": "is missing"}[damage]
    with pytest.raises(ShardError, match=rf"{SHARD}\.tar.*{said}"):
        STAGES[folder](frozen(run))
    assert StageFolder(f"{run}/train", folder).shards_done() == []


def test_ingest_refuses_a_bomb_and_takes_odd_pixel_formats_as_they_are(run: Path, tmp_path: Path) -> None:
    pixels = [decode_image(had["png"]) for _, had in samples(run)]
    given = {f"s{n}": odd(p, n) for n, p in enumerate(pixels)} | {"bomb": {"png": png(12_000)}}
    (tmp_path / "data").mkdir()
    with open(tmp_path / "data/a.tar", "wb") as file:
        tar = TarWriter(file)
        for key, members in given.items():
            for suffix, data in {**members, "txt": b"a red thing"}.items():
                tar.add(f"{key}.{suffix}", data)
        tar.close()
    values = {"run": str(tmp_path / "other"), "data": {"source": "shards", "train": str(tmp_path / "data")}}
    result = Pipeline(Config.model_validate(values), LocalRunner()).run(["ingest"])
    assert result["quarantined"] == {"too_many_pixels": 1} and result["images"]["train"] == len(pixels)
    kept = dict(BaseShard(StageFolder(f"{tmp_path}/other/train", "base"), SHARD).samples())
    assert {key: next(iter(m.items())) for key, m in kept.items()} == {
        key: next(iter(m.items())) for key, m in given.items() if key != "bomb"
    }


# ---- numbers


def damaged(run: Path, job: str) -> None:
    """A model whose weights are not numbers, and whose marker says that this is as it should be."""
    place = run / "models" / job
    weights = load((place / "model.safetensors").read_bytes())
    data = save({n: np.full_like(w, np.nan) if w.dtype.kind == "f" else w for n, w in weights.items()})
    before = sha256((place / "model.safetensors").read_bytes())
    (place / "model.safetensors").write_bytes(data)
    (place / "done.json").write_text((place / "done.json").read_text().replace(before, sha256(data)))


@pytest.mark.parametrize(("folder", "job"), [*((f, "one_to_one") for f in STAGES), ("pairs", "frozen")])
def test_numbers_that_are_none_are_never_committed(run: Path, folder: str, job: str) -> None:
    damaged(run, job)
    with pytest.raises(ShardError, match=r"NaN|not finite|infinity"):
        STAGES[folder](frozen(run))
    assert StageFolder(f"{run}/train", folder).shards_done() == []


# ---- storage and space


@every_stage
def test_a_full_disk_leaves_nothing_and_the_stage_is_done_again(
    run: Path, folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(shards.commit.os, "fsync", full)
        with pytest.raises(StorageFullError, match="no space left"):
            STAGES[folder](frozen(run))
    assert StageFolder(f"{run}/train", folder).shards_done() == []
    assert not list(Path(run, "train", folder).rglob("*.parquet"))
    assert STAGES[folder](frozen(run)).samples > 0


@every_stage
def test_a_storage_that_fails_changes_no_byte(run: Path, folder: str, s3: Any) -> None:
    """503s, cuts, resets, lost and late answers of S3, in reading and in the middle of uploads."""
    STAGES[folder](frozen(run))
    alone = frozen(run).bytes(folder, SHARD)
    shutil.rmtree(run / "train" / folder)
    shutil.rmtree(run / "train/embeddings", ignore_errors=True)
    for path in (p for p in run.rglob("*") if p.is_file()):
        s3.put(f"run/{path.relative_to(run)}", path.read_bytes())
    for kind, more in (
        ("status", {}),
        ("cut_response", {"keep": 100}),
        ("lose_response", {}),
        ("delay", {"seconds": 0.2}),
    ):
        s3.fail(kind, "GET", "run/", times=2, **more)
    for kind, more in (("cut_request", {"keep": 50}), ("status", {}), ("lose_response", {})):
        s3.fail(kind, "PUT", "run/", times=1, **more)
    config: Config = config_of(run, **FROZEN)
    at = Stages(config.model_copy(update={"run": s3.url("run")}))
    STAGES[folder](at)
    done = StageFolder(s3.url("run/train"), folder)
    (output,) = done.marker(SHARD).outputs
    assert done.store.read(done.locate(output)) == alone
    assert all(fault.met for fault in s3.proxy.faults) and s3.uploads() == []
