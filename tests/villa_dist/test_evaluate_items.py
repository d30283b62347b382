"""What evaluate keeps of a model: resamples are those of the resampled data set, rankings are the best regions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shards.errors import ShardError
from shards.store import Store
from villa_dist.evaluate import items
from villa_dist.evaluate.bootstrap import mapping_sums
from villa_dist.evaluate.figures import interval_of
from villa_dist.evaluate.mapping_quality import Counts
from villa_dist.evaluate.retrieval import precision_at_relevant, r_precision, similarity


@given(seed=st.integers(0, 2**32 - 1), regions=st.integers(1, 30), levels=st.integers(1, 12))
def test_a_weighted_precision_is_that_of_the_resampled_split(seed: int, regions: int, levels: int) -> None:
    """Few levels of scores: many ties, which count by expectation over all copies."""
    r = np.random.default_rng(seed)
    image = np.sort(r.integers(0, 6, regions))
    score, relevant = r.integers(0, levels, regions) / 8, r.random(regions) < 0.4
    weights = r.integers(0, 4, (5, 6))
    found = items.weighted_precision(score, relevant, image, weights)
    for w, value in zip(weights, found, strict=True):
        copies = np.repeat(np.arange(regions), w[image])
        expected = precision_at_relevant(score[copies][None], relevant[copies][None])[0] if len(copies) else np.nan
        np.testing.assert_allclose(value, expected, atol=1e-12)


def made_up(seed: int = 0, images: int = 9) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Regions, attributes, truth (the last attribute does not occur), image of each region; image 3 has none."""
    r = np.random.default_rng(seed)
    image = np.sort(r.choice([i for i in range(images) if i != 3], 40))
    truth = r.random((40, 6)) < 0.3
    truth[:, 5] = False
    region, attribute = r.normal(size=(40, 8)), r.normal(size=(6, 8))
    region, attribute = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (region, attribute))
    return region, attribute, truth, image


def test_draws_are_r_precision_of_the_resampled_split(monkeypatch: pytest.MonkeyPatch) -> None:
    region, attribute, truth, image = made_up()
    score = similarity(region, attribute)
    drawn = items.a2r_draws(score, truth, image, 9, 200)
    assert drawn is not None
    weights = np.concatenate(list(items.weight_blocks(9, 200, 0)))
    for b in (0, 7, 199):
        copies = np.repeat(np.arange(40), weights[b][image])
        assert drawn[b] == pytest.approx(100 * r_precision(region[copies], attribute, truth[copies]).a2r)
    monkeypatch.setattr(items, "CELLS", 90)  # the draws do not depend on how many are held at a time
    again = items.a2r_draws(score, truth, image, 9, 200)
    assert again is not None
    np.testing.assert_array_equal(again, drawn)


def test_what_would_take_too_long_has_no_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    region, attribute, truth, image = made_up()
    monkeypatch.setattr(items, "WORK", 99 * truth.size)
    kept = items.of_model("t", r_precision(region, attribute, truth), [(region, truth, image)], attribute, 9)
    assert list(kept.draws) == ["r2a"] and kept.ranking is not None


def test_chunks_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    region, attribute, truth, image = made_up()
    found = r_precision(region, attribute, truth)
    whole = items.of_model("t", found, [(region, truth, image)], attribute, 9)
    monkeypatch.setattr(items, "CELLS", 40)  # six or seven regions at a time
    parts = [(region[p], truth[p], image[p]) for p in (image < 2, image == 2, image == 3, image > 3)]
    cut = items.of_model("t", found, parts, attribute, 9)
    assert whole.ranking is not None and cut.ranking is not None
    for mine, theirs in ((whole.ranking, cut.ranking), (whole, cut)):
        for name in ("image", "box", "score", "right") if mine is whole.ranking else ("relevant", "by_attribute"):
            np.testing.assert_array_equal(getattr(mine, name), getattr(theirs, name))
    for metric in ("a2r", "r2a"):
        np.testing.assert_array_equal(whole.draws[metric], cut.draws[metric])
    assert whole.draws["r2a"][0] == pytest.approx(100 * found.r2a)


def test_the_ranking_is_of_the_best_regions_with_their_places() -> None:
    region, attribute, truth, image = made_up()
    found = r_precision(region, attribute, truth)
    kept = items.of_model("t", found, [(region, truth, image)], attribute, 9)
    assert kept.draws["a2r"][0] == 100 * found.a2r and len(kept.draws["a2r"]) == items.RESAMPLES + 1
    best = kept.ranking
    assert best is not None and best.attribute.tolist() == [0, 1, 2, 3, 4] and best.score.shape == (5, items.TOP)
    scores = region @ attribute.T
    for q, a in enumerate(best.attribute):
        order = np.argsort(-scores[:, a])[: items.TOP]
        np.testing.assert_array_equal(best.image[q], image[order])
        np.testing.assert_array_equal(best.right[q], truth[order, a])
        numbers = [int((image[:i] == image[i]).sum()) for i in order]  # of the region among those of its image
        np.testing.assert_array_equal(best.box[q], numbers)


def test_the_mappings_draws_are_of_its_counts() -> None:
    ones = np.ones(1, int)
    counts = [
        Counts(3 * ones, 1 * ones, 0 * ones),
        Counts(0 * ones, 2 * ones, 2 * ones),
        Counts(4 * ones, 0 * ones, 1 * ones),
    ]
    drawn = items.mapping_draws(mapping_sums(counts))
    assert {n: round(float(d[0]), 4) for n, d in drawn.items()} == {"precision": 70.0, "recall": 70.0, "f1": 70.0}
    low, high = interval_of(drawn["f1"], 1.0) or (0.0, 0.0)
    assert low < 70 < high


def test_kept_items_are_read_as_written(tmp_path: Path) -> None:
    region, attribute, truth, image = made_up()
    kept = items.of_model("task", r_precision(region, attribute, truth), [(region, truth, image)], attribute, 9)
    store = Store(str(tmp_path))
    assert items.read(store, "test", "villa") is None
    items.write(store, "test", "villa", kept)
    found = items.read(store, "test", "villa")
    assert found is not None and found.task == "task" and found.ranking is not None and kept.ranking is not None
    np.testing.assert_array_equal(found.draws["a2r"], kept.draws["a2r"])
    np.testing.assert_array_equal(found.ranking.box, kept.ranking.box)
    np.testing.assert_array_equal(found.by_attribute, kept.by_attribute)
    path = tmp_path / items.name_of("test", "villa")
    whole = path.read_bytes()
    items.write(store, "test", "villa", kept)
    assert path.read_bytes() == whole
    for damaged in (b"", whole[: len(whole) // 2], whole[:300] + b"\x00" * 50 + whole[350:], b"PK"):
        path.write_bytes(damaged)
        with pytest.raises(ShardError, match=r"test-villa\.npz is damaged .*run the evaluate stage again"):
            items.read(store, "test", "villa")
