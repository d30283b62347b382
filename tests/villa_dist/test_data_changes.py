"""Images changed with their boxes and texts, and regions drawn: against painted boxes, plain loops and formulas."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from shards.errors import VillaError
from villa_dist.config_train import AugmentConfig, FitConfig, TrainConfig
from villa_dist.data.augment import ASPECT, INSIDE, Augment, augmented, boxes_in, draw_part, lit, mirrored, part_of
from villa_dist.data.sampler import Counted, RegionSampling, frequencies
from villa_dist.data.samples import Row
from villa_dist.data.words import GUARDS, NONE, SIDES, Sides

WORDS = [
    "left",
    "right",
    "Left",
    "RIGHT",
    "rIGHT",
    "leftmost",
    "now",
    "all",
    "has",
    "upright",
    "leftover",
    "-",
    " ",
    ",",
]


def row(
    boxes: list[list[float]], pairs: list[tuple[int, int]], height: int = 40, width: int = 60, text: str = ""
) -> Row:
    """Black pixels with every box painted in a grey of its own, the last on top."""
    pixels = np.zeros((height, width, 3), np.uint8)
    for n, (x1, y1, x2, y2) in enumerate(np.array(boxes, int).reshape(-1, 4)):
        pixels[y1:y2, x1:x2] = 100 + 50 * n
    region, attribute = np.array([r for r, _ in pairs], np.uint16), np.array([a for _, a in pairs], np.int32)
    return Row(pixels, text, np.array(boxes, np.float32).reshape(-1, 4), region, attribute, None)


# ---- left and right


@given(st.lists(st.sampled_from(WORDS), max_size=12), st.booleans())
def test_exchanging_sides_twice_gives_the_text_back(parts: list[str], spaced: bool) -> None:
    text = (" " if spaced else "").join(parts)
    sides = Sides()
    assert sides.swapped(sides.swapped(text)) == text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a cup left of the Right-hand plate", "a cup right of the Left-hand plate"),
        ("LEFT lung, on the right.", "RIGHT lung, on the left."),
        ("the leftmost one", "the rightmost one"),
        ("right now, all right, he has left", "right now, all right, he has left"),
        ("upright, leftover, rightly, copyright", "upright, leftover, rightly, copyright"),
        ("a right angle right behind the left door", "a right angle right behind the right door"),
        ("rIGHT", "rIGHT"),
    ],
)
def test_sides_are_whole_words_in_their_case(text: str, expected: str) -> None:
    assert Sides().swapped(text) == expected


def test_other_languages_bring_their_own_words() -> None:
    german = Sides([["links", "rechts"], ["linke", "rechte"]], [])
    assert german.swapped("Links die rechte Lunge, left") == "Rechts die linke Lunge, left"
    assert Sides([["左", "右"]], []).swapped("左側の猫") == "右側の猫"
    assert Sides([], []).swapped("left") == "left"
    for pairs, guards in (([["a", "b"], ["b", "c"]], []), ([["a", ""]], []), (SIDES, ["now"]), (SIDES, ["left *"])):
        with pytest.raises(VillaError, match=r"augment\.side"):
            Sides(pairs, guards)


def test_counterparts_of_a_vocabulary() -> None:
    phrases = ["left lung", "cat", "Right Lung", "left hand", "right angle"]
    found = Sides().counterparts(phrases)
    assert found.tolist() == [2, 1, 0, NONE, 4]
    there = found[found != NONE]
    assert found[there].tolist() == np.flatnonzero(found != NONE).tolist(), "an involution where there are any"


# ---- images and boxes


def test_a_mirror_image_is_exact_and_undone_by_another() -> None:
    before = row([[4, 5, 20, 30], [40, 2, 60, 9]], [(0, 0), (1, 1)], text="on the left")
    other = np.array([1, 0])
    after = mirrored(before, Sides(), other)
    assert after.pixels is not None and before.pixels is not None
    for n, (x1, y1, x2, y2) in enumerate(after.boxes.astype(int)):
        assert (after.pixels[y1:y2, x1:x2] == 100 + 50 * n).all()
        assert (after.pixels == 100 + 50 * n).all(2).sum() == (x2 - x1) * (y2 - y1)
    assert after.attribute.tolist() == [1, 0] and after.text == "on the right"
    again = mirrored(after, Sides(), other)
    assert np.array_equal(again.pixels, before.pixels) and np.array_equal(again.boxes, before.boxes)
    assert again.text == before.text and again.attribute.tolist() == [0, 1]


def test_an_attribute_without_counterpart_keeps_its_image_as_it_is() -> None:
    before = row([[4, 5, 20, 30]], [(0, 3)], text="left hand")
    assert mirrored(before, Sides(), np.array([0, 1, 2, NONE])) is before


@pytest.mark.parametrize("seed", range(40))
def test_boxes_follow_a_part_of_the_image(seed: int) -> None:
    """A painted box is found again, within the pixel that a resampling blurs; what goes lies inside by less than half."""
    random = np.random.default_rng(seed)
    x, y = random.integers(0, 120), random.integers(0, 80)
    box = [float(x), float(y), float(x + random.integers(12, 80)), float(y + random.integers(12, 40))]
    before = row([box], [(0, 7)], 120, 200)
    after = part_of(before, (0.3, 0.9), np.random.default_rng([seed, 1]))
    assert after.pixels is not None and after.pixels.shape == (120, 200, 3)
    assert after.attribute.tolist() == [7] and after.region.tolist() == [0]
    rows, columns = np.nonzero(after.pixels[..., 0] >= 50)
    found = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    assert np.abs(after.boxes[0] - found).max() <= 1.0


@given(st.integers(0, 2**32), st.floats(0.05, 1.0), st.floats(0.05, 1.0), st.integers(1, 300), st.integers(1, 300))
def test_a_part_lies_in_the_image_and_has_its_share(seed: int, a: float, b: float, width: int, height: int) -> None:
    low, high = sorted((a, b))
    x, y, w, h = draw_part(width, height, (low, high), np.random.default_rng(seed))
    assert 0 <= x <= x + w <= width and 0 <= y <= y + h <= height and w > 0 and h > 0
    if min(width, height) < 4:  # a part has one pixel at least
        return
    slack = 0.5 * (w + h) + 1
    assert low * width * height - slack <= w * h <= high * width * height + slack
    assert (w - 0.5) * height / (width * (h + 0.5)) <= ASPECT + 1e-6
    assert (h - 0.5) * width / (height * (w + 0.5)) <= ASPECT + 1e-6


@given(st.lists(st.tuples(*[st.integers(0, 30)] * 4), max_size=6), st.tuples(*[st.integers(0, 30)] * 4))
def test_boxes_stay_by_the_half_that_is_inside(corners: list[tuple[int, ...]], cut: tuple[int, ...]) -> None:
    """Against counting pixels."""
    x1, x2, y1, y2 = *sorted(cut[:2]), *sorted(cut[2:])
    boxes = np.array([[min(a, c), min(b, d), max(a, c), max(b, d)] for a, b, c, d in corners], np.float32).reshape(
        -1, 4
    )
    found, inside = boxes_in(boxes, (x1, y1, x2, y2))
    for box, kept, moved in zip(boxes.astype(int), inside, found, strict=True):
        grid = np.zeros((31, 31), bool)
        grid[box[1] : box[3], box[0] : box[2]] = True
        part = grid[y1:y2, x1:x2]
        assert kept == (part.sum() > 0 and part.sum() >= INSIDE * grid.sum())
        if kept:
            rows, columns = np.nonzero(part)
            assert moved.tolist() == [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]


def test_pairs_of_boxes_that_are_left_out_go_with_them() -> None:
    before = row([[0, 0, 8, 8], [52, 32, 60, 40], [20, 10, 40, 30]], [(0, 1), (1, 2), (2, 3), (2, 4)])
    for seed in range(60):
        after = part_of(before, (0.2, 0.4), np.random.default_rng(seed))
        greys = {3: 200, 4: 200, 1: 100, 2: 150}
        assert after.pixels is not None and len(after.region), "a part without any pair is drawn again"
        for r, a in zip(after.region, after.attribute, strict=True):
            x1, y1, x2, y2 = after.boxes[r]
            assert after.pixels[int((y1 + y2) / 2), int((x1 + x2) / 2), 0] == greys[int(a)]
        assert set(range(len(after.boxes))) == set(after.region.tolist())


def test_light_is_that_of_the_formula_and_keeps_hues() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (9, 7, 3)).astype(np.uint8)
    assert np.array_equal(lit(pixels, 1.0, 1.0, 1.0), pixels)
    b, c, s = 0.9, 1.2, 0.7
    grey = pixels.astype(float) @ [0.299, 0.587, 0.114]
    x = c * b * pixels + (1 - c) * b * grey.mean()
    x = s * x + (1 - s) * (x @ [0.299, 0.587, 0.114])[..., None]
    assert np.abs(lit(pixels, b, c, s) - np.clip(np.rint(x), 0, 255)).max() <= 1
    assert np.array_equal(lit(pixels, 0.5, 1, 1), np.rint(pixels * 0.5).astype(np.uint8))
    red = np.full((2, 2, 3), (200, 20, 20), np.uint8)
    assert all(
        (lit(red, *f)[..., 0] > lit(red, *f)[..., 1]).all() for f in np.random.default_rng(1).uniform(0.6, 1.4, (20, 3))
    )


def test_a_sample_is_changed_by_its_identity_alone() -> None:
    before = row([[4, 5, 20, 30], [40, 2, 60, 9]], [(0, 0), (1, 1)], text="left")
    every = Augment((0.6, 1.0), 0.5, 0.2, counterpart=np.array([0, 1]))
    first, again, other = (augmented(before, every, (3, 0, 1, n)) for n in (2, 2, 4))
    assert first.pixels is not None and again.pixels is not None and other.pixels is not None
    assert first.pixels.tobytes() == again.pixels.tobytes() and first.boxes.tolist() == again.boxes.tolist()
    assert first.pixels.tobytes() != other.pixels.tobytes()
    off = augmented(before, Augment(), (3, 0, 1, 2))
    assert off.pixels is before.pixels and off.boxes is before.boxes
    flipped = [augmented(before, Augment(flip=0.3), (0, 0, 0, n)).text == "right" for n in range(1000)]
    assert abs(np.mean(flipped) - 0.3) < 0.05


# ---- regions


def chances(weights: list[float], drawn: int) -> np.ndarray:
    """Of each region to be among `drawn`, summed over all orders in which they may come."""
    found = np.zeros(len(weights))
    for order in permutations(range(len(weights)), drawn):
        chance, left = 1.0, sum(weights)
        for i in order:
            chance, left = chance * weights[i] / left, left - weights[i]
        found[list(order)] += chance
    return found


@pytest.mark.parametrize("balance", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("drawn", [1, 2])
def test_regions_are_drawn_by_the_inverse_frequency_of_their_rarest_attribute(balance: float, drawn: int) -> None:
    """Four regions: red; red and umbrella; car; none. Inclusion within 4.5 standard deviations of the formula."""
    frequency = np.array([100.0, 4.0, 25.0])
    before = row([[n, 0, n + 1, 1] for n in range(4)], [(0, 0), (1, 0), (1, 1), (2, 2)])
    sampling, trials = RegionSampling(drawn, balance, frequency), 1500
    seen = np.zeros(4)
    for epoch in range(trials):
        after = sampling.of(before, (7, epoch, 0, 5))
        kept = after.boxes[:, 0].astype(int)
        assert len(kept) == drawn and kept.tolist() == sorted(kept)
        expected = [(kept.tolist().index(r), a) for r, a in ((0, 0), (1, 0), (1, 1), (2, 2)) if r in kept]
        assert list(zip(after.region.tolist(), after.attribute.tolist(), strict=True)) == expected
        seen[kept] += 1
    chance = chances([f**-balance for f in (100.0, 4.0, 25.0, 100.0)], drawn)
    assert chance.sum() == pytest.approx(drawn)
    assert (np.abs(seen - trials * chance) <= 4.5 * np.sqrt(trials * chance * (1 - chance)) + 1).all()


def test_few_regions_all_stay() -> None:
    before = row([[0, 0, 1, 1], [1, 0, 2, 1]], [(1, 0)])
    assert RegionSampling(2, 1.0, np.ones(1)).of(before, (0, 0, 0, 0)) is before
    empty = row([], [])
    assert RegionSampling(2, 1.0, np.ones(1)).of(empty, (0, 0, 0, 0)) is empty
    bare = row([[n, 0, n + 1, 1] for n in range(3)], [])
    assert len(RegionSampling(2, 1.0, np.ones(0)).of(bare, (0, 0, 0, 0)).boxes) == 2


def test_frequencies_are_those_of_the_stream() -> None:
    one, two = Counted(np.array([30, 0, 0]), 10, 0.25), Counted(np.array([10, 20, 0]), 20, 0.75)
    assert frequencies([one, two]).tolist() == pytest.approx([0.25 * 3 + 0.75 * 0.5, 0.75, 1 / 30])
    assert frequencies([Counted(np.array([0, 0]), 0)]).tolist() == [1.0, 1.0]


def test_settings_that_make_no_sense_are_refused() -> None:
    for values, said in (
        ({"crop": [0.9, 0.5]}, "in that order"),
        ({"sides": [["l", "r"], ["r", "x"]]}, "one pair only"),
        ({"crop": [0.0, 1.0]}, "greater than 0"),
    ):
        with pytest.raises(ValidationError, match=said):
            AugmentConfig.model_validate(values)
    with pytest.raises(ValidationError, match="set regions_per_image"):
        TrainConfig.model_validate({"attribute_balance": 0.5})
    with pytest.raises(ValidationError, match=r"mapping\.turned"):
        FitConfig.model_validate({"augment": {"flip": 0.5}})
    assert AugmentConfig().made_sides().guards == GUARDS
