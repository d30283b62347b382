"""The vocabulary: attribute ids, phrases, groups, counts, prompts and synonyms, as `vocabulary.parquet`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from jaxtyping import Int

from shards import sidecar
from shards.digest import fingerprint
from shards.errors import VillaError
from shards.store import Store
from villa_dist.attributes.extract import Negation, PhraseMatcher
from villa_dist.attributes.phrases import Phrase

NAME = "vocabulary.parquet"
CHOICE = "vocabulary.json"
CANDIDATES = "phrases.parquet"
SCHEMA = pa.schema(
    [
        ("attribute", pa.int32()),
        ("phrase", pa.string()),
        ("group", pa.string()),
        ("count", pa.int64()),
        ("prompts", pa.list_(pa.string())),
    ]
)
WRITTEN = pa.schema([*SCHEMA, ("synonyms", pa.list_(pa.string())), ("negated", pa.int64())])
CANDIDATE = pa.schema([("phrase", pa.string()), ("synonyms", pa.list_(pa.string()))])


@dataclass(frozen=True)
class Vocabulary:
    """Attribute i is `phrases[i]`, also said by `synonyms[i]`; `counts[i]` texts of the training split mention it, and
    `negated[i]` mention it only to deny it.
    """

    phrases: tuple[str, ...]
    groups: tuple[str, ...]
    counts: tuple[int, ...]
    prompts: tuple[tuple[str, ...], ...]
    synonyms: tuple[tuple[str, ...], ...] = ()
    negated: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self.phrases)

    def matcher(self, negation: Negation) -> PhraseMatcher:
        """Finds these attributes in a text, by their ids."""
        return PhraseMatcher(self.phrases, self.synonyms, negation)

    @property
    def fingerprint(self) -> str:
        """Names ids, phrases, prompts and synonyms; counts may change with the data without moving an id."""
        said = [list(self.phrases), [list(p) for p in self.prompts]]
        return fingerprint([*said, [list(s) for s in self.synonyms]] if any(self.synonyms) else said)


@dataclass(frozen=True)
class Counts:
    """Of P candidate phrases, out of `texts` texts: those that mention each, and those that only deny it."""

    said: Int[np.ndarray, " P"]
    negated: Int[np.ndarray, " P"]
    texts: int


@dataclass(frozen=True)
class Choice:
    """Which candidates become attributes, and in which order they are numbered."""

    min_count: int = 1
    max_fraction: float = 1.0
    max_phrases: int | None = None
    order: Literal["list", "count"] = "list"


def build(candidates: Sequence[Phrase], counts: Counts, choice: Choice) -> Vocabulary:
    """The phrases chosen, in the candidates' order, or by falling count and then by phrase.

    Raises: VillaError when none is left.
    """
    said = counts.said
    often = said >= choice.min_count
    common = said > choice.max_fraction * counts.texts
    kept = np.flatnonzero(often & ~common)
    if not len(kept):
        raise VillaError(_nothing_left(candidates, counts, choice, int((often & common).sum())))
    if choice.max_phrases is not None and len(kept) > choice.max_phrases:
        kept = np.sort(kept[np.argsort(-said[kept], kind="stable")[: choice.max_phrases]])
    if choice.order == "count":
        kept = np.asarray(sorted(kept.tolist(), key=lambda i: (-int(said[i]), candidates[i].phrase)))
    chosen = [candidates[int(i)] for i in kept]
    return Vocabulary(
        tuple(p.phrase for p in chosen),
        tuple(p.group or "all" for p in chosen),
        tuple(said[kept].tolist()),
        tuple(p.prompts or (p.phrase,) for p in chosen),
        tuple(p.synonyms for p in chosen),
        tuple(counts.negated[kept].tolist()),
    )


def _nothing_left(candidates: Sequence[Phrase], counts: Counts, choice: Choice, common: int) -> str:
    best = np.argsort(-counts.said, kind="stable")[:3]
    nearest = ", ".join(f"{candidates[int(i)].phrase!r} in {counts.said[i]}" for i in best if counts.said[i])
    return (
        f"none of the {len(candidates)} phrases of the vocabulary occurs in {choice.min_count} or more texts"
        + (f" and at most {choice.max_fraction:g} of all ({common} occur in more)" if common else "")
        + f" (of {counts.texts} texts; nearest: {nearest or 'no text mentions any'}); check vocabulary.attributes and "
        "vocabulary.lists against the data, or lower vocabulary.min_count"
        + (", or raise vocabulary.max_count_fraction" if common else "")
    )


def write(store: Store, vocabulary: Vocabulary, choice: Mapping[str, Any]) -> None:
    """choice: the settings that chose these phrases, kept beside them."""
    store.put(CHOICE, json.dumps(choice, indent=1, sort_keys=True).encode())
    size = len(vocabulary)
    columns = {
        "attribute": list(range(size)),
        "phrase": list(vocabulary.phrases),
        "group": list(vocabulary.groups),
        "count": list(vocabulary.counts),
        "prompts": [list(p) for p in vocabulary.prompts],
        "synonyms": [list(s) for s in vocabulary.synonyms or ((),) * size],
        "negated": list(vocabulary.negated or (0,) * size),
    }
    store.put(NAME, sidecar.to_bytes(sidecar.table(WRITTEN, columns)))


def choice(store: Store) -> dict[str, Any] | None:
    """The settings that chose the phrases; None where there is no vocabulary, or they are not readable."""
    if not store.exists(NAME) or not store.exists(CHOICE):
        return None
    try:
        found = json.loads(store.read(CHOICE))
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def read(store: Store) -> Vocabulary:
    """Raises: ShardError when there is none, or it is not readable."""
    found = sidecar.from_bytes(store.read(NAME), store.path(NAME), SCHEMA).to_pydict()
    return Vocabulary(
        tuple(found["phrase"]),
        tuple(found["group"]),
        tuple(found["count"]),
        tuple(tuple(p) for p in found["prompts"]),
        tuple(tuple(s) for s in found.get("synonyms", ())),
        tuple(found.get("negated", ())),
    )


def write_candidates(store: Store, candidates: Sequence[Phrase]) -> None:
    """For the workers that count them, which may not see the files they were read from."""
    columns = {"phrase": [p.phrase for p in candidates], "synonyms": [list(p.synonyms) for p in candidates]}
    store.put(CANDIDATES, sidecar.to_bytes(sidecar.table(CANDIDATE, columns)))


def read_candidates(store: Store) -> list[Phrase]:
    """Phrases and synonyms alone. Raises: ShardError when there are none, or they are not readable."""
    found = sidecar.from_bytes(store.read(CANDIDATES), store.path(CANDIDATES), CANDIDATE).to_pydict()
    pairs = zip(found["phrase"], found["synonyms"], strict=True)
    return [Phrase(phrase, synonyms=tuple(synonyms)) for phrase, synonyms in pairs]
