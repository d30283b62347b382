"""The report's first paragraph: what was found, computed from the figures. Pure functions.

A figure that is missing is left out of the sentence, a negative one is said in words.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from villa_dist.report.tables import Refusals, Score, SplitResults
from villa_dist.report.text import count, figure, listed, number, percent, signed

DIRECTIONS = {"a2r": "attribute→region retrieval (A→R)", "r2a": "region→attribute retrieval (R→A)"}
SHORT = {"a2r": "A→R", "r2a": "R→A"}


def summary(measured: Sequence[SplitResults], images: Mapping[str, Any], refused: Refusals) -> list[str]:
    """Sentences, most important first."""
    if not measured:
        found = ["No split of this run has known region-attribute pairs, so its models were not measured."]
    else:
        first = measured[0]
        found = [_scores(first, images), *_gap(first), *_mapping(first)]
    return [s for s in [*found, _refused(refused)] if s]


def _scores(results: SplitResults, images: Mapping[str, Any]) -> str:
    villa, base = results.row("villa"), results.row("one_to_one")
    size = [count(images[results.split], "image")] if number(images.get(results.split)) is not None else []
    size += [count(results.regions, "region")] if results.regions is not None else []
    where = f"the {results.split} split" + (f" ({', '.join(size)})" if size else "")
    if villa is None:
        known = _values(base) if base else []
        return f"On {where} no figure of ViLLA is known" + (
            f"; the one-to-one VLM reaches {listed(known)}." if known else "."
        )
    reached = _values(villa)
    if not reached:
        return f"On {where} no figure of ViLLA is known."
    against = [_difference(getattr(villa, m), SHORT[m]) for m in SHORT if getattr(villa, m).difference is not None]
    return f"On {where} ViLLA reaches {listed(reached)}" + (f": {listed(against)}." if against else ".")


def _values(row: Any) -> list[str]:
    return [f"{percent(s.value)} in {DIRECTIONS[m]}" for m in DIRECTIONS if (s := getattr(row, m)).value is not None]


def _difference(score: Score, name: str) -> str:
    assert score.difference is not None
    points = figure(abs(score.difference), 1)
    if points == figure(0.0, 1):
        return f"level with the one-to-one VLM in {name}"
    span = f" (95%: {score.paired})" if score.paired else ""
    return f"{points} points {'above' if score.difference > 0 else 'below'} the one-to-one VLM in {name}{span}"


def _gap(results: SplitResults) -> list[str]:
    """How far ViLLA comes from the one-to-one VLM towards the VLM trained on true pairs."""
    villa, best = results.row("villa"), results.row("ground_truth")
    if villa is None or best is None:
        return []
    part, beyond, level, behind, none, brought, unsure = [], [], [], [], [], [], []
    for metric, name in SHORT.items():
        mine, ceiling = getattr(villa, metric), getattr(best, metric)
        share = mine.closed
        if ceiling.difference is not None and ceiling.closed is None and ceiling.chance:
            unsure.append(f"{signed(ceiling.difference, 1)} points in {name} (95%: {ceiling.paired})")
        elif ceiling.difference is not None and ceiling.closed is None:
            none.append(name)
            brought.append(signed(ceiling.difference, 1))
        elif share is None:
            continue
        elif share < 0.0:
            behind.append(f"{name} ({percent(share, 0)} of the gap)")
        elif mine.beyond:
            beyond.append(f"{name} ({percent(share, 0)} of the gap)")
        elif share > 100.0:
            known = "its lead over it may be chance" if mine.level else "no interval of its lead over it is known"
            level.append(f"{name} ({percent(share, 0)} of the gap; {known})")
        else:
            part.append(f"{percent(share, 0)} in {name}")
    said = [f"closes part of the gap to training on true pairs: {listed(part)}"] if part else []
    said += [f"reaches training on true pairs in {listed(level)}"] if level else []
    said += [f"goes beyond training on true pairs in {listed(beyond)}"] if beyond else []
    said += [f"falls behind, away from training on true pairs, in {listed(behind)}"] if behind else []
    sentences = [f"It {phrase}." for phrase in said]
    if none:
        points = f"{listed(brought)} points compared with the one-to-one VLM"
        sentences.append(f"In {listed(none)} there is no gap to close: training on true pairs brings {points}.")
    if unsure:
        sentences.append(
            f"Training on true pairs brings {listed(unsure)} over the one-to-one VLM, which may be chance, so no share of "
            "the gap is told."
        )
    return sentences


def _mapping(results: SplitResults) -> list[str]:
    precision, recall = (number(results.mapping.get(name)) for name in ("precision", "recall"))
    if precision is None or recall is None:
        return []
    return [
        f"Of the pairs that the mapping assigned, {percent(precision)} are right, and it found {percent(recall)} of "
        f"the true ones (F1 {figure(results.mapping.get('f1'), 1)})."
    ]


def _refused(refused: Refusals) -> str:
    if not refused.splits:
        return ""
    if not refused.total:
        return "Ingest refused no sample."
    return f"Ingest refused {count(refused.total)} of {count(sum(refused.came_in), 'sample')}; the reasons are below."
