"""From committed shards to batches: the same global batches for any number of ranks, from any step on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from shards import manifest, sidecar
from shards.collect import conservation
from shards.commit import StageFolder
from shards.errors import ShardError, VillaError
from villa_dist.config import MappingConfig
from villa_dist.config_file import load
from villa_dist.data.loader import Batches, Changes, Draws, PairBatch, Recipe
from villa_dist.data.samples import Samples
from villa_dist.data.transforms import TURNS, shift, stack, turned
from villa_dist.encoders.text import tokenize_words, word_bucket
from villa_dist.stages.base import StageRequest
from villa_dist.stages.ingest import units
from villa_dist.stages.registry import make_stage
from villa_dist.train.lessons import absence_draws, changes, check_groups, exclusive_groups

IMAGES = 20


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Twenty DocMNIST images in shards of six, with their true pairs."""
    run = tmp_path_factory.mktemp("run")
    config = load(
        None, [f"run={run}", f"docmnist.images.train={IMAGES}", "docmnist.shard_images=6", "docmnist.target=8"]
    )
    request = StageRequest("ingest", "base", "train", config, "f")
    stage = make_stage(request)
    names = [u.shard for u in units(config, "train")]
    for name in reversed(names):
        stage.process(name)
    for folder in ("base", "truth"):
        manifest.write(StageFolder(f"{run}/train", folder), names)
    return f"{run}/train"


def samples(dataset: str, stage: str | None = "truth") -> Samples:
    return Samples(dataset, stage, images=True, max_pixels=10_000)


def test_texts_of_a_sidecars_images_are_read_where_they_are_asked_for(dataset: str) -> None:
    asked = Samples(dataset, "truth", images=True, max_pixels=10_000, texts=True)
    for shard, row in ((0, 0), (2, 5)):
        assert asked.row(shard, row).text == samples(dataset, None).row(shard, row).text != ""
        assert samples(dataset).row(shard, row).text == ""


DRAWS = Draws(np.array([[0, 1], [2, 0], [3, 1]]), np.array([0.2, 0.7, 0.1]), IMAGES)
CHANGED = Recipe(2, (Changes(turn=True), Changes(recolour=True)), DRAWS)


def batches(
    dataset: str,
    rank: int = 0,
    world: int = 1,
    start: int = 0,
    stop: int = 5,
    move: int = 2,
    recipe: Recipe | None = None,
) -> Batches:
    return Batches(
        samples(dataset),
        seed=3,
        window=8,
        batch_images=8,
        rank=rank,
        world=world,
        recipe=recipe or Recipe(move),
        start=start,
        stop=stop,
    )


def equal(a: PairBatch, b: PairBatch) -> bool:
    tensors = ("pixels", "boxes", "image_of", "region", "attribute")
    return (
        a.texts == b.texts and a.images == b.images and all(torch.equal(getattr(a, n), getattr(b, n)) for n in tensors)
    )


def joined(parts: list[PairBatch]) -> PairBatch:
    images = np.cumsum([0] + [p.images for p in parts])
    regions = np.cumsum([0] + [len(p.boxes) for p in parts])
    return PairBatch(
        torch.cat([p.pixels for p in parts if p.pixels is not None]),
        [t for p in parts for t in p.texts],
        torch.cat([p.boxes for p in parts]),
        torch.cat([p.image_of + int(n) for p, n in zip(parts, images[:-1], strict=True)]),
        torch.cat([p.region + int(n) for p, n in zip(parts, regions[:-1], strict=True)]),
        torch.cat([p.attribute for p in parts]),
        None,
        int(images[-1]),
    )


def test_ingest_conserves_every_sample(dataset: str) -> None:
    stage = StageFolder(dataset, "base")
    found = manifest.read(stage)
    assert (found.total, found.came_in, found.samples) == (IMAGES, IMAGES, (6, 6, 6, 2))
    assert conservation(stage.marker(s) for s in found.shards).holds()
    assert manifest.read(StageFolder(dataset, "truth")).keys == found.keys


@pytest.mark.parametrize("recipe", [Recipe(2), CHANGED], ids=["shifted", "changed and drawn"])
@pytest.mark.parametrize("world", [2, 4, 8])
def test_any_number_of_ranks_sees_the_same_global_batches(dataset: str, world: int, recipe: Recipe) -> None:
    whole = batches(dataset, recipe=recipe)
    parts = [batches(dataset, rank, world, recipe=recipe) for rank in range(world)]
    for step in range(4):
        found, expected = [p.batch(step) for p in parts], whole.batch(step)
        assert equal(joined(found), expected)
        if recipe is CHANGED:
            assert [len(p.others) for p in [expected, *found]] == [1] * (world + 1)
            assert equal(joined([p.others[0] for p in found]), expected.others[0])
            assert not equal(expected, expected.others[0])
            assert expected.weight is not None
            assert torch.equal(torch.cat([p.weight for p in found if p.weight is not None]), expected.weight)
            assert expected.weight[1::2].tolist() == pytest.approx(
                [DRAWS.weight(*DRAWS.at(3, p)) for p in drawn_at(step)]
            )


def drawn_at(step: int) -> list[int]:
    """Every second position of a batch of eight."""
    return list(range(8 * step + 1, 8 * step + 8, 2))


def test_weights_make_means_over_batches_those_over_the_data_set() -> None:
    """Half of the samples come once in `images` each, half by their chances: weighted, every sample counts the same."""
    sizes = (6, 6, 6, 2)
    places = [(shard, row) for shard, size in enumerate(sizes) for row in range(size)]
    chance = {tuple(p): c for p, c in zip(DRAWS.place.tolist(), DRAWS.chance.tolist(), strict=True)}
    density = [0.5 / IMAGES + 0.5 * chance.get(place, 0.0) for place in places]
    assert sum(density) == pytest.approx(1.0)
    counted = [d * DRAWS.weight(*place) for d, place in zip(density, places, strict=True)]
    assert counted == pytest.approx([1 / IMAGES] * IMAGES)
    assert max(DRAWS.weight(*place) for place in places) == 2.0


def test_absence_draws_give_each_common_attribute_its_images() -> None:
    place = np.array([[0, 0], [0, 1], [1, 0], [1, 1]])
    said = np.array([[True, True], [False, True], [True, False], [True, False]])
    draws = absence_draws(place, said, 4)
    assert draws is not None
    assert draws.place.tolist() == [[0, 1], [1, 0], [1, 1]]
    assert draws.chance.tolist() == pytest.approx([0.5, 0.25, 0.25])
    assert absence_draws(place, np.ones((4, 2), bool), 4) is None
    assert absence_draws(place, np.ones((4, 0), bool), 4) is None


def test_groups_that_do_not_exist_are_named() -> None:
    config = MappingConfig.model_validate({"exclusive": ["colour"], "turned": ["shape", "colour"]})
    with pytest.raises(VillaError, match=r"mapping\.turned: no attribute is of the group 'shape'; .* 'colour', 'size'"):
        check_groups(config, ["colour", "size"])
    distinct, expert = changes(config.model_copy(update={"turned": ["colour"]}), ["colour", "size", "colour"])
    assert distinct == (Changes(turn=True), Changes())
    assert expert.tolist() == [0, 1, 0]
    assert exclusive_groups(config.model_copy(update={"turned": []}), ["size", "colour"]).tolist() == [-1, 0]


def test_draws_follow_their_weights_and_leave_every_second_place() -> None:
    drawn = [DRAWS.at(5, position) for position in range(4000)]
    assert drawn[::2] == [None] * 2000
    share = [sum(d == tuple(place) for d in drawn[1::2]) / 2000 for place in DRAWS.place.tolist()]
    assert share == pytest.approx([0.2, 0.7, 0.1], abs=0.04)
    assert drawn == [DRAWS.at(5, position) for position in range(4000)] != [DRAWS.at(6, p) for p in range(4000)]


def test_an_image_drawn_again_is_changed_otherwise(dataset: str) -> None:
    one = Recipe(2, (Changes(turn=True, recolour=True),), Draws(np.array([[0, 1]]), np.array([1.0]), IMAGES))
    pixels = [p for step in range(3) for p in batches(dataset, recipe=one).batch(step).pixels[1::2]]  # type: ignore[index]
    assert len({p.numpy().tobytes() for p in pixels}) > 8


@pytest.mark.parametrize("turn", range(TURNS))
def test_boxes_follow_what_is_turned(turn: int) -> None:
    """A box round the only bright pixels stays round them; one turn leaves all as it is."""
    pixels = np.zeros((7, 11, 3), np.uint8)
    pixels[1:3, 4:9] = 200
    found, boxes = turned(pixels, np.array([[4.0, 1.0, 9.0, 3.0]], np.float32), turn)
    assert found.shape == ((11, 7, 3) if turn & 4 else (7, 11, 3))
    rows, columns = np.nonzero(found[..., 0])
    assert boxes[0].tolist() == [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    assert (turn == 0) == (found.shape == pixels.shape and bool((found == pixels).all()))


def test_the_turns_are_all_different_and_recolouring_keeps_grey(dataset: str) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (6, 6, 3), np.uint8)
    assert len({turned(pixels, np.zeros((0, 4)), t)[0].tobytes() for t in range(TURNS)}) == TURNS
    batch = batches(dataset, recipe=Recipe(0, (Changes(recolour=True),))).batch(0)
    plain = batches(dataset, recipe=Recipe(0)).batch(0)
    assert batch.pixels is not None and plain.pixels is not None
    assert not torch.equal(batch.pixels, plain.pixels)
    assert torch.equal(batch.pixels.sort(1).values, plain.pixels.sort(1).values)
    assert batch.others == ()
    assert batch.weight is None


def test_a_batch_size_that_does_not_divide_is_refused(dataset: str) -> None:
    with pytest.raises(ValueError, match="8 images is not divisible by 3 ranks"):
        batches(dataset, 0, 3)


def test_resuming_continues_with_the_very_next_batch(dataset: str) -> None:
    whole = list(batches(dataset, stop=6))
    again = list(batches(dataset, start=4, stop=6))
    assert [step for step, _ in whole] == list(range(6))
    assert [step for step, _ in again] == [4, 5]
    assert all(equal(a[1], b[1]) for a, b in zip(whole[4:], again, strict=True))


def test_an_epoch_shows_every_image_once_with_its_own_boxes_and_attributes(dataset: str) -> None:
    source = samples(dataset)
    direct = {}
    for shard in range(4):
        for row in range(source.manifest.samples[shard]):
            found = source.row(shard, row)
            assert found.pixels is not None
            direct[found.pixels.tobytes()] = (found.boxes, found.region, found.attribute)
    assert len(direct) == IMAGES
    seen = []
    for _, batch in batches(dataset, stop=5, move=0):  # 40 images: two epochs
        assert batch.pixels is not None
        for n in range(batch.images):
            pixels = batch.pixels[n].permute(1, 2, 0).contiguous().numpy().tobytes()
            boxes, region, attribute = direct[pixels]
            mine = batch.image_of == n
            first = int(mine.nonzero()[0])
            assert np.array_equal(batch.boxes[mine].numpy(), boxes)
            pairs = (batch.image_of[batch.region] == n).nonzero()[:, 0]
            assert (batch.region[pairs] - first).tolist() == region.tolist()
            assert batch.attribute[pairs].tolist() == attribute.tolist()
            seen.append(pixels)
    assert set(seen[:IMAGES]) == set(seen[IMAGES:]) == set(direct)
    assert seen[:IMAGES] != seen[IMAGES:]


def test_whole_images_come_with_their_text(dataset: str) -> None:
    row = samples(dataset, None).row(0, 0)
    assert " . " in row.text
    assert len(row.boxes) == 0


def test_an_error_while_loading_reaches_the_consumer(dataset: str) -> None:
    broken = batches(dataset)
    broken.samples.dataset_url = dataset + "/nowhere"
    with pytest.raises(ShardError, match="nowhere"):
        list(broken)


def test_leaving_early_stops_the_loader(dataset: str) -> None:
    import threading

    for _, _batch in batches(dataset, stop=1000):
        break
    assert not [t for t in threading.enumerate() if t.name == "villa-loader" and t.is_alive()]


def test_a_sidecar_out_of_step_is_refused(dataset: str, tmp_path: Path) -> None:
    import shutil

    copy = tmp_path / "train"
    shutil.copytree(dataset, copy)
    stage = StageFolder(str(copy), "truth")
    table = sidecar.from_bytes(stage.store.read("000000.parquet"), "t")
    stage.store.remove("000000.done.json")
    from dataclasses import replace

    old = StageFolder(dataset, "truth").marker("000000")
    with stage.attempt("000000") as attempt:
        attempt.write("000000.parquet", sidecar.to_bytes(table.take([1, 0, 2, 3, 4, 5])))
        attempt.commit(lambda outputs: replace(old, outputs=outputs))
    with pytest.raises(ShardError, match=r"row 0 has key '000000-00001', its base shard '000000-00000'"):
        samples(str(copy)).row(0, 0)


def test_a_shift_moves_pixels_and_is_a_pure_function() -> None:
    pixels = np.random.default_rng(0).integers(1, 256, (12, 10, 3), np.uint8)
    assert shift(pixels, 0, (1, 2)) is pixels
    moved = {shift(pixels, 2, (1, n)).tobytes() for n in range(200)}
    assert len(moved) == 25, "five places each way"
    assert np.array_equal(shift(pixels, 2, (1, 2, 3)), shift(pixels, 2, (1, 2, 3)))
    for down in range(-2, 3):
        for right in range(-2, 3):
            expected = np.zeros_like(pixels)
            for y in range(12):
                for x in range(10):
                    if 0 <= y - down < 12 and 0 <= x - right < 10:
                        expected[y, x] = pixels[y - down, x - right]
            assert expected.tobytes() in moved


def test_images_of_many_sizes_are_padded_with_black() -> None:
    a, b = np.full((3, 5, 3), 7, np.uint8), np.full((4, 2, 3), 9, np.uint8)
    batch = stack([a, b])
    assert batch.shape == (2, 3, 4, 5)
    assert (batch[0, :, :3] == 7).all()
    assert (batch[1, :, :, :2] == 9).all()
    assert not batch[0, :, 3:].any()
    assert not batch[1, :, :, 2:].any()


def test_words_have_the_same_bucket_in_every_process() -> None:
    assert [word_bucket(w, 8192) for w in ("red", "circle", "写真")] == [
        int.from_bytes(__import__("hashlib").blake2b(w.encode(), digest_size=8).digest(), "big") % 8192
        for w in ("red", "circle", "写真")
    ]
    found = tokenize_words(["Red circle", "", "red"], 64)
    assert (found.texts, found.text_of.tolist()) == (3, [0, 0, 1, 2])
    assert found.words[0] == found.words[3]
    assert found.words[2] == 0
