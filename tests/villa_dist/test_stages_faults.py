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
from shards.collect import Collector
from shards.commit import Marker, StageFolder
from shards.decode import decode_image
from shards.digest import sha256
from shards.errors import ShardError, StorageFullError
from shards.reader import BaseShard
from shards.sample import ALL
from villa_dist.config import Config
from villa_dist.data.samples import Samples

SHARD = "000000"
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
