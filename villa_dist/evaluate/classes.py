"""Which categories compete in zero-shot detection, and which of them are base and novel."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass

from villa_dist.config_evaluate import ClassesConfig, DetectionConfig
from villa_dist.evaluate.errors import EvaluationError


def _names(text: str) -> tuple[str, ...]:
    return tuple(" ".join(name.split()) for name in text.split(","))


# COCO's 48 base and 17 novel categories (Bansal et al., 2018), which open-vocabulary detectors report on
COCO_BASE = _names("""
    person, bicycle, car, motorcycle, train, truck, boat, bench, bird, horse, sheep, bear, zebra, giraffe,
    backpack, handbag, suitcase, frisbee, skis, kite, surfboard, bottle, fork, spoon, bowl, banana, apple,
    sandwich, orange, broccoli, carrot, pizza, donut, chair, bed, toilet, tv, laptop, mouse, remote,
    microwave, oven, toaster, refrigerator, book, clock, vase, toothbrush
""")
COCO_NOVEL = _names("""
    airplane, bus, cat, dog, cow, elephant, umbrella, tie, snowboard, skateboard, cup, knife, cake, couch,
    keyboard, sink, scissors
""")
SPLITS = {"coco_48_17": ClassesConfig(base=list(COCO_BASE), novel=list(COCO_NOVEL))}


@dataclass(frozen=True)
class Classes:
    """names: of all that compete, in the order of `ids`, ascending. groups: ids of novel and base, where they are told
    apart."""

    names: tuple[str, ...]
    ids: tuple[int, ...]
    groups: dict[str, tuple[int, ...]]


def asked(config: DetectionConfig) -> list[str | int]:
    """The classes that a config lists; none where it takes all."""
    listed = SPLITS[config.classes] if isinstance(config.classes, str) else config.classes
    return [*listed.base, *listed.novel] if listed else []


def chosen(config: DetectionConfig, names: Sequence[str], ids: Sequence[int], place: str) -> Classes:
    """The classes of a config among the categories of a truth. place: of the truth, for messages.

    Raises: EvaluationError for a name or id that the truth does not have, with the nearest, and for a name it has twice.
    """
    known = dict(zip(ids, names, strict=True))
    twice = next((n for i, n in enumerate(names) if n in names[:i]), None)
    if twice is not None:
        raise EvaluationError(f"{place} has two categories called {twice!r}, which no text can tell apart; rename one")
    if config.classes is None:
        return Classes(tuple(known[i] for i in sorted(known)), tuple(sorted(known)), {})
    listed = SPLITS[config.classes] if isinstance(config.classes, str) else config.classes
    by_name = {name: i for i, name in known.items()}
    groups = {
        group: tuple(sorted(_id(c, known, by_name, place) for c in entries))
        for group, entries in (("novel", listed.novel), ("base", listed.base))
        if entries
    }
    every = sorted({i for group in groups.values() for i in group})
    if len(every) < sum(map(len, groups.values())):
        raise EvaluationError("evaluate.detection.classes names a category twice, by its name and its id perhaps")
    return Classes(tuple(known[i] for i in every), tuple(every), groups if len(groups) > 1 else {})


def _id(category: str | int, known: dict[int, str], by_name: dict[str, int], place: str) -> int:
    if isinstance(category, int):
        if category in known:
            return category
        raise EvaluationError(
            f"evaluate.detection.classes: {place} has no category {category}; its ids are {_some(known)}"
        )
    if category in by_name:
        return by_name[category]
    near = difflib.get_close_matches(category, by_name, 1)
    hint = f"did you mean {near[0]!r}?" if near else f"it has {_some(by_name)}"
    raise EvaluationError(f"evaluate.detection.classes: {place} has no category {category!r}; {hint}")


def _some(values: object) -> str:
    listed = [str(v) for v in values]  # type: ignore[attr-defined]
    return ", ".join(listed[:8]) + (f" and {len(listed) - 8} more" if len(listed) > 8 else "")
