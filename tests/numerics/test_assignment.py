"""Which scores become pairs: rules against transcriptions, calibration and transport against what they promise."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from villa_dist.config import PairsConfig
from villa_dist.mapping.assign import assign, transport, weighed
from villa_dist.mapping.evidence import ALONE
from villa_dist.mapping.quality import Monitor, best_scores, entropy_bits, of_counts, outlying, presence, shortcomings
from villa_dist.train.calibration import BINS, FEW, Histogram


def histogram(attributes: int, *, probabilities: bool = True) -> Histogram:
    return Histogram(probabilities, np.zeros((attributes, BINS), np.int64))


@pytest.mark.parametrize("probabilities", [True, False])
def test_the_threshold_leaves_the_known_share_above(probabilities: bool) -> None:
    random = np.random.default_rng(2)
    scores = np.sort(random.uniform(0 if probabilities else -1, 1, (4000, 3)) ** np.array([1, 3, 1]), 0)
    made = histogram(3, probabilities=probabilities)
    for part in np.split(scores, 40):
        made.add(np.array([0, 1, 2]), part)
    share = np.array([0.1, 0.35, 0.9])
    found = made.thresholds(share, 0.5)
    assert (scores >= found).mean(0) == pytest.approx(share, abs=0.01)


def test_scores_near_zero_are_told_apart() -> None:
    """A rare attribute never scores over 1/500; a tenth of its regions have it all the same."""
    scores = np.linspace(1e-5, 2e-3, 1000)[:, None]
    made = histogram(1)
    made.add(np.array([0]), scores)
    found = made.thresholds(np.array([0.1]), 0.5)
    assert (scores >= found).mean() == pytest.approx(0.1, abs=0.05)


def test_few_scores_and_extreme_shares_are_no_error() -> None:
    made = histogram(3)
    made.add(np.array([0]), np.full((FEW - 1, 1), 0.9))
    made.add(np.array([1, 2]), np.linspace(0, 1, 200)[:, None].repeat(2, 1))
    found = made.thresholds(np.array([0.5, 1e-4, 1 - 1e-4]), 0.25)
    assert 0.3 < found[0] < 0.7, "too few scores of its own: the threshold of all together"
    assert found[1] > 0.99
    assert found[2] < 1e-4
    few = histogram(2)
    few.add(np.array([0]), np.full((3, 1), 0.9))
    assert few.thresholds(np.array([0.5, 0.5]), 0.25).tolist() == [0.25, 0.25]


def test_an_attribute_of_its_own_threshold_also_keeps_the_best() -> None:
    scores = np.array([[0.3, 0.3, 0.9], [0.2, 0.6, 0.8]])
    found = assign(scores, PairsConfig(assign="calibrated"), np.array([0.25, 0.7, 0.85]), np.full(3, ALONE))
    assert found.tolist() == [[True, False, True], [False, True, False]]


def test_objectness_lowers_all_but_the_most_object_like_region() -> None:
    score = np.array([[0.5, 0.2], [0.6, 0.9], [0.4, 0.4]], np.float32)
    objectness = np.array([0.8, 0.2, 0.0], np.float32)
    found = weighed(score, objectness, 2.0, chances=True)
    assert np.allclose(found[0], score[0]) and np.allclose(found[1], score[1] / 16) and (found[2] < 1e-9).all()
    terms = weighed(score, objectness, 2.0, chances=False) - score
    assert np.allclose(terms[:2], [[0, 0], [2 * np.log(0.25)] * 2]) and (terms[2] < -20).all()
    alike = weighed(score, np.zeros(3, np.float32), 9.0, chances=True)
    assert np.array_equal(alike, score), "boxes without a ranking are left as they are"
    assert weighed(score[:0], objectness[:0], 2.0, chances=True).shape == (0, 2)


def test_transport_gives_each_attribute_a_region_of_its_own() -> None:
    """Both attributes of a group like region 0 best; the one that can be told elsewhere goes there."""
    p = np.array([[0.6, 0.39], [0.02, 0.2], [0.01, 0.01]])
    moved = transport(p, np.array([0, 0]))
    assert assign(p, PairsConfig(assign="absolute"), None, None).tolist() == [
        [True, True],
        [False, False],
        [False, False],
    ]
    found = assign(p, PairsConfig(assign="transport"), None, np.array([0, 0]))
    assert found.tolist() == [[True, False], [False, True], [False, False]]
    assert moved.sum(0) == pytest.approx([1, 1], abs=0.01)
    apart = transport(p, np.array([ALONE, ALONE]))
    assert apart[0, 1] > 0.5, "attributes that do not exclude one another may share a region"


@given(
    st.integers(1, 12), st.integers(1, 8), st.integers(1, 3), st.integers(0, 2**32 - 1), st.floats(0.05, 4)
)  # regions, attributes, groups
def test_transport_holds_its_bounds(regions: int, attributes: int, groups: int, seed: int, spread: float) -> None:
    random = np.random.default_rng(seed)
    group = random.integers(-1, groups, attributes)
    p = random.random((regions, attributes)) ** spread
    for g in range(groups):
        p[:, group == g] /= np.maximum(p[:, group == g].sum(1, keepdims=True), 1) * 1.01
    moved = transport(p, group)
    assert np.isfinite(moved).all() and (moved >= 0).all() and (moved <= 1 + 1e-6).all()
    for g in range(groups):
        mine = moved[:, group == g]
        assert (mine.sum(1) <= 1 + 1e-5).all(), "a region has at most one attribute of a group"
    if (np.bincount(group[group >= 0], minlength=groups) < regions).all():
        assert (moved.sum(0) > 0.8).all(), "an attribute that is mentioned has about a region, or more"


def test_transport_leaves_alone_what_already_holds() -> None:
    p = np.array([[0.9, 0.05], [0.2, 0.9], [0.05, 0.1]], np.float32)
    assert transport(p, np.array([0, 0])) == pytest.approx(p, abs=1e-6)


def presence_by_loops(best: np.ndarray, said: np.ndarray) -> tuple[float, int]:
    won, of = 0.0, 0
    for a in range(best.shape[1]):
        for i in np.nonzero(said[:, a])[0]:
            for j in np.nonzero(~said[:, a])[0]:
                won += 1.0 if best[i, a] > best[j, a] else 0.5 if best[i, a] == best[j, a] else 0.0
                of += 1
    return won, of


@pytest.mark.parametrize("levels", [3, 1000])
def test_presence_counts_pairs_of_images_in_the_right_order(levels: int) -> None:
    random = np.random.default_rng(levels)
    best = random.integers(0, levels, (12, 5)) / levels
    said = random.random((12, 5)) < np.array([0.5, 0.2, 0.9, 0.0, 1.0])
    won, of = presence(best, said)
    assert (won.sum(), of.sum()) == presence_by_loops(best, said)


def test_entropy_is_that_of_coins() -> None:
    assert entropy_bits(np.array([[0.5, 0.5], [1.0, 0.0]])) == pytest.approx(2.0, abs=1e-6)
    assert entropy_bits(np.array([[0.11]])) == pytest.approx(0.4999, abs=1e-3)


def test_quality_adds_up_over_shards_and_leaves_out_what_was_not_counted() -> None:
    one = {"presence_won": 9.0, "presence_of": 10.0, "empty": 1, "regions": 4, "doubt_bits": 0.0, "scored": 0}
    two = {"presence_won": 5.0, "presence_of": 10.0, "empty": 3, "regions": 4}
    both = {k: one.get(k, 0) + two.get(k, 0) for k in one}
    assert of_counts(both) == {"presence": 0.7, "empty": 0.5}
    assert of_counts({"pairs": 3}) == {}


def test_a_mapping_that_finds_little_is_said_to() -> None:
    counts = {"presence_won": 90.0, "presence_of": 100.0, "presence_won:shape": 6.0, "presence_of:shape": 10.0}
    quality = of_counts(counts)
    assert quality == {"presence": 0.9, "presence:shape": 0.6}
    (line,) = shortcomings(quality)
    assert "of 'shape'" in line and "60%" in line and "mapping.fit.steps" in line
    assert shortcomings({"presence": 0.8, "doubt": 0.3}) == []


class Scores:
    """A model whose region features are the scores."""

    attribute = torch.zeros(1)

    def scores(self, feature_RA: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        return feature_RA[:, ids]


@pytest.mark.parametrize("groups", [("colour", "colour", "shape"), ("",) * 3, tuple("abc")])
def test_presence_is_told_of_each_group_of_the_vocabulary(groups: tuple[str, ...]) -> None:
    """Attributes 0 and 1 are found in every image that mentions them, 2 in none."""
    said = [np.array([0, 2]), np.array([1]), np.array([0, 1]), np.array([2])]
    features = [torch.tensor([[float(a in ids and a < 2) for a in range(3)]] * 2) for ids in said]
    monitor = Monitor(4, probabilities=False)
    monitor.see(features, said, [])
    found = of_counts(monitor.result(Scores(), groups))  # type: ignore[arg-type]
    by_group = {name: found[f"presence:{name}"] for name in dict.fromkeys(groups) if f"presence:{name}" in found}
    expected = {"colour": {"colour": 1.0, "shape": 0.5}, "": {}, "a": {"a": 1.0, "b": 1.0, "c": 0.5}}
    assert by_group == expected[groups[0]]
    assert found["presence"] == pytest.approx(2.5 / 3, abs=1e-4)


def test_a_shard_of_another_kind_stands_out() -> None:
    random = np.random.default_rng(0)
    usual = {f"s{i:02d}": {"presence": 0.9 + random.normal(0, 0.01)} for i in range(20)}
    assert outlying(usual) == {}
    found = outlying({**usual, "odd": {"presence": 0.6}, "blank": {}})
    assert list(found) == ["odd"]
    assert found["odd"].startswith("presence 0.600, of most 0.")


@pytest.mark.parametrize("most", [9, 60])
def test_scores_without_a_signal_have_even_presence_whatever_the_number_of_regions(most: int) -> None:
    """Images with more regions mention more, and their best region scores higher by chance alone."""
    random = np.random.default_rng(most)
    counts = random.integers(1, most + 1, 200)
    ids = np.arange(6)
    said = np.stack([random.random(6) < 1 - 0.8**n for n in counts])

    class Noise:
        attribute = torch.zeros(6, 1)

        def scores(self, feature: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
            return torch.from_numpy(random.random((len(feature), len(ids))))

    best = best_scores(Noise(), [torch.zeros(int(n), 1) for n in counts], ids)  # type: ignore[arg-type]
    won, of = presence(best, said)
    assert won.sum() / of.sum() == pytest.approx(0.5, abs=0.05)
