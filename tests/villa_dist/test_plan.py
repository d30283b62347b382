"""The plan: arithmetic by hand, samples at even distances, and a trial that leaves nothing behind."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from offline_run import config_of

from shards.errors import VillaError
from shards.tar import TarWriter
from villa_dist.planning.estimate import Load, Means, Measured, lines, size, stage_estimate, total
from villa_dist.planning.measure import loads, measure, small_config, spaced, trial
from villa_dist.runner import LocalRunner

PARTS = {"wait": 1.0, "decode": 5.0, "embed": 8.0, "write": 1.0}  # 10 s of a worker
MEASURED = Measured("regions", 100, PARTS, 3.0, 5_000, {"regions": 200, "embeddings": 1_000}, {"regions": 900}, True)


def test_a_stage_is_multiplied_and_the_last_round_counts_whole() -> None:
    found = stage_estimate(MEASURED, Load(1_000, 10, kept=500), Means(4, gpus=0.5, price=2.0))
    assert found["worker_hours"] == round(100 / 3600, 4), "0.1 s an image; decoding is beside it"
    assert found["seconds"] == 3.0 + 3 * 10.0, "ten shards of 10 s on four workers: three rounds, and the start"
    assert found["gpu_hours"] == round(100 * 0.5 / 3600, 4)
    assert (found["bytes_read"], found["storage"]) == (50_000, {"regions": 2_000, "embeddings": 5_000})
    assert found["bytes_per_second"] == round(57_000 / 33.0) and found["makes"] == {"regions": 9_000}
    assert found["binding"] == {"resource": "device, embedding", "share": 0.8}
    assert found["price"] == round(33 / 3600 * 4 * 2.0, 4)


def test_the_whole_names_the_stage_that_binds() -> None:
    means = Means(1)
    short = Measured("ingest", 100, {"decode": 1.0}, 0.0, 5_000, {"base": 5_000})
    stages = {n: stage_estimate(m, Load(100, 1), means) for n, m in (("ingest", short), ("regions", MEASURED))}
    whole = total(stages, means)
    assert whole["seconds"] == 14.0 and whole["storage"] == 5_200 and "price" not in whole
    assert whole["binding"]["stage"] == "regions" and whole["binding"]["resource"] == "device, embedding"
    told = "\n".join(lines(stages, whole, means))
    assert "what binds: regions (93% of the time), by device, embedding" in told


def test_nothing_to_do_takes_no_time() -> None:
    found = stage_estimate(MEASURED, Load(0, 0), Means(2))
    assert (found["seconds"], found["bytes_read"], found["images_per_second"]) == (0.0, 0, None)


@pytest.mark.parametrize(
    ("count", "said"), [(0, "0 B"), (999, "999 B"), (1500, "1.5 kB"), (2.5e12, "2.5 TB"), (9e15, "9.0 PB")]
)
def test_sizes_are_said_in_powers_of_a_thousand(count: float, said: str) -> None:
    assert size(count) == said


@given(st.integers(0, 500), st.integers(1, 40))
def test_samples_are_taken_at_even_distances(number: int, most: int) -> None:
    seen, kept = spaced(iter(range(number)), most)
    assert seen == number and len(kept) == min(number, most) and kept == sorted(set(kept))
    assert not kept or kept[0] == 0
    gaps = [b - a for a, b in zip(kept, kept[1:], strict=False)]
    if gaps:
        assert max(gaps) <= 2 * min(gaps) and number - kept[-1] <= 4 * min(gaps), "spread over all of them"


def tars(folder: Path, *, images: int, shards: int, broken: bool = False) -> None:
    import numpy as np

    from villa_dist.docmnist.generate import png

    folder.mkdir()
    for shard in range(shards):
        with open(folder / f"s{shard}.tar", "wb") as file:
            tar = TarWriter(file)
            for n in range(images):
                pixels = np.random.default_rng(n).integers(0, 256, (40, 40, 3), dtype=np.uint8)
                tar.add(f"{shard}-{n}.png", b"no image" if broken else png(pixels))
                tar.add(f"{shard}-{n}.txt", b"a red dog")
            tar.close()


@pytest.mark.parametrize("fused", [False, True])
def test_a_trial_measures_every_stage_and_leaves_nothing(tmp_path: Path, fused: bool) -> None:
    tars(tmp_path / "in", images=30, shards=2)
    data = {"source": "shards", "train": str(tmp_path / "in")}
    words = {"attributes": [{"phrase": "dog"}, {"phrase": "red"}], "min_count": 50}
    sections = {"data": data, "vocabulary": words, "mapping": {"encoder": "frozen"}, "pairs": {"fused": fused}}
    config = config_of(tmp_path / "run", **sections, regions={"keep_embeddings": 0.5})
    with trial(config, shards=4, images=6) as (small, source):
        measured = measure(config, small, LocalRunner(), 1)
        wanted = loads(config, source)
    assert not (tmp_path / "run.plan").exists() and not (tmp_path / "run").exists()
    assert list(measured) == ["ingest", "vocabulary", "regions", "pairs"] == list(wanted)
    assert all(m.images == 24 and m.bytes_written for m in measured.values()), "two tars make four small shards"
    assert measured["regions"].counts["regions"] == 24 * 9 and measured["regions"].bytes_written["embeddings"] > 24 * 9
    assert "embed" in measured["pairs"].seconds
    assert "propose" in measured["pairs"].seconds if fused else "propose" not in measured["pairs"].seconds
    assert abs(source.images["train"] - 60) <= 1, "from bytes"
    assert wanted["pairs"].images == source.images["train"] and wanted["ingest"].shards == 2
    assert (wanted["regions"].shards, wanted["regions"].kept) == (1 if fused else 2, round(source.images["train"] / 2))


def test_data_that_is_all_refused_cannot_be_planned(tmp_path: Path) -> None:
    tars(tmp_path / "in", images=5, shards=1, broken=True)
    config = config_of(tmp_path / "run", data={"source": "shards", "train": str(tmp_path / "in")})
    with pytest.raises(VillaError, match="could be used"), trial(config, shards=1, images=3) as (small, _):
        measure(config, small, LocalRunner(), 1)
    assert not (tmp_path / "run.plan").exists()


def test_the_trial_of_docmnist_makes_as_many_images_as_it_is_told(tmp_path: Path) -> None:
    small = small_config(config_of(tmp_path / "run"), 3, 7)
    assert (small.docmnist.images.train, small.docmnist.shard_images) == (21, 7) and small.run.endswith("run.plan")
