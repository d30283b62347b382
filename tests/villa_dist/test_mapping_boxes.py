"""Pairs against known boxes: plain loops on made sidecars, what counts as true, and where the figures are told."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from detection_run import COLOURS, IDS, SIDE, TEST, config_of, evaluated, squares
from hypothesis import given
from hypothesis import strategies as st

from shards import manifest
from shards.commit import StageFolder
from shards.errors import ShardError
from shards.reader import BaseShard
from shards.store import Store
from villa_dist.attributes import vocabulary
from villa_dist.attributes.vocabulary import Vocabulary
from villa_dist.config import Config, RegionsConfig
from villa_dist.evaluate.bootstrap import image_weights
from villa_dist.evaluate.figures import Harmonic, Mean, drawn, lines, tables
from villa_dist.evaluate.mapping_boxes import Tally, attributes_of, named_boxes
from villa_dist.evaluate.mapping_quality import MATCH_IOU, by_rule, largest, matched, meets
from villa_dist.observe import Timers
from villa_dist.pipeline import Pipeline
from villa_dist.regions.boxes import iou
from villa_dist.regions.grid import GridProposer
from villa_dist.regions.proposals import Photo
from villa_dist.report import baseline
from villa_dist.report.build import render
from villa_dist.report.compare import figures as compared
from villa_dist.runner import LocalRunner
from villa_dist.stages.base import StageRequest, write_sidecar
from villa_dist.stages.pairs import pairs_table
from villa_dist.types import RegionAttributePairs

PHRASES = (*COLOURS, "square")  # nothing is called a square
WAYS = ("mapping", "every region", "the largest region")
Boxed = list[tuple[list[float], str]]


def pairs(boxes: Any, said: list[tuple[int, int, float]]) -> RegionAttributePairs:
    region, attribute, score = ([s[i] for s in said] for i in range(3))
    return RegionAttributePairs(
        np.array(boxes, np.float32).reshape(-1, 4),
        np.array(region, np.int64),
        np.array(attribute, np.int64),
        np.array(score, np.float32),
    )


def write_words(config: Config) -> None:
    """A vocabulary with a synonym, and an attribute that no category is."""
    store, kept = Store(config.run), vocabulary.choice(Store(config.run))
    assert kept is not None
    prompts = tuple((p,) for p in PHRASES)
    words = Vocabulary(PHRASES, ("all",) * 4, (1,) * 4, prompts, (("crimson", "dark red"), (), (), ()), (0,) * 4)
    vocabulary.write(store, words, kept)


def write_pairs(
    config: Config, of_image: dict[int, RegionAttributePairs], order: Callable[[list[str]], list[str]] = list
) -> None:
    """As the pairs stage would; no pair in images that are not named. order: of a shard's rows."""
    request = StageRequest("pairs", "pairs", "test", config, "f" * 16)
    folder = StageFolder(request.dataset, "base")
    shards = manifest.read(folder).shards
    for shard in shards:
        base = BaseShard(folder, shard)
        keys = order(base.keys)
        table = pairs_table(keys, [of_image.get(int(k), pairs([], [])) for k in keys])
        write_sidecar(request, base, lambda table=table: table, Timers())  # type: ignore[misc]
    manifest.write(request.output(), shards)


def odd_truth(folder: Path) -> str:
    """Names that are synonyms, boxes of colours that no text mentions, crowds, flat boxes, images without boxes or truth."""
    truth = json.loads((folder / "truth.json").read_text())
    names = {IDS["red"]: "dark_red", IDS["green"]: "greens", IDS["blue"]: "blue", 20: "greenhouse"}
    truth["categories"] = [{"id": n, "name": name} for n, name in names.items()]
    order = [IDS[c] for c in COLOURS]
    for n, box in enumerate(truth["annotations"]):
        if n % 5 == 0:
            box["category_id"] = order[(order.index(box["category_id"]) + 1) % 3]
        if n % 7 == 0:
            box["category_id"] = 20
        box["iscrowd"] = int(n % 6 == 1)
        if n % 11 == 3:
            box["bbox"][2] = 0
    truth["annotations"] = [a for a in truth["annotations"] if a["image_id"] not in (4, 5, 29, 30)]
    truth["images"] = [i for i in truth["images"] if i["id"] < 29]  # 29 and 30 have no truth
    (folder / "odd.json").write_text(json.dumps(truth))
    return str(folder / "odd.json")


def overlap(a: list[float], b: list[float]) -> float:
    width, height = (min(a[i + 2], b[i + 2]) - max(a[i], b[i]) for i in (0, 1))
    both = max(width, 0.0) * max(height, 0.0)
    areas = [(c[2] - c[0]) * (c[3] - c[1]) for c in (a, b)]
    return both / (sum(areas) - both) if both else 0.0


def known(file: str) -> dict[int, Boxed]:
    """By image the boxes of an attribute that its text mentions: what counts as true, read from the file itself."""
    truth = json.loads(Path(file).read_text())
    spelled = {"dark_red": "red", "greens": "green", "blue": "blue"}
    name = {c["id"]: spelled.get(c["name"], "") for c in truth["categories"]}
    found: dict[int, Boxed] = {i["id"]: [] for i in truth["images"]}
    for a in truth["annotations"]:
        x, y, w, h = a["bbox"]
        said = name[a["category_id"]]
        if not a["iscrowd"] and w > 0 and h > 0 and said in squares(a["image_id"])[2]:
            found[a["image_id"]].append(([x, y, x + w, y + h], said))
    return found


def by_loops(truth: dict[int, Boxed], given: dict[int, list[tuple[list[float], str, float]]]) -> dict[str, Any]:
    """given: by image (box, attribute, score) of each pair."""
    right = every = found = boxes = once = 0
    of: dict[str, list[int]] = defaultdict(lambda: [0, 0, 0, 0])
    for image, true in truth.items():
        met, taken = set(), set()
        for box, said, _ in sorted(given.get(image, []), key=lambda p: -p[2]):
            every, of[said][1] = every + 1, of[said][1] + 1
            hits = [t for t, (other, name) in enumerate(true) if name == said and overlap(box, other) >= 0.5]
            right, of[said][0] = right + bool(hits), of[said][0] + bool(hits)
            met.update(hits)
            free = [t for t in hits if t not in taken]
            if free:
                taken.add(max(free, key=lambda t: (overlap(box, true[t][0]), -t)))
        for t, (_, name) in enumerate(true):
            boxes, of[name][3] = boxes + 1, of[name][3] + 1
            found, of[name][2] = found + (t in met), of[name][2] + (t in met)
        once += len(taken)
    precision, recall = 100 * right / every, 100 * found / boxes
    return {
        "f1": 2 * precision * recall / (precision + recall),
        "precision": precision,
        "recall": recall,
        "f1_once": 200 * once / (every + boxes),
        "pairs": every,
        "true_boxes": boxes,
        "of": {a: tuple(counts) for a, counts in of.items()},
    }


def assigned(seed: int = 0) -> dict[int, RegionAttributePairs]:
    """Jittered true squares and others, some of them several times, with colours that the text mentions and "square"."""
    r = np.random.default_rng(seed)
    found = {}
    for n in TEST:
        _, corners, colours = squares(n)
        if n % 6 == 0 or not colours:
            continue
        boxes = np.array(corners, float).repeat(2, 0) + r.integers(-3, 4, (2 * len(corners), 4))
        boxes = np.concatenate([np.clip(boxes, 0, SIDE), [[0.0, 0.0, 9.0, 9.0]]])
        ids = sorted({COLOURS.index(c) for c in colours} | {3})
        said = [(b, a) for b in range(len(boxes)) for a in ids if r.random() < 0.6]
        score = r.permutation(len(said)) / 64
        found[n] = pairs(boxes, [(b, a, s) for (b, a), s in zip(said, score.tolist(), strict=True)])
    return found


def rows_of(of_image: dict[int, RegionAttributePairs]) -> dict[int, list[tuple[list[float], str, float]]]:
    """Without "square", which cannot be judged."""
    return {
        n: [
            (p.boxes[r].tolist(), PHRASES[a], float(s))
            for r, a, s in zip(p.region, p.attribute, p.score, strict=True)
            if PHRASES[a] != "square"
        ]
        for n, p in of_image.items()
    }


def measured(folder: Path, boxes: str = "both", **more: Any) -> tuple[Config, dict[str, Any]]:
    config = config_of(folder, truth=odd_truth(folder), boxes=boxes)
    values = config.model_dump(mode="json")
    values["evaluate"]["bootstrap"] = 30
    config = Config.model_validate(values | more)
    write_words(config)
    write_pairs(config, assigned())
    return config, evaluated(config)["mapping_boxes"]["test"]


def figures_of(told: dict[str, Any]) -> dict[str, float]:
    return {k: v for k, v in told.items() if k != "intervals"}


def test_it_equals_plain_loops(folder: Path) -> None:
    config, found = measured(folder)
    truth = known(str(folder / "odd.json"))
    grid = GridProposer(RegionsConfig(proposals="grid", grid=[2, 2], grid_levels=2))
    given: dict[str, dict[int, Any]] = {"mapping": rows_of(assigned()), "every region": {}, "the largest region": {}}
    for n in truth:
        proposals = grid.propose([Photo(str(n), SIDE, SIDE)])[0].boxes.tolist()
        sizes = [(b[2] - b[0]) * (b[3] - b[1]) for b in proposals]
        said = set(squares(n)[2])
        given["every region"][n] = [(b, a, 1.0) for b in proposals for a in said]
        best = [b for b, s in zip(proposals, sizes, strict=True) if s == max(sizes)]
        given["the largest region"][n] = [(b, a, 1.0) for b in best for a in said]
    assert list(found["models"]) == list(WAYS) == list(given)
    hand = {way: by_loops(truth, pairs_) for way, pairs_ in given.items()}
    for way in WAYS:
        expected = {k: round(v, 4) for k, v in hand[way].items() if k in ("f1", "precision", "recall", "f1_once")}
        assert figures_of(found["models"][way]) == pytest.approx(expected, abs=1e-4)
        for name, (low, high) in found["models"][way]["intervals"].items():
            assert low <= high and low - 1 <= found["models"][way][name] <= high + 1
    mine = hand["mapping"]
    assert 0 < mine["f1_once"] < mine["f1"] < 100  # some boxes are found twice
    assert (found["pairs"], found["true_boxes"], found["images"]) == (mine["pairs"], mine["true_boxes"], len(truth))
    for row in found["by_attribute"]:
        right, every, met, boxes = mine["of"][row["attribute"]]
        assert (row["pairs"], row["true_boxes"]) == (every, boxes)
        assert row["precision"] == pytest.approx(100 * right / every, abs=1e-4)
        assert row["recall"] == pytest.approx(100 * met / boxes, abs=1e-4)
    assert {row["attribute"] for row in found["by_attribute"]} == set(COLOURS)
    counts = [row["true_boxes"] for row in found["by_attribute"]]
    assert counts == sorted(counts, reverse=True)
    squares_said = sum(int((p.attribute == 3).sum()) for n, p in assigned().items() if n in truth)
    assert any(w.startswith(f"{squares_said} pairs of attributes that no box") for w in found["warnings"])
    assert "2 images have no known boxes and do not count" in found["warnings"]
    gap = next(d for d in found["differences"] if d["metric"] == "f1" and d["first"] == "every region")
    assert gap["second"] == "mapping"
    assert gap["difference"] == pytest.approx(mine["f1"] - hand["every region"]["f1"], abs=1e-3)


def test_mentions_are_the_same_from_texts_and_from_region_sidecars(folder: Path) -> None:
    config, found = measured(folder)
    Pipeline(config, LocalRunner()).regions()
    assert evaluated(config)["mapping_boxes"]["test"] == found
    without = config_of(folder, truth=str(folder / "odd.json"), boxes="truth")
    told = evaluated(without, force=True)["mapping_boxes"]["test"]  # proposals come from the sidecars then
    assert {w: figures_of(f) for w, f in told["models"].items()} == {
        w: figures_of(f) for w, f in found["models"].items()
    }


def test_without_proposals_the_mapping_stands_alone(folder: Path) -> None:
    found = measured(folder, boxes="truth")[1]
    assert list(found["models"]) == ["mapping"] and not found["differences"]
    assert any("no proposals are at hand" in w for w in found["warnings"])


def test_the_samples_own_boxes_and_a_perfect_mapping(folder: Path) -> None:
    config = config_of(folder)
    perfect = {}
    for n in TEST:
        _, corners, colours = squares(n)
        perfect[n] = pairs(corners, [(i, COLOURS.index(c), 1.0) for i, c in enumerate(colours)])
    write_pairs(config, perfect)
    found = evaluated(config)["mapping_boxes"]["test"]
    assert figures_of(found["models"]["mapping"]) == dict.fromkeys(("f1", "precision", "recall", "f1_once"), 100.0)
    assert found["models"]["mapping"]["intervals"]["f1"] == [100.0, 100.0]
    assert found["true_boxes"] == found["pairs"] == sum(len(squares(n)[2]) for n in TEST)


def test_the_figures_are_told(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        config, found = measured(folder)
    mine = found["models"]["mapping"]
    table = tables({"mapping_boxes": {"test": found}})[0]
    row = next(line for line in lines(table) if line.startswith("Mapping model "))
    assert row.split()[2:] == [f"{mine[k]:.2f}" for k in ("f1", "precision", "recall", "f1_once")]
    assert row in caplog.messages
    page = render(config)
    low, high = mine["intervals"]["f1"]
    assert f'<td class="n">{mine["f1"]:.1f} <small>{low:.1f} to {high:.1f}</small></td>' in page
    assert "Mapping model against it" in page and "ViLLA against it" in page
    assert f"F1 is {mine['f1']:.1f}% for Mapping model" in page and "3 ways of assigning" in page
    red = next(r for r in found["by_attribute"] if r["attribute"] == "red")
    assert f'<th scope="row">red</th><td class="n">{red["true_boxes"]}</td><td class="n">{red["pairs"]}</td>' in page
    assert "cannot be judged" in page
    told = baseline.of_run(config.run)
    assert told.metrics["test/mapping_boxes/mapping/f1"].value == mine["f1"]
    assert told.metrics["test/mapping_boxes/mapping/f1"].interval == (low, high)
    shown = {(r.of, r.what) for r in compared([told, told]) if "mapping_boxes" in r.of}
    assert ("mapping_boxes, Mapping model", "F1, a box once") in shown


def test_nothing_is_told_without_pairs_or_true_boxes(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = config_of(folder)
    assert "mapping_boxes" not in evaluated(config)
    write_pairs(config, {})
    store, kept = Store(config.run), vocabulary.choice(Store(config.run))
    assert kept is not None
    vocabulary.write(store, Vocabulary(("square",), ("all",), (1,), (("square",),)), kept)
    assert "mapping_boxes" not in evaluated(config)
    assert "has no known box whose name is an attribute" in caplog.text


def test_pairs_of_other_images_are_refused(folder: Path) -> None:
    config = config_of(folder)
    write_pairs(config, {}, lambda keys: [*keys[1:], keys[0]])
    with pytest.raises(ShardError, match=r"pairs/0+\.parquet row 0 has key '000002', its base shard '000001'"):
        evaluated(config)


def test_names_of_categories_are_attributes_as_texts_mention_them() -> None:
    phrases = ("dog", "bow", "person", "air conditioner", "hot dog", "glasses", "glass")
    synonyms = ((), (), ("man", "human being"), (), (), (), ())
    words = Vocabulary(phrases, ("all",) * 7, (1,) * 7, tuple((p,) for p in phrases), synonyms)
    names = ["Dogs", "bow_(weapon)", "bow_(decorative_ribbons)", "man", "human being", "air_conditioner", "hot dog"]
    names += ["hot dog stand", "dog, big", "dog bow", "glass", "glasses", "cat", "", "!?"]
    said = {n: phrases[a] for n, a in attributes_of(names, words).items()}
    assert said == {
        "Dogs": "dog",
        "bow_(weapon)": "bow",
        "bow_(decorative_ribbons)": "bow",
        "man": "person",
        "human being": "person",
        "air_conditioner": "air conditioner",
        "hot dog": "hot dog",
        "glass": "glass",
        "glasses": "glasses",
    }


def test_boxes_without_an_attribute_crowds_and_flat_ones_are_left_out() -> None:
    box = np.array([[1, 2, 3, 4], [0, 0, 5, 5], [0, 0, 5, 0], [2, 2, 2, 2]], float)
    corners, ids = named_boxes(box, ["a", "a", "a", "b"], np.array([False, True, False, False]), {"a": 3})
    assert corners.tolist() == [[1, 2, 4, 6]] and ids.tolist() == [3]
    corners, ids = named_boxes(np.zeros((0, 4)), [], np.zeros(0, bool), {"a": 3})
    assert corners.shape == (0, 4) and ids.shape == (0,)


def test_several_regions_on_one_box_by_hand() -> None:
    """Two regions on one box are both right, once only one of them is; one region on two boxes finds both."""
    truth = pairs([[0, 0, 10, 10], [20, 0, 30, 10], [20, 1, 30, 11]], [(0, 0, 1), (1, 1, 1), (2, 1, 1)])
    mine = pairs([[0, 0, 10, 9], [1, 0, 10, 10], [20, 0, 30, 10]], [(0, 0, 0.5), (1, 0, 0.9), (2, 1, 0.9), (2, 0, 0.1)])
    tally = Tally.of(3)
    tally.add(mine, truth)
    tally.add(pairs([], []), pairs([], []))
    assert tally.sums.tolist() == [[3, 4, 3, 3, 2], [0, 0, 0, 0, 0]]
    assert tally.of_attribute.tolist() == [[2, 3, 1, 1], [1, 1, 2, 2], [0, 0, 0, 0]]
    rows = tally.by_attribute(["x", "y", "z"])
    assert [r["attribute"] for r in rows] == ["y", "x"]  # by true boxes; what neither has is left out
    assert rows[1] == {
        "attribute": "x",
        "pairs": 3,
        "true_boxes": 1,
        "precision": 66.6667,
        "recall": 100.0,
        "f1": 80.0,
    }
    assert [r["attribute"] for r in tally.by_attribute(["x", "y", "z"], most=1)] == ["y"]


def test_rules_give_every_mention_to_their_regions() -> None:
    boxes = np.array([[0, 0, 4, 4], [0, 0, 2, 8], [0, 0, 3, 3]], np.float32)
    assert largest(boxes).tolist() == [True, True, False]
    found = by_rule(boxes, np.array([5, 7]), largest(boxes))
    assert list(zip(found.region.tolist(), found.attribute.tolist(), strict=True)) == [(0, 5), (0, 7), (1, 5), (1, 7)]
    assert not len(by_rule(boxes[:0], np.array([5]), largest(boxes[:0])).region)
    assert not len(by_rule(boxes, np.zeros(0, np.int64), largest(boxes)).region)


def one_by_one(mine: RegionAttributePairs, truth: RegionAttributePairs) -> list[int]:
    """`matched`, looking at every pair and every box."""
    found = [-1] * len(mine.region)
    left = {(int(r), int(a)) for r, a in zip(truth.region, truth.attribute, strict=True)}
    for p in sorted(range(len(found)), key=lambda p: (-float(mine.score[p]), p)):
        box = mine.boxes[mine.region[p]].astype(np.float64)
        near = sorted(
            (-float(iou(box[None], truth.boxes[t].astype(np.float64)[None])[0, 0]), t) for t in range(len(truth.boxes))
        )
        for minus, t in near:
            if -minus >= MATCH_IOU and (t, int(mine.attribute[p])) in left:
                left.remove((t, int(mine.attribute[p])))
                found[p] = t
                break
    return found


side = st.tuples(*[st.integers(0, 3)] * 2, *[st.integers(1, 3)] * 2).map(
    lambda b: [b[0], b[1], b[0] + b[2], b[1] + b[3]]
)


@given(st.data())
def test_matching_equals_one_by_one(data: st.DataObject) -> None:
    def drawn_pairs() -> RegionAttributePairs:
        boxes = data.draw(st.lists(side, max_size=5))
        pair = st.tuples(st.integers(0, len(boxes) - 1), st.integers(0, 2), st.sampled_from([0.1, 0.5, 0.9]))
        return pairs(boxes, data.draw(st.lists(pair, max_size=8)) if boxes else [])

    mine, truth = drawn_pairs(), drawn_pairs()
    expected = one_by_one(mine, truth)
    assert matched(mine, truth).tolist() == expected
    met = meets(mine, truth)
    assert met.shape == (len(mine.region), len(truth.region))
    assert all(met[p].any() for p, t in enumerate(expected) if t >= 0)


def test_a_harmonic_mean_is_taken_within_each_resample() -> None:
    r = np.random.default_rng(0)
    first, second = r.integers(0, 5, (2, 12, 2)).astype(float)
    first[:, 1] += first[:, 0]
    second[:, 1] += second[:, 0]
    draws = drawn({"x": {"f": Harmonic("a", "b"), "a": Mean(first), "b": Mean(second)}}, 7)
    weights = np.concatenate([np.ones((1, 12)), image_weights(12, 7, int(np.random.default_rng(0).integers(2**63)))])
    for b, weight in enumerate(weights):
        one, two = ((weight @ s)[0] / (weight @ s)[1] for s in (first, second))
        assert draws["a"]["x"][b] == pytest.approx(one)
        assert draws["f"]["x"][b] == pytest.approx(2 * one * two / (one + two))
    nothing = np.zeros((12, 2))
    for a, b, expected in ((nothing, second, 0.0), (second * [0, 1], nothing, 0.0), (nothing, nothing, np.nan)):
        found = drawn({"x": {"f": Harmonic("a", "b"), "a": Mean(a), "b": Mean(b)}}, 0)["f"]["x"]
        assert found.tolist() == pytest.approx([expected], nan_ok=True)
