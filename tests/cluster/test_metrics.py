"""Counters of the work, as they reach Ray's metrics."""

from __future__ import annotations

from typing import Any

import pytest

from cluster import metrics
from shards.commit import Marker


class Counters:
    """Stands for `ray.util.metrics.Counter`, which needs a running Ray; refuses what that refuses."""

    def __init__(self) -> None:
        self.seen: dict[tuple[str, tuple[tuple[str, str], ...]], float] = {}

    def __call__(self, name: str, description: str, tag_keys: tuple[str, ...]) -> Any:
        counters = self

        class Counter:
            def inc(self, value: float, tags: dict[str, str]) -> None:
                assert value > 0 and set(tags) == set(tag_keys) and description
                key = (name, tuple(sorted(tags.items())))
                counters.seen[key] = counters.seen.get(key, 0) + value

        return Counter()


@pytest.fixture
def counters(monkeypatch: pytest.MonkeyPatch) -> Counters:
    made = Counters()
    monkeypatch.setattr("ray.util.metrics.Counter", made)
    metrics._counter.cache_clear()
    yield made
    metrics._counter.cache_clear()


def test_a_marker_is_counted_by_stage_reason_and_part(counters: Counters) -> None:
    marker = Marker(
        "000000",
        "pairs",
        "f",
        "d",
        10,
        "k",
        (),
        12,
        refused={"no_text": 2},
        counts={"pairs": 30, "regions": 40, "dropped_boxes": 3},
        seconds={"embed": 1.5, "map": 0.0},
    )
    metrics.count(marker)
    metrics.count(marker)
    metrics.count_retry("Deadline")
    stage = ("stage", "pairs")
    assert counters.seen == {
        ("villa_shards_total", (stage,)): 2,
        ("villa_images_total", (stage,)): 20,
        ("villa_regions_total", (stage,)): 80,
        ("villa_pairs_total", (stage,)): 60,
        ("villa_quarantined_total", (("reason", "no_text"), stage)): 4,
        ("villa_seconds_total", (("part", "embed"), stage)): 3.0,
        ("villa_retries_total", (("reason", "Deadline"),)): 1,
    }


def test_rays_own_counter_takes_the_names_and_tags() -> None:
    metrics._counter.cache_clear()
    metrics.add("villa_test_total", "a test", 1, {"stage": "pairs"})
