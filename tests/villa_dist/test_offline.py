"""The offline pass: one decode an image, the same bytes however it is done, bounded memory, timings of every part."""

from __future__ import annotations

import gc
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from offline_run import Stages, config_of, ingested, write_models

import shards.decode
from shards.commit import StageFolder
from shards.errors import ShardError
from shards.reader import BaseShard
from shards.sample import ALL, bound, chosen
from shards.work import run_here
from villa_dist.config import Config
from villa_dist.observe import Timers
from villa_dist.stages import windows as windows_module
from villa_dist.stages.windows import ReadAhead, windows

SHARDS = ["000000", "000001", "000002"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with base shards, vocabulary and models; tests work on copies or write folders of their own."""
    run = tmp_path_factory.mktemp("offline") / "run"
    config = ingested(run)
    write_models(config, "frozen")
    return run


@pytest.fixture
def run(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "run"))


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Sizes of all images decoded, by whatever part of the code."""
    seen: list[int] = []
    original = shards.decode.to_rgb

    def counted(image: Any) -> np.ndarray:
        seen.append(image.size[0])
        return original(image)

    monkeypatch.setattr(shards.decode, "to_rgb", counted)
    return seen


def images(config: Config, names: list[str] = SHARDS) -> int:
    return sum(len(BaseShard(StageFolder(f"{config.run}/train", "base"), s)) for s in names)


@pytest.mark.parametrize("encoder", ["end_to_end", "frozen"])
def test_one_decode_an_image_a_stage_and_fused_pairs_are_the_same_bytes(
    run: Path, decoded: list[int], encoder: str
) -> None:
    """Proposals from pixels, windows of five images, a batch of at most three."""
    given = {"regions": {"proposals": "segments", "batch_images": 5, "batch_boxes": 90, "top_k": 30}}
    config = config_of(run, mapping={"encoder": encoder}, pairs={"objectness": 0.5}, **given)
    stages, total = Stages(config), images(config)
    kept = bound(SHARDS, 0.4)
    regions = stages.regions(SHARDS, keep=kept)
    assert len(decoded) == total == sum(m.counts["decoded"] for m in regions)
    if encoder == "frozen":
        with_embeddings = {p.stem for p in (run / "train/embeddings").glob("*.parquet")}
        assert with_embeddings == {s for s in SHARDS if chosen(s, kept)} and len(with_embeddings) == 2

    decoded.clear()
    two = stages.pairs("two", SHARDS, fused=False)
    stored = [s for s in SHARDS if encoder == "frozen" and chosen(s, kept)]
    assert len(decoded) == total - images(config, stored), "features that were kept are not made again"
    assert [m.counts["decoded"] > 0 for m in two] == [s not in stored for s in SHARDS]

    decoded.clear()
    fused = stages.pairs("fused", SHARDS, fused=True)
    assert len(decoded) == total == sum(m.counts["decoded"] for m in fused)
    for shard, a, b in zip(SHARDS, two, fused, strict=True):
        assert stages.bytes("two", shard) == stages.bytes("fused", shard)
        assert {**a.counts, "decoded": 0} == {**b.counts, "decoded": 0} and a.counts["pairs"] > 0


def test_grid_regions_decode_nothing(run: Path, decoded: list[int]) -> None:
    markers = Stages(config_of(run)).regions(SHARDS, keep=ALL)
    assert decoded == [] and all(m.counts["decoded"] == 0 and m.counts["regions"] > 0 for m in markers)


def test_threads_and_reading_ahead_change_no_byte(run: Path) -> None:
    one = Stages(config_of(run, regions={"batch_images": 5}))
    one.pairs("one", SHARDS, fused=True)
    many = Stages(config_of(run, regions={"batch_images": 5, "decode_threads": 4}))
    params = {"model": f"{run}/models/end_to_end", "vlm": "", "regions": "b" * 16}
    run_here(many.request("pairs", "many", **params), SHARDS, lambda shard: None)
    for shard in SHARDS:
        assert one.bytes("one", shard) == many.bytes("many", shard)


def test_every_part_is_timed(run: Path) -> None:
    marker = Stages(config_of(run, regions={"proposals": "segments"})).pairs("timed", SHARDS[:1], fused=True)[0]
    parts = {"read", "decode", "propose", "extract", "embed", "map", "write", "wait"}
    assert set(marker.seconds) == parts and all(s > 0 for s in marker.seconds.values())


def test_windows_hold_so_many_images_and_pixels(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = BaseShard(StageFolder(f"{run}/train", "base"), SHARDS[0])
    config = config_of(run, regions={"batch_images": 6})
    found = list(windows(base, config, Timers(), pixels=True))
    assert [len(w) for w in found[:-1]] == [6] * (len(found) - 1) and sum(map(len, found)) == len(base)
    area = found[0][0].width * found[0][0].height
    monkeypatch.setattr(windows_module, "HELD_PIXELS", 2 * area)
    smaller = list(windows(base, config, Timers(), pixels=True))
    assert max(sum(s.width * s.height for s in w) for w in smaller if len(w) > 1) <= 2 * area
    assert [s.key for w in smaller for s in w] == base.keys == [s.key for w in found for s in w]
    monkeypatch.setattr(windows_module, "HELD_PIXELS", 1)
    assert all(len(w) == 1 for w in windows(base, config, Timers(), pixels=True)), "one image that is over stands alone"


@pytest.mark.parametrize("threads", [1, 3])
def test_at_most_two_windows_are_decoded_ahead_of_a_slow_stage(run: Path, decoded: list[int], threads: int) -> None:
    base = BaseShard(StageFolder(f"{run}/train", "base"), SHARDS[0])
    config = config_of(run, regions={"batch_images": 4, "decode_threads": threads})
    on_their_way = 1 + (0 if threads == 1 else 2 * threads)  # the first of the window after, and what the threads hold
    for number, _ in enumerate(windows(base, config, Timers(), pixels=True)):
        time.sleep(0.1)
        assert len(decoded) <= 4 * (number + 2) + on_their_way


def test_a_stage_that_stops_midway_leaves_no_thread_at_work(run: Path, decoded: list[int]) -> None:
    base = BaseShard(StageFolder(f"{run}/train", "base"), SHARDS[0])
    opened = windows(base, config_of(run, regions={"batch_images": 1}), Timers(), pixels=True)
    next(opened)
    opened.close()
    gc.collect()
    time.sleep(0.1)
    assert len(decoded) <= 4 < len(base)


def test_a_shard_changed_after_its_commit_is_refused(run: Path) -> None:
    tar = run / "train/base/000001.tar"
    data = bytearray(tar.read_bytes())
    data[600] ^= 1
    tar.write_bytes(data)
    stages = Stages(config_of(run))
    with pytest.raises(ShardError, match="no longer has the content"):
        stages.pairs("refused", ["000001"], fused=True)
    assert stages.pairs("refused", ["000000"], fused=True)[0].samples > 0


def test_reading_ahead_of_a_shard_that_is_bad_or_gone_fails_only_when_it_is_asked_for(run: Path) -> None:
    (run / "train/base/000001.tar").unlink()
    ahead = ReadAhead(StageFolder(f"{run}/train", "base"))
    for shard in ("000001", "nowhere", "000000"):
        ahead.begin(shard)
    assert len(ahead.open("000000", Timers())) > 0
    with pytest.raises(ShardError, match="is missing"):
        ahead.open("000001", Timers())


def test_embeddings_that_do_not_fit_their_regions_are_an_error(run: Path) -> None:
    config = config_of(run, mapping={"encoder": "frozen"}, regions={"grid": [2, 2]})
    Stages(config).regions(SHARDS[:1], keep=ALL)
    shutil.rmtree(run / "train/regions")
    other = Stages(config_of(run, mapping={"encoder": "frozen"}, regions={"grid": [3, 3]}))
    other.regions(SHARDS[:1], keep=0)
    with pytest.raises(ShardError, match=r"embeddings of \d+ regions"):
        other.pairs("pairs", SHARDS[:1], fused=False)


def test_a_sample_of_shards_goes_by_name_alone() -> None:
    names = [f"{n:06d}" for n in range(200)]
    some = {s for s in names if chosen(s, bound(names, 0.1))}
    assert len(some) == 20 and some == {s for s in reversed(names) if chosen(s, bound(names[::-1], 0.1))}
    more = {s for s in names if chosen(s, bound(names, 0.3))}
    assert some < more and len(more) == 60
    assert len([s for s in names if chosen(s, bound(names, 1e-9))]) == 1, "never none"
    assert all(chosen(s, bound(names, 1.0)) for s in names) and bound(names, 1.0) == ALL
