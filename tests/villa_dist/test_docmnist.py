"""DocMNIST: the published process in all the ways that its output can show, and the same bytes wherever it is made."""

from __future__ import annotations

import io
import math

import numpy as np
import pytest
from PIL import Image

from villa_dist.attributes.extract import PhraseMatcher
from villa_dist.docmnist import generate, words
from villa_dist.docmnist.digits import Digits, load
from villa_dist.docmnist.generate import DocShard, ShardPlan

SHARD_IMAGES = 256
MEASURED = {6: (5.0, 6044), 16: (15.2, 1970), 33: (29.5, 1018)}  # target -> mean complexity, images at budget 30,000


@pytest.fixture(scope="module")
def digits() -> Digits:
    return load("train", None)


def made(target: int, digits: Digits, images: int = 200, shard: int = 0, seed: int = 0) -> DocShard:
    return generate.generate(target, seed, "train", ShardPlan(shard, images), SHARD_IMAGES, digits)


def counts(target: int, seed: int, split: str, shard: int, images: int) -> np.ndarray:
    shapes, kept = generate.structure(target, seed, split, shard, images)
    return (np.where(shapes == generate.NO_SHAPE, 2, 4) * kept).sum(1)


@pytest.mark.parametrize("target", MEASURED)
def test_complexity_and_size_are_the_published_ones(target: int) -> None:
    plans = generate.plan(target, 0, "train", 30_000, None, SHARD_IMAGES)
    per_image = np.concatenate([counts(target, 0, "train", p.shard, SHARD_IMAGES)[: p.images] for p in plans])
    complexity, images = MEASURED[target]
    assert per_image.mean() == pytest.approx(complexity, rel=0.03)
    assert len(per_image) == pytest.approx(images, rel=0.03)
    assert per_image.max() <= target


@pytest.mark.parametrize("target", [4, 6, 16, 33, 100])
@pytest.mark.parametrize("budget", [50, 1000, 3001])
def test_the_budget_is_spent_and_never_exceeded(target: int, budget: int) -> None:
    plans = generate.plan(target, 3, "train", budget, None, 64)
    spent = sum(int(counts(target, 3, "train", p.shard, 64)[: p.images].sum()) for p in plans)
    assert spent <= budget
    assert all(p.images == 64 for p in plans[:-1])
    assert [p.shard for p in plans] == list(range(len(plans)))
    last = plans[-1] if plans and plans[-1].images < 64 else ShardPlan(len(plans), 0)
    assert spent + counts(target, 3, "train", last.shard, 64)[last.images] > budget, "the next image would have fitted"


def test_a_fixed_number_of_images_is_kept() -> None:
    plans = generate.plan(16, 0, "train", 30_000, 150, 64)
    assert [(p.shard, p.images) for p in plans] == [(0, 64), (1, 64), (2, 22)]


@pytest.mark.parametrize("target", [4, 16, 33, 100])
def test_regions_follow_the_process(target: int, digits: Digits) -> None:
    shard = made(target, digits)
    regions = np.bincount(shard.image_of, minlength=200)
    assert regions.min() >= 1
    assert regions.max() <= 9
    per_image = np.bincount(shard.image_of, shard.attributes.sum(1), 200)
    assert per_image.max() <= target
    full = regions == 9
    assert (per_image[~full] > target - 4).all(), "an image ends only when the next region might not fit"
    if target >= 36:
        assert full.all()
    cells = shard.boxes[:, :2] / 28
    assert np.array_equal(shard.boxes[:, 2:], shard.boxes[:, :2] + 28)
    assert set(cells.flatten().tolist()) <= {0.0, 1.0, 2.0}
    assert len({(i, *c) for i, c in zip(shard.image_of.tolist(), cells.tolist(), strict=True)}) == len(cells)
    outlined = shard.attributes[:, words.FIRST_SHAPE :]
    assert set(shard.attributes[:, :10].sum(1)) == {1}
    assert set(shard.attributes[:, 10:15].sum(1)) == {1}
    assert np.array_equal(outlined[:, :2].sum(1), outlined[:, 2:].sum(1)), "a shape has a size and a size a shape"


def test_shares_are_those_of_the_process(digits: Digits) -> None:
    shards = [made(100, digits, 256, shard) for shard in range(4)]  # nine regions each, nothing is cut off
    attributes = np.concatenate([s.attributes for s in shards])
    assert len(attributes) == 4 * 256 * 9
    assert attributes[:, words.FIRST_SHAPE : words.FIRST_SIZE].any(1).mean() == pytest.approx(2 / 3, abs=0.02)
    assert attributes[:, 10:15].mean(0) == pytest.approx(np.full(5, 0.2), abs=0.02)
    assert attributes[:, words.FIRST_SHAPE : words.FIRST_SIZE].mean(0) == pytest.approx(np.full(2, 1 / 3), abs=0.02)
    assert attributes[:, words.FIRST_SIZE :].mean(0) == pytest.approx(np.full(3, 2 / 9), abs=0.02)
    assert attributes[:, :10].mean(0) == pytest.approx(np.full(10, 0.1), abs=0.03)
    cells = np.concatenate([made(4, digits, 256, shard).boxes for shard in range(8)])[:, :2] // 28
    assert np.bincount((cells @ [1, 3]).astype(int), minlength=9) / len(cells) == pytest.approx(
        np.full(9, 1 / 9), abs=0.02
    )


@pytest.mark.parametrize("target", [6, 33])
def test_a_text_mentions_exactly_its_images_attributes(target: int, digits: Digits) -> None:
    shard = made(target, digits)
    matcher = PhraseMatcher(words.ATTRIBUTES)
    for image, text in enumerate(shard.texts):
        said = matcher.attributes(text).ids.tolist()
        assert said == np.nonzero(shard.attributes[shard.image_of == image].any(0))[0].tolist(), text
        sentences = text.split(" . ")
        assert len(set(sentences)) == len(sentences)
        assert set(sentences) <= set(words.SENTENCES)


def test_sentences_come_in_all_orders_and_all_templates(digits: Digits) -> None:
    texts = made(33, digits, 256).texts
    assert {s for text in texts for s in text.split(" . ")} == set(words.SENTENCES)
    first = [words.SENTENCES.index(text.split(" . ")[0]) for text in texts]
    assert np.mean(first) == pytest.approx(len(words.SENTENCES) / 2, rel=0.25)


def test_a_region_looks_like_what_it_is(digits: Digits) -> None:
    """Bright ink has the region's colour and nothing else does; white is where an outline is."""
    shard = made(16, digits, 60)
    for image, box, attribute in zip(shard.image_of, shard.boxes.astype(int), shard.attributes, strict=True):
        patch = shard.pixels[image, box[1] : box[3], box[0] : box[2]]
        colour = generate.COLOURS_RGB[attribute[10:15].argmax()]
        white = (patch == 255).all(2)
        ink = (patch == colour).all(2)
        grey = (patch == patch[..., :1]).all(2) & (patch.max(2) < generate.INK)
        assert (white | ink | grey).all()
        assert ink.any()
        if attribute[words.FIRST_SHAPE :].any():
            assert white.sum() >= 4
        else:
            assert not white.any()


def test_cells_without_a_region_are_black(digits: Digits) -> None:
    shard = made(6, digits)
    covered = np.zeros((200, 84, 84), bool)
    for image, (x1, y1, x2, y2) in zip(shard.image_of, shard.boxes.astype(int), strict=True):
        covered[image, y1:y2, x1:x2] = True
    assert not shard.pixels[~covered].any()


@pytest.mark.parametrize("radius", [1, 2, 3, 4, 5, 6, 7, 10])
def test_circles_are_bresenhams(radius: int) -> None:
    """In the octant where a circle is flat, each column has the pixel nearest to it; the rest by symmetry."""
    octant = [(x, round(math.sqrt(radius**2 - x**2))) for x in range(radius + 1)]
    octant = [(x, y) for x, y in octant if x <= y]
    expected = {(s * a, t * b) for x, y in octant for a, b in ((x, y), (y, x)) for s in (1, -1) for t in (1, -1)}
    assert set(generate.circle_points(radius)) == expected


@pytest.mark.parametrize("size", [0, 1, 2])
def test_outlines_lie_where_they_are_drawn(size: int) -> None:
    masks = generate.outline_masks()
    radius, extent = generate.CIRCLE_RADIUS[size], generate.RECTANGLE_EXTENT[size]
    row, column = 9, 12
    circle = np.argwhere(masks[generate.CIRCLE, size, row - 5, column - 5]) - [row, column]
    assert {tuple(p) for p in circle.tolist()} == set(generate.circle_points(radius))
    y, x = np.nonzero(masks[generate.RECTANGLE, size, row - 5, column - 5])
    assert (y.min(), y.max(), x.min(), x.max()) == (row - 1, row + extent + 1, column - 1, column + extent + 1)
    assert len(y) == 4 * (extent + 2), "one pixel wide, and closed"


def test_png_bytes_decode_to_the_pixels(digits: Digits) -> None:
    pixels = made(16, digits, 3).pixels
    for image in [*pixels, np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)]:
        opened = Image.open(io.BytesIO(generate.png(image)))
        assert (opened.format, opened.mode) == ("PNG", "RGB")
        assert np.array_equal(np.asarray(opened), image)


def same(a: DocShard, b: DocShard) -> bool:
    return a.texts == b.texts and all(
        np.array_equal(getattr(a, name), getattr(b, name)) for name in ("pixels", "image_of", "boxes", "attributes")
    )


def test_a_shard_depends_on_its_seed_split_and_number_alone(digits: Digits) -> None:
    third = made(16, digits, 40, shard=3)
    made(6, digits, 11, shard=1)
    np.random.seed(5)
    assert same(third, made(16, digits, 40, shard=3))
    assert not same(third, made(16, digits, 40, shard=2))
    assert not same(third, made(16, digits, 40, shard=3, seed=1))
    other = generate.generate(16, 0, "test", ShardPlan(3, 40), SHARD_IMAGES, digits)
    assert not same(third, other)


def test_prompts_are_of_each_attribute_alone() -> None:
    matcher = PhraseMatcher(words.ATTRIBUTES)
    assert len(words.ATTRIBUTES) == len(words.GROUPS) == 20
    for index, prompts in enumerate(words.PROMPTS):
        assert len(prompts) in (3, 4)
        assert all(matcher.find(p) == [index] for p in prompts)


def test_noise_leaves_out_and_adds_attributes_to_the_texts_alone(digits: Digits) -> None:
    clean, noisy = (
        generate.generate(16, 0, "train", ShardPlan(0, 200), SHARD_IMAGES, digits, generate.Flaws(text_noise=noise))
        for noise in (0.0, 0.05)
    )
    assert np.array_equal(clean.pixels, noisy.pixels)
    assert np.array_equal(clean.attributes, noisy.attributes)
    held = np.zeros((200, 20), bool)
    np.logical_or.at(held, clean.image_of, clean.attributes)
    matcher = PhraseMatcher(words.ATTRIBUTES)
    said = np.zeros((200, 20), bool)
    for n, text in enumerate(noisy.texts):
        said[n, matcher.find(text)] = True
    assert (held & ~said).sum() / held.sum() == pytest.approx(0.05, abs=0.015)
    assert (~held & said).sum() / (~held).sum() == pytest.approx(0.05, abs=0.015)


def test_coupled_digits_have_a_colour_of_their_own(digits: Digits) -> None:
    shard = generate.generate(16, 0, "train", ShardPlan(0, 200), SHARD_IMAGES, digits, generate.Flaws(coupling=0.8))
    digit, colour = shard.attributes[:, :10].argmax(1), shard.attributes[:, 10:15].argmax(1)
    assert (colour == digit % 5).mean() == pytest.approx(0.8 + 0.2 / 5, abs=0.03)
