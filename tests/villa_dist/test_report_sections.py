"""Sections of the report: attributes, confusion, what stands together, shards of another kind, the data card, provenance."""

from __future__ import annotations

import json
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from report_run import Page, put

from shards.commit import Marker, StageFolder
from shards.errors import ShardError
from shards.store import Store
from villa_dist.attributes.vocabulary import Vocabulary
from villa_dist.config import Config
from villa_dist.evaluate import items
from villa_dist.evaluate.items import Items
from villa_dist.mapping import quality
from villa_dist.report import attributes, card, confusion, drift, explorer, plots, provenance, tables
from villa_dist.report.build import build
from villa_dist.report.markers import Markers
from villa_dist.report.scan import Scan, scan, see, spread
from villa_dist.revision import SUBMITTED, commit, revision
from villa_dist.types import RegionAttributePairs

PHRASES, GROUPS = ("red", "blue", "cat"), ("colour", "colour", "all")
LEFT, RIGHT, FAR = [0, 0, 10, 10], [10, 0, 20, 10], [40, 40, 60, 60]


def pairs(boxes: list[list[int]], *said: tuple[int, int, float]) -> RegionAttributePairs:
    """said: (box, attribute, score)."""
    region, attribute, score = (np.array(c) for c in zip(*said, strict=True)) if said else (np.zeros(0, int),) * 3
    return RegionAttributePairs(
        np.array(boxes, np.float32).reshape(-1, 4), region.astype(int), attribute.astype(int), score
    )


@pytest.fixture(scope="module")
def page(measured_runs: tuple[Config, Config]) -> Page:
    return Page(Path(build(measured_runs[0])).read_text(encoding="utf-8"))


# ---- confusion


def test_confusion_of_a_hand_made_image() -> None:
    """left is red and a cat, right is blue. Said: left is blue (wrong) and a cat; right is red (wrong); far is a cat."""
    truth = pairs([LEFT, RIGHT], (0, 0, 1), (0, 2, 1), (1, 1, 1))
    said = pairs([LEFT, RIGHT, FAR], (0, 1, 0.9), (0, 2, 0.8), (1, 0, 0.7), (2, 2, 0.6))
    found = Scan(judged=True, shards=1)
    see(found, 7, said, truth)
    assert found.regions == 2 and found.having == {0: 1, 1: 1, 2: 1}
    assert found.given == {(0, 1): 1, (2, 1): 1, (2, 2): 1, (1, 0): 1}
    made = confusion.matrix(found, PHRASES, GROUPS)
    assert made is not None and made.phrases == PHRASES
    assert made.cells == ((0.0, 100.0, 0.0), (100.0, 0.0, 0.0), (0.0, 100.0, 100.0))
    rows = confusion.confused(found, PHRASES, GROUPS)
    assert [(c.true, c.given, c.count, c.share) for c in rows] == [("blue", "red", 1, 100.0), ("red", "blue", 1, 100.0)]
    assert {a: [(h.box, h.right) for h in hits] for a, hits in found.best.items()} == {
        0: [((10.0, 0.0, 20.0, 10.0), False)],
        1: [((0.0, 0.0, 10.0, 10.0), False)],
        2: [((0.0, 0.0, 10.0, 10.0), True), ((40.0, 40.0, 60.0, 60.0), False)],
    }


def test_what_stands_together_beyond_its_rates() -> None:
    """Of 100 regions 10 are red, 10 are cats and 8 are both: one is expected. Blue stands with red as often as it must."""
    found = Scan(judged=False, shards=1)
    for i in range(100):
        said = [(0, 0, 0.5)] * (i < 10) + [(0, 2, 0.5)] * (2 <= i < 12) + [(0, 1, 0.5)]
        see(found, i, pairs([LEFT], *said), None)
    rows = confusion.together(found, PHRASES)
    assert [(t.first, t.second, t.count, t.expected, t.times) for t in rows] == [("red", "cat", 8, 1.0, 8.0)]
    assert confusion.matrix(found, PHRASES, GROUPS) is None


def test_an_image_without_anything_counts_nothing() -> None:
    found = Scan(judged=True, shards=1)
    see(found, 0, pairs([]), pairs([]))
    see(found, 1, pairs([LEFT], (0, 0, 1)), pairs([]))
    see(found, 2, pairs([]), pairs([LEFT], (0, 0, 1)))
    assert (found.images, found.regions, found.given, found.having) == (3, 1, {}, {0: 1})


def test_a_large_split_is_sampled_evenly() -> None:
    assert spread(3, 32) == [0, 1, 2] and spread(0, 32) == []
    chosen = spread(1000, 32)
    assert len(set(chosen)) == 32 and min(chosen) < 32 and max(chosen) > 967


def test_the_scan_agrees_with_the_mappings_counts(measured_runs: tuple[Config, Config], page: Page) -> None:
    config = measured_runs[0]
    found = scan(config, "test", judged=True)
    figures = json.loads((Path(config.run) / "results.json").read_text())["metrics"]["mapping"]
    right, all_true = sum(n for (b, a), n in found.given.items() if a == b), sum(found.having.values())
    assert 100 * right / all_true == pytest.approx(figures["recall"], abs=0.01)
    assert not found.part and found.images == 48
    assert "Most frequent confusions" in page.text


# ---- by attribute, by query


def test_bars_hold_the_figures_of_each_model() -> None:
    kept = {
        "one_to_one": Items("t", {}, np.array([10.0, np.nan, 30.0]), np.array([5, 0, 50])),
        "villa": Items("t", {}, np.array([60.0, np.nan, 50.0]), np.array([5, 0, 50])),
    }
    found = attributes.bars(kept, PHRASES, GROUPS)
    assert found is not None and found.main == 1 and found.labels == ("One-to-one VLM", "ViLLA")
    assert [(r.phrase, r.regions, r.values) for r in found.rows] == [
        ("red", 5, (10.0, 60.0)),
        ("cat", 50, (30.0, 50.0)),
    ]
    assert attributes.bars({}, PHRASES, GROUPS) is None


def test_differences_are_paired_on_the_same_task_only() -> None:
    draws = np.array([50.0, *np.random.default_rng(0).normal(50, 5, 400)])
    one, two = Items("t", {"a2r": draws}), Items("t", {"a2r": draws + 3})
    found = attributes.paired(one, two, "a2r")
    assert found is not None and (found.difference, found.low, found.high) == (3.0, 3.0, 3.0) and found.significant
    assert attributes.paired(one, Items("other", {"a2r": draws}), "a2r") is None
    assert attributes.paired(one, two, "r2a") is None and attributes.paired(None, two, "a2r") is None


def data_of(run: str) -> dict:
    html = (Path(run) / "report.html").read_text(encoding="utf-8")
    start = html.index('id="explorer-data">') + len('id="explorer-data">')
    return json.loads(html[start : html.index("</script>", start)])


def test_the_gallery_holds_what_each_model_ranks_first(measured_runs: tuple[Config, Config], page: Page) -> None:
    told = data_of(measured_runs[0].run)
    assert [r["id"] for r in told["rankings"]] == ["villa", "one_to_one", "mapping"] and told["judged"]
    query = next(q for q in told["queries"] if q["p"] == "red")
    right = [sum(hit[6] for hit in query["h"][job]) for job in ("villa", "one_to_one")]
    assert right[0] >= right[1] and query["v"]["villa"] >= query["v"]["one_to_one"]
    for image, x, y, width, height, _, _ in query["h"]["villa"]:
        picture = told["images"][image]
        assert [x, y, width, height] in [r[:4] for r in picture["r"]]  # a true region of that image
        assert picture["u"].startswith("data:image/png;base64,")


def test_what_the_budget_does_not_hold_is_left_out_fairly(
    measured_runs: tuple[Config, Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = measured_runs[0]
    monkeypatch.setattr(explorer, "MOST_REGIONS", 40)
    words = card.read_vocabulary(config.run)
    assert words is not None
    found = scan(config, "test", judged=True)
    told = explorer.explore(config, "test", {}, found, words.phrases, words.groups)
    assert 0 < sum(len(i["r"]) for i in told["images"]) <= 40
    assert all(hit[0] < len(told["images"]) for q in told["queries"] for hit in q["h"]["mapping"])
    best = explorer.in_turn([explorer.Ranking("mapping", "", found.best)], sorted(found.best))
    firsts = list(dict.fromkeys(hits[0].image for _, hits in sorted(found.best.items())))
    assert best[: len(firsts)] == firsts


# ---- shards


def test_a_drifted_shard_is_named(page: Page) -> None:
    assert page.row("000007")[1:] == ["0.600", "0.212", "0.050", "presence"]
    alt = next(v for tag, name, v in page.attributes if tag == "img" and name == "alt" and v.startswith("Presence"))
    assert "over 12 shards; 1 far from most" in alt


def test_far_is_far_on_either_side_and_of_enough_shards() -> None:
    values = {f"{i}": 0.5 + 0.01 * (i % 3) for i in range(9)} | {"low": 0.1, "high": 0.9}
    assert quality.far(values) == ["low", "high"]
    assert quality.far({"a": 0.0, "b": 1.0}) == []
    assert list(quality.outlying({s: {"presence": v} for s, v in values.items()})) == ["low"]


def test_ten_thousand_shards_are_one_small_figure() -> None:
    values = [0.9 + 0.001 * (i % 7) for i in range(10_000)]
    values[1234] = 0.2
    made = plots.scatter("Presence", "", "presence", values, [v < 0.5 for v in values])
    assert len(made.light) < 150_000 and "10,000 shards; 1 far from most" in made.alt


def test_a_run_whose_markers_say_nothing_has_no_quality(tmp_path: Path) -> None:
    config = Config(run=str(tmp_path))
    assert drift.mapping_quality(Markers(config.run)) == []


# ---- data and provenance


def test_the_card_counts_what_is_committed(page: Page) -> None:
    assert page.row("test")[:3] == ["test", "12", "48"] and page.row("test")[5] == "10.0"  # 40 mentions of 4 images


def test_the_sections_read_each_marker_once(
    measured_runs: tuple[Config, Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[tuple[str, str]] = []
    plain = StageFolder.marker

    def counted(stage: StageFolder, shard: str) -> Marker:
        read.append((stage.store.path(), shard))
        return plain(stage, shard)

    monkeypatch.setattr(StageFolder, "marker", counted)
    markers = Markers(measured_runs[0].run)
    rows = tables.profile(markers)
    tables.refusals(markers), card.card(markers, None), drift.mapping_quality(markers)
    assert len(read) == len(set(read)) == sum(row.shards for row in rows) > 12


def test_of_very_many_shards_some_are_read_and_the_page_says_so(measured_runs: tuple[Config, Config]) -> None:
    some, every = (Markers(measured_runs[0].run, most) for most in (5, 1000))
    part, whole = some.of("test", "pairs"), every.of("test", "pairs")
    assert (part.shards, part.read, whole.read) == (12, 4, 12)
    names = [f"{n:06d}" for n in (0, 3, 6, 9)]
    assert list(part.of_shard) == names
    assert part.counts["pairs"] == 3 * sum(whole.of_shard[n]["pairs"] for n in names)
    row = {(r.split, r.folder): r for r in tables.profile(some)}
    assert row["test", "pairs"].made.endswith("estimated from 4 of the shards")
    assert row["test", "pairs"].samples == 48 and "estimated" not in row["test", "base"].made
    assert some.of("test", "base") == every.of("test", "base")


def test_frequencies_are_told_by_powers_of_ten() -> None:
    assert card.spread([0, 3, 9, 12, 5000]) == (
        ("0", 1),
        ("1 to 9", 2),
        ("10 to 99", 1),
        ("100 to 999", 0),
        ("1,000 to 9,999", 1),
    )
    assert card.spread([]) == ()
    words = Vocabulary(tuple("abc"), ("all",) * 3, (1, 40, 20), ((),) * 3)
    made = card.card(Markers("/nowhere"), words)
    assert [(f.phrase, f.count, f.share) for f in made.frequent] == [("b", 40, 100.0), ("c", 20, 50.0), ("a", 1, 2.5)]


def test_the_commit_of_a_checkout_is_told(tmp_path: Path) -> None:
    assert commit(tmp_path) is None
    if shutil.which("git") is None:
        pytest.skip("no git")
    who = ["-c", "user.name=a", "-c", "user.email=a@b"]
    for line in (["init", "-q"], [*who, "commit", "-q", "--allow-empty", "-m", "x"]):
        subprocess.run(["git", "-C", str(tmp_path), *line], check=True)
    clean = commit(tmp_path)
    assert clean is not None and len(clean) == 12 and int(clean, 16) >= 0
    (tmp_path / "f").write_text("x")
    subprocess.run(["git", "-C", str(tmp_path), "add", "f"], check=True)
    assert commit(tmp_path) == f"{clean}-dirty"
    (tmp_path / ".git" / "HEAD").write_text("broken")
    assert commit(tmp_path) is None


def test_a_submitted_jobs_commit_is_that_of_its_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its copy of the code has no .git; what has one says so itself."""
    monkeypatch.setenv(SUBMITTED, "0123456789ab-dirty")
    assert revision(tmp_path) == "0123456789ab-dirty"
    here = commit(Path(__file__).parents[2])
    assert here is None or provenance.code()["commit"] == here
    monkeypatch.setattr("villa_dist.__file__", str(tmp_path / "villa_dist" / "__init__.py"))
    assert provenance.code()["commit"] == "0123456789ab-dirty"
    for odd in ("", "<script>", "0123456789ab\nx"):
        monkeypatch.setenv(SUBMITTED, odd)
        assert revision(tmp_path) is None and "commit" not in provenance.code()


def test_provenance_tells_code_config_and_data(page: Page, measured_runs: tuple[Config, Config]) -> None:
    assert page.row("Report written by")[1].startswith("villa-dist ")
    for name in ("Config", "Images, test", "Vocabulary", "base, test, made with"):
        assert len(page.row(name)[1]) == 16 and int(page.row(name)[1], 16) >= 0


def test_what_was_kept_of_other_data_is_left_out(measured_runs: tuple[Config, Config], tmp_path: Path) -> None:
    """Vocabulary, images or truth made anew since: places and attributes of then mean others now."""
    shutil.copytree(measured_runs[0].run, tmp_path / "run")
    config = measured_runs[0].model_copy(update={"run": str(tmp_path / "run")})
    store = Store(config.run)
    kept = items.read(store, "test", "villa")
    assert kept is not None
    items.write(store, "test", "villa", replace(kept, task="another", relevant=kept.relevant[:3]))
    (tmp_path / "run" / "evaluated" / "test-one_to_one.npz").unlink()
    found = Page(Path(build(config)).read_text(encoding="utf-8"))
    assert "Evaluate again to have it" in found.text and [r["id"] for r in data_of(config.run)["rankings"]] == [
        "mapping"
    ]


def test_damaged_items_end_the_report_by_name(measured_runs: tuple[Config, Config], tmp_path: Path) -> None:
    shutil.copytree(measured_runs[0].run, tmp_path / "run")
    config = measured_runs[0].model_copy(update={"run": str(tmp_path / "run")})
    put(config, "evaluated/test-villa.npz", "PK")
    with pytest.raises(ShardError, match=r"test-villa\.npz is damaged"):
        build(config)
