"""Batches of mixed data sets, of drawn and changed regions, by any number of ranks and threads; pairs for webdataset."""

from __future__ import annotations

import pickle
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from shards import manifest, sidecar
from shards.commit import StageFolder
from shards.decode import sample_text
from shards.errors import ShardError, VillaError
from shards.reader import BaseShard
from shards.store import Store
from villa_dist import claims
from villa_dist.attributes import vocabulary
from villa_dist.attributes.phrases import Phrase
from villa_dist.config import Config, MixConfig
from villa_dist.config_file import load
from villa_dist.data import webdataset_pairs
from villa_dist.data.augment import Augment
from villa_dist.data.loader import Batches, Changes, PairBatch, Recipe
from villa_dist.data.mixture import MixedOrder, MixedSamples, turns_before, whole_weights
from villa_dist.data.others import joinable, others
from villa_dist.data.sampler import RegionSampling
from villa_dist.data.samples import Samples
from villa_dist.docmnist.words import ATTRIBUTES
from villa_dist.stages.base import StageRequest
from villa_dist.stages.ingest import units
from villa_dist.stages.registry import make_stage
from villa_dist.train import jobs

SIZES = {"one": 20, "two": 9}  # images


def made_run(place: Path, images: int, seed: int, phrases: tuple[str, ...] = ATTRIBUTES) -> Config:
    """DocMNIST images in shards of six with their true pairs, and a vocabulary."""
    given = [f"run={place}", f"docmnist.images.train={images}", "docmnist.shard_images=6", "docmnist.target=8"]
    config = load(None, [*given, f"seed={seed}"])
    stage, names = make_stage(StageRequest("ingest", "base", "train", config, "f")), units(config, "train")
    for unit in names:
        stage.process(unit.shard)
    for folder in ("base", "truth"):
        manifest.write(StageFolder(f"{place}/train", folder), [u.shard for u in names])
    counts = vocabulary.Counts(np.ones(len(phrases), np.int64), np.zeros(len(phrases), np.int64), images)
    words = vocabulary.build([Phrase(p) for p in phrases], counts, vocabulary.Choice())
    vocabulary.write(Store(str(place)), words, {})
    return config


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Config]:
    place = tmp_path_factory.mktemp("runs")
    return {name: made_run(place / name, images, n) for n, (name, images) in enumerate(SIZES.items())}


def of(config: Config, **asked: Any) -> Samples:
    return Samples(f"{config.run}/train", "truth", images=True, max_pixels=10_000, texts=True, **asked)


def mix(runs: dict[str, Config], weights: tuple[float, float] = (1.0, 2.0)) -> MixedSamples:
    return MixedSamples([of(c) for c in runs.values()], weights)


EVERY = Recipe(
    2,
    augment=Augment((0.5, 1.0), 0.5, 0.2, counterpart=np.arange(len(ATTRIBUTES))),
    regions=RegionSampling(2, 0.7, np.arange(1.0, len(ATTRIBUTES) + 1)),
)


def batches(samples: Samples, rank: int = 0, world: int = 1, start: int = 0, stop: int = 6, **recipe: Any) -> Batches:
    asked = {"seed": 3, "window": 8, "batch_images": 8, "recipe": replace(EVERY, **recipe)}
    return Batches(samples, rank=rank, world=world, start=start, stop=stop, **asked)


def content(batch: PairBatch) -> list[Any]:
    tensors = (batch.pixels, batch.boxes, batch.image_of, batch.region, batch.attribute, batch.sizes)
    return [batch.texts, batch.images, *(t.numpy().tobytes() for t in tensors if t is not None)]


def by_image(batch: PairBatch) -> list[Any]:
    """Each image's pixels, boxes and pairs, whatever batch it is in."""
    assert batch.pixels is not None
    found = []
    for n in range(batch.images):
        mine = (batch.image_of == n).nonzero()[:, 0]
        pairs = torch.isin(batch.region, mine)
        region = (batch.region[pairs] - (mine[0] if len(mine) else 0)).tolist()
        found.append((batch.pixels[n].numpy().tobytes(), batch.texts[n], batch.boxes[mine].tolist(), region))
        found[-1] += (batch.attribute[pairs].tolist(),)
    return found


# ---- the mixture


WEIGHTS = st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=5)


@given(WEIGHTS, st.integers(0, 3000))
def test_each_set_has_its_share_of_any_beginning(weights: list[float], position: int) -> None:
    whole = whole_weights(weights)
    assert np.allclose(np.array(whole) / sum(whole), np.array(weights) / sum(weights), rtol=1e-2)
    turns = turns_before(whole, position)
    assert sum(turns) == position
    assert all(abs(t - position * w / sum(whole)) < max(len(whole), 1.01) for t, w in zip(turns, whole, strict=True))


@given(WEIGHTS)
def test_turns_are_found_without_those_before(weights: list[float]) -> None:
    """Against going through the stream one by one, in exact fractions."""
    from fractions import Fraction

    whole, turns = whole_weights(weights), [0] * len(weights)
    for position in range(150):
        assert turns_before(whole, position) == turns
        due = [Fraction(2 * t + 1, 2 * w) for t, w in zip(turns, whole, strict=True)]
        turns[due.index(min(due))] += 1


@given(
    st.lists(st.lists(st.integers(0, 7), min_size=1, max_size=4).filter(any), min_size=1, max_size=3),
    st.data(),
)
def test_every_set_shows_each_sample_once_an_epoch(sizes: list[list[int]], data: st.DataObject) -> None:
    weights = [data.draw(st.sampled_from([0.5, 1.0, 2.0, 3.7])) for _ in sizes]
    order = MixedOrder(sizes, weights, 5, 4)
    stream = order.locate(0, 240)
    cuts = sorted(data.draw(st.lists(st.integers(0, 240), max_size=4)))
    parts = [order.locate(a, b) for a, b in zip([0, *cuts], [*cuts, 240], strict=True)]
    assert np.array_equal(np.concatenate(parts), stream), "from any position on, in any parts"
    first = 0
    for counts in sizes:
        mine = stream[(stream[:, 1] >= first) & (stream[:, 1] < first + len(counts))]
        whole = {(first + s, r) for s, n in enumerate(counts) for r in range(n)}
        epochs = len(mine) // len(whole)
        for epoch in range(epochs):
            places = mine[mine[:, 0] == epoch][:, 1:].tolist()
            assert len(places) == len(whole) and {tuple(p) for p in places} == whole
        assert mine[:, 0].tolist() == sorted(mine[:, 0].tolist()) and (mine[:, 0] <= epochs).all()
        first += len(counts)


def test_a_mix_of_one_is_the_order_of_that_one(runs: dict[str, Config]) -> None:
    alone, mixed = of(runs["one"]), MixedSamples([of(runs["one"])], [3.0])
    assert np.array_equal(alone.order(3, 8).locate(0, 90), mixed.order(3, 8).locate(0, 90))


def test_mixed_samples_are_those_of_their_sets_and_their_digest_binds_all(runs: dict[str, Config]) -> None:
    both = mix(runs)
    assert both.manifest.total == sum(SIZES.values())
    assert both.manifest.samples == (6, 6, 6, 2, 6, 3)
    assert both.manifest.shards[3:5] == ("0/000003", "1/000000")
    assert both.row(5, 2).text == of(runs["two"]).row(1, 2).text
    assert both.key(5, 2) == of(runs["two"]).key(1, 2)
    one, two = (of(c) for c in runs.values())
    digests = [
        MixedSamples(s, w).manifest.digest
        for s, w in (([one, two], (1, 2)), ([one, two], (1, 3)), ([two, one], (1, 2)))
    ]
    assert len({*digests, one.manifest.digest}) == 4 and both.manifest.digest == mix(runs).manifest.digest


def test_other_runs_must_have_the_same_vocabulary_and_all_their_pairs(runs: dict[str, Config], tmp_path: Path) -> None:
    words = vocabulary.read(Store(runs["one"].run))
    found = others([MixConfig(train=f"{runs['two'].run}/train", weight=2.0)], "truth", words.fingerprint)
    assert (found[0].dataset_url, found[0].weight, found[0].base.total) == (f"{runs['two'].run}/train", 2.0, 9)
    made_run(tmp_path / "strange", 2, 0, (*ATTRIBUTES[1:], "umbrella"))
    with pytest.raises(
        VillaError, match=r"data\.mix: .*/strange has another vocabulary \(fingerprint [0-9a-f]{16}, this run's"
    ):
        others([MixConfig(train=f"{tmp_path}/strange")], "truth", words.fingerprint)
    with pytest.raises(VillaError, match=r"/nowhere is no run with a vocabulary\.parquet"):
        others([MixConfig(train=f"{tmp_path}/nowhere")], "truth", words.fingerprint)
    with pytest.raises(ShardError, match=r"pairs.* is not complete"):
        others([MixConfig(train=runs["two"].run)], "pairs", words.fingerprint)


def test_a_job_mixes_what_the_config_names(runs: dict[str, Config]) -> None:
    config, words = runs["one"], vocabulary.read(Store(runs["one"].run))
    own = of(config)
    assert jobs.mixed(config, "truth", own, words) is own and jobs.images_of(config, "ground_truth", 20) == 20
    set_ = {"mix": [MixConfig(train=runs["two"].run, weight=2.0)]}
    both = config.model_copy(update={"data": config.data.model_copy(update=set_)})
    samples = jobs.mixed(both, "truth", own, words)
    assert isinstance(samples, MixedSamples) and samples.manifest.digest == mix(runs).manifest.digest
    assert jobs.images_of(both, "ground_truth", 20) == 29 and jobs.images_of(both, "one_to_one", 20) == 20
    only = config.model_copy(update={"data": config.data.model_copy(update={**set_, "own_weight": 0.0})})
    assert jobs.images_of(only, "ground_truth", 20) == jobs.mixed(only, "truth", own, words).manifest.total == 9
    bound = [claims.training(c, "ground_truth").config for c in (config, both, only)]
    assert "mix" not in bound[0] and bound[1]["mix"][0] == 1.0 and bound[2]["mix"][0] == 0.0
    assert "mix" not in claims.training(both, "one_to_one").config


def test_attributes_are_counted_in_the_sidecars(runs: dict[str, Config]) -> None:
    train = runs["one"].train.model_copy(update={"regions_per_image": 2, "attribute_balance": 0.5})
    config = runs["one"].model_copy(update={"train": train})
    counts = np.zeros((2, len(ATTRIBUTES)))
    for k, run in enumerate(runs.values()):
        samples = of(run)
        for shard, size in enumerate(samples.manifest.samples):
            for row in range(size):
                np.add.at(counts[k], samples.row(shard, row).attribute, 1)
    alone = jobs.sampling(config, of(runs["one"]), len(ATTRIBUTES))
    both = jobs.sampling(config, mix(runs), len(ATTRIBUTES))
    assert alone is not None and both is not None
    assert (alone.per_image, alone.balance) == (2, 0.5)
    met = counts.all(0)
    assert alone.frequency[met] == pytest.approx(counts[0, met] / 20)
    assert both.frequency[met] == pytest.approx((counts[0] / 20 / 3 + counts[1] / 9 * 2 / 3)[met])


def test_settings_that_are_off_bind_nothing(runs: dict[str, Config]) -> None:
    bound = claims.training(runs["one"], "ground_truth").config["steps"]
    assert not {"augment", "regions_per_image", "attribute_balance", "loader_workers"} & set(bound)
    train = runs["one"].train.model_copy(update={"regions_per_image": 4})
    assert (
        claims.training(runs["one"].model_copy(update={"train": train}), "ground_truth").config["steps"][
            "regions_per_image"
        ]
        == 4
    )


# ---- the same batches for all


@pytest.mark.parametrize("world", [2, 4, 8])
def test_any_number_of_ranks_sees_the_same_mixed_images_drawn_and_changed_alike(
    runs: dict[str, Config], world: int
) -> None:
    whole = batches(mix(runs))
    ranks = [batches(mix(runs), rank, world) for rank in range(world)]
    for step in range(4):
        expected = whole.batch(step)
        assert [image for r in ranks for image in by_image(r.batch(step))] == by_image(expected)
        assert torch.bincount(expected.image_of, minlength=8).max() == 2


@pytest.mark.parametrize("workers", [0, 2, 5])
def test_threads_change_no_byte_of_any_batch_nor_does_resuming(runs: dict[str, Config], workers: int) -> None:
    expected = [(step, content(batch)) for step, batch in batches(mix(runs))]
    assert [step for step, _ in expected] == list(range(6)) and len({str(c) for _, c in expected}) == 6
    assert [(s, content(b)) for s, b in batches(mix(runs), workers=workers)] == expected
    assert [(s, content(b)) for s, b in batches(mix(runs), start=4, workers=workers)] == expected[4:]


@pytest.mark.parametrize("workers", [1, 3])
def test_leaving_early_ends_all_threads(runs: dict[str, Config], workers: int) -> None:
    for _, _batch in batches(mix(runs), stop=10_000, workers=workers):
        break
    until = time.monotonic() + 10
    while time.monotonic() < until and (left := [t.name for t in threading.enumerate() if t.name.startswith("villa-")]):
        time.sleep(0.02)
    assert not left


def test_little_is_made_ahead(runs: dict[str, Config]) -> None:
    """While nothing is taken, threads stop at the batches in the queue and one more of rows."""
    samples, seen = mix(runs), []
    plain = samples.row
    samples.row = lambda index, row: (seen.append((index, row)), plain(index, row))[1]  # type: ignore[method-assign,return-value]
    running = iter(batches(samples, stop=10_000, workers=3))
    next(running)
    before = -1
    while before != len(seen):
        before = len(seen)
        time.sleep(0.3)
    running.close()  # type: ignore[attr-defined]
    assert len(seen) <= 8 * (1 + 3 + 1 + 1 + 1), "taken, queued, put, joined, and rows on their way"


def broken(config: Config, tmp_path: Path, damage: Any) -> Samples:
    """A copy of a data set whose base shard 000001 is damaged by `damage(path of the tar, offset and size of an image)`."""
    copy = tmp_path / "run"
    shutil.copytree(config.run, copy)
    base = BaseShard(StageFolder(f"{copy}/train", "base"), "000001")
    ((_, at, size),) = [m for m in base.index.members(2) if m[0] == "png"]
    damage(copy / "train/base/000001.tar", at, size)
    return Samples(f"{copy}/train", "truth", images=True, max_pixels=10_000)


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_an_image_that_cannot_be_decoded_is_named(runs: dict[str, Config], tmp_path: Path, workers: int) -> None:
    def zeroed(tar: Path, at: int, size: int) -> None:
        data = bytearray(tar.read_bytes())
        data[at : at + size] = bytes(size)
        tar.write_bytes(data)

    damaged = batches(broken(runs["one"], tmp_path, zeroed), workers=workers)
    with pytest.raises(
        ShardError, match=r"shard .*000001\.tar: sample '000001-00002' cannot be used: undecodable_image"
    ):
        list(damaged)


@pytest.mark.parametrize("workers", [0, 3])
def test_an_error_of_any_other_kind_says_at_which_sample(runs: dict[str, Config], workers: int) -> None:
    samples = of(runs["one"])
    plain = samples.row

    def fails(index: int, row: int) -> Any:
        if (index, row) == (1, 2):
            raise OSError("connection reset")
        return plain(index, row)

    samples.row = fails  # type: ignore[method-assign]
    with pytest.raises(OSError, match="connection reset") as caught:
        list(batches(samples, workers=workers))
    assert caught.value.__notes__ == ["while sample '000001-00002' of shard 000001 was loaded"]


# ---- base and pairs belong together


def recommitted(dataset: str, shard: str, stage: str, table: Any, **marker: Any) -> None:
    folder = StageFolder(dataset, stage)
    old = folder.marker(shard)
    folder.store.remove(f"{shard}.done.json")
    with folder.attempt(shard) as attempt:
        attempt.write(f"{shard}.parquet", sidecar.to_bytes(table))
        attempt.commit(lambda outputs: replace(old, outputs=outputs, **marker))


def test_a_sidecar_of_other_rows_shards_or_tars_is_refused(runs: dict[str, Config], tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(runs["one"].run, copy)
    dataset = f"{copy}/train"
    own = sidecar.from_bytes(Store(dataset).read("truth/000000.parquet"), "t")
    alien = sidecar.from_bytes(Store(dataset).read("truth/000001.parquet"), "t")
    for table, said in (
        (own.take([0, 1, 2, 4, 3, 5]), "row 3 has key '000000-00004', its base shard '000000-00003'"),
        (alien, "row 0 has key '000001-00000', its base shard '000000-00000'"),
        (own.slice(0, 5), "has 5 rows, its base shard 6 samples"),
    ):
        recommitted(dataset, "000000", "truth", table)
        with pytest.raises(ShardError, match=said):
            Samples(dataset, "truth", images=True, max_pixels=10_000).row(0, 0)
        with pytest.raises(ShardError, match=said):
            list(webdataset_pairs(str(copy), stage="truth"))
    base = BaseShard(StageFolder(dataset, "base"), "000000").marker.output(".tar").sha256
    recommitted(dataset, "000000", "truth", own, input_digest=base)
    Samples(dataset, "truth", images=True, max_pixels=10_000).row(0, 0)
    recommitted(dataset, "000000", "truth", own, input_digest=base[::-1])  # the same keys, of another tar
    with pytest.raises(ShardError, match=r"truth/000000 was made of another tar than .*base/000000"):
        Samples(dataset, "truth", images=True, max_pixels=10_000).row(0, 0)
    manifest.write(StageFolder(dataset, "truth"), ["000000", "000001", "000002"])
    with pytest.raises(ShardError, match="has not the shards and keys of"):
        joinable(dataset, "truth")


# ---- for other trainers


def test_webdataset_reads_images_with_their_pairs(runs: dict[str, Config], monkeypatch: pytest.MonkeyPatch) -> None:
    import webdataset as wds

    run = runs["one"].run
    source, found = of(runs["one"]), list(pickle.loads(pickle.dumps(webdataset_pairs(run, stage="truth"))))
    assert len(found) == SIZES["one"]
    at = 0
    for shard, size in enumerate(source.manifest.samples):
        for row in range(size):
            expected, sample = source.row(shard, row), found[at]
            assert sample["__key__"] == source.key(shard, row) and sample["text"] == expected.text
            assert np.array_equal(sample["image"], expected.pixels) and np.array_equal(sample["boxes"], expected.boxes)
            assert sample["region"].tolist() == expected.region.tolist()
            assert sample["phrase"] == [ATTRIBUTES[a] for a in sample["attribute"]]
            assert sample["attribute"].tolist() == expected.attribute.tolist() and (sample["score"] == 1).all()
            at += 1
    raw = next(iter(webdataset_pairs(f"{run}/train", stage="truth", decode=False)))
    members = BaseShard(StageFolder(f"{run}/train", "base"), "000000").sample(0)
    assert raw["image"] == members["png"] and raw["text"] == sample_text(members)
    piped = webdataset_pairs(run, stage="truth").compose(
        wds.shuffle(100), wds.to_tuple("__key__", "phrase"), wds.batched(4)
    )
    assert sorted(k for keys, _ in piped for k in keys) == [s["__key__"] for s in found]
    shared = []
    for rank in range(2):
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("WORLD_SIZE", "2")
        shared += [s["__key__"] for s in webdataset_pairs(run, stage="truth")]
    assert sorted(shared) == [s["__key__"] for s in found], "each shard on one rank"


def test_what_webdataset_cannot_read_is_named(runs: dict[str, Config], tmp_path: Path) -> None:
    with pytest.raises(VillaError, match=r"stage='embeddings' holds no pairs; give one of pairs, truth"):
        webdataset_pairs(runs["one"].run, stage="embeddings")
    with pytest.raises(VillaError, match="is no run with a vocabulary"):
        webdataset_pairs(str(tmp_path))
    with pytest.raises(ShardError, match="is not complete"):
        webdataset_pairs(runs["one"].run)


CHILD = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in what a shell starts in the background
from villa_dist.data.loader import Batches, Recipe
from villa_dist.data.samples import Samples
samples = Samples(sys.argv[1], "truth", images=True, max_pixels=10_000)
asked = dict(seed=0, window=8, batch_images=8, rank=0, world=1, start=0, stop=10**9)
for step, _ in Batches(samples, recipe=Recipe(workers=3), **asked):
    if step == 20:
        print("running", flush=True)
"""


def test_ctrl_c_ends_a_process_whose_threads_decode(runs: dict[str, Config]) -> None:
    root = Path(__file__).parents[2]
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, f"{runs['one'].run}/train"],
        cwd=root,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        assert child.stdout is not None and child.stdout.readline() == b"running\n"
        child.send_signal(signal.SIGINT)
        _, said = child.communicate(timeout=60)
    finally:
        child.kill()
    assert said.rstrip().endswith(b"KeyboardInterrupt") and child.returncode != 0


def test_all_of_a_batch_is_pinned_and_moved(runs: dict[str, Config], monkeypatch: pytest.MonkeyPatch) -> None:
    twice = batches(mix(runs), changes=(Changes(), Changes(turn=True)))
    plain = twice.batch(0)
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor + 1)
    twice.pin = True
    pinned = twice.batch(0)
    for before, after in ((plain, pinned), (plain.others[0], pinned.others[0])):
        assert before.pixels is not None and after.pixels is not None
        assert torch.equal(after.pixels, before.pixels + 1) and torch.equal(after.boxes, before.boxes + 1)
        assert after.texts == before.texts
    moved = plain.to(torch.device("meta"))
    assert moved.boxes.is_meta and moved.others[0].boxes.is_meta and plain.to(torch.device("cpu")) is plain
