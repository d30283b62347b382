"""Showing a sample: the right boxes with the right words, readable, and safe on a terminal."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shards.errors import VillaError
from villa_dist import show
from villa_dist.sample_view import Region, View, view

sys.path.append(str(Path(__file__).parents[1] / "shards"))

from made_dataset import REGIONS, make, samples


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("show"))


def test_a_sample_is_found_with_what_is_said_of_it(dataset: Path) -> None:
    found = view(str(dataset), "000001/002")
    assert (found.stage, found.text, found.pixels.shape) == ("pairs", "text 2", (16, 20, 3))
    assert found.where.endswith("000001.tar row 2")
    assert sorted(phrase for r in found.regions for phrase, _ in r.marks) == ["p0", "p1", "p2"]
    assert all(score == 0.5 for r in found.regions for _, score in r.marks)
    boxes = [r.box for r in found.regions]
    assert len(boxes) == REGIONS
    assert boxes == sorted(boxes, key=lambda b: -(b[2] - b[0]) * (b[3] - b[1])), "equally sure: the larger first"


def test_stages_are_chosen(dataset: Path) -> None:
    regions = view(str(dataset), "000001/002", "regions")
    assert regions.mentions == ("p0", "p1", "p2")
    assert all(not r.marks and r.score == 1.0 for r in regions.regions)
    assert view(str(dataset / "truth"), "000001/002").stage == "truth"
    with pytest.raises(VillaError, match=r"embeddings.*pairs, truth, regions"):
        view(str(dataset), "000001/002", "embeddings")


@pytest.mark.parametrize("wrong", ["000001/02", "000001/00Z", "00001/002"])
def test_a_key_that_is_not_there_names_the_nearest(dataset: Path, wrong: str) -> None:
    with pytest.raises(VillaError, match=r"nearest.*'000001/00\d'"):
        view(str(dataset), wrong)


def test_foreign_tars_are_shown_without_boxes(dataset: Path, tmp_path: Path) -> None:
    (tmp_path / "x.tar").write_bytes((dataset / "base/000000.tar").read_bytes())
    found = view(str(tmp_path), "000000/001")
    assert (found.stage, found.regions, found.text) == ("", (), "text 1")
    with pytest.raises(VillaError, match="nearest"):
        view(str(tmp_path), "000000/009")
    assert samples("000000")


# ---- drawing


def made(boxes: list[tuple[float, float, float, float]], side: int = 64, text: str = "a text") -> View:
    regions = tuple(Region(b, (("red", 0.9), ("circle", 0.5)), 0.9) for b in boxes)
    return View("k", "x.tar row 0", "pairs", np.full((side, side, 3), 40, np.uint8), text, regions)


def test_a_box_is_drawn_where_it_is_and_its_name_beside_the_image() -> None:
    found = made([(8, 8, 40, 48)])
    page = np.asarray(show.draw(found)).astype(int)
    picture, scale = show._scaled(found.pixels)
    left, top = show.MARGIN, int(np.nonzero((page[:, show.MARGIN + 5] == 40).all(1))[0][0])
    near = np.abs(page[top : top + picture.height, left : left + picture.width] - show.COLOURS[0]).sum(2) < 30
    rows, columns = np.nonzero(near)
    expected = np.array([8, 8, 40, 48]) * scale
    met = np.array([columns.min(), rows.min(), columns.max(), rows.max()])
    assert np.abs(met - expected).max() <= 4
    beside = page[top : top + picture.height, left + picture.width + show.MARGIN :]
    assert (beside < 100).all(2).any(), "words in the legend"
    inside = page[top + int(20 * scale) : top + int(40 * scale), left + int(12 * scale) : left + int(36 * scale)]
    assert (inside == 40).all(), "nothing is written over the image"


BOXES = st.tuples(st.integers(0, 60), st.integers(0, 60), st.integers(1, 60), st.integers(1, 60)).map(
    lambda b: (float(b[0]), float(b[1]), float(min(64, b[0] + b[2])), float(min(64, b[1] + b[3])))
)


@given(boxes=st.lists(BOXES, max_size=show.MOST_REGIONS))
def test_numbers_never_cover_each_other(boxes: list[tuple[float, float, float, float]]) -> None:
    picture, scale = show._scaled(np.zeros((64, 64, 3), np.uint8))
    placed = show.place([Region(b, (), 0.0) for b in boxes], scale, picture.size)
    for a, b in itertools.combinations(placed, 2):
        assert max(abs(a.badge[0] - b.badge[0]), abs(a.badge[1] - b.badge[1])) >= show.BADGE
    for p in placed:
        assert 0 <= p.badge[0] <= picture.width - show.BADGE
        assert 0 <= p.badge[1] <= picture.height - show.BADGE


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 500), (500, 1), (3, 2000), (1200, 900)])
def test_any_shape_of_image_is_drawn(height: int, width: int) -> None:
    found = View("k", "", "truth", np.zeros((height, width, 3), np.uint8), "", (Region((0, 0, 1, 1), (), 0),))
    assert max(show.draw(found).size) < 2000
    assert show.terminal(found, 40)


@given(text=st.text(max_size=400), width=st.integers(40, 400))
def test_text_is_wrapped_within_the_width(text: str, width: int) -> None:
    face = show.font(show.FONT_SIZE)
    lines = show.wrapped(show.clean(text), face, width, 5)
    assert len(lines) <= 6
    shown = " ".join(lines)
    if "more words" not in shown and "…" not in shown:
        assert shown.split() == show.clean(text).split()
        assert all(face.getlength(line) <= width for line in lines)


def test_a_terminal_obeys_no_text() -> None:
    hostile = "red \x1b[2J\x07\x9b31m\r\nblue"
    drawn = show.terminal(made([(0, 0, 9, 9)], text=hostile), 20)
    ours = drawn.split("\n")[-1]
    assert ours.split() == ["red", "[2J", "31m", "blue"] or "\x1b" not in ours
    assert not {"\x1b", "\x07", "\x9b", "\r"} & set(ours)


def test_rows_of_a_terminal_are_as_wide_as_asked() -> None:
    rows = [r for r in show.terminal(made([]), 30).split("\n") if "▀" in r]
    assert {r.count("▀") for r in rows} == {30}
    assert len(rows) == 15
