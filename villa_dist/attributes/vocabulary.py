"""The vocabulary: attribute ids, phrases, groups, counts and prompts, as `vocabulary.parquet`."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from shards import sidecar
from shards.digest import fingerprint
from shards.errors import VillaError
from shards.store import Store

NAME = "vocabulary.parquet"
CHOICE = "vocabulary.json"
SCHEMA = pa.schema(
    [
        ("attribute", pa.int32()),
        ("phrase", pa.string()),
        ("group", pa.string()),
        ("count", pa.int64()),
        ("prompts", pa.list_(pa.string())),
    ]
)


@dataclass(frozen=True)
class Vocabulary:
    """Attribute i is `phrases[i]`; `counts[i]` images of the training split mention it."""

    phrases: tuple[str, ...]
    groups: tuple[str, ...]
    counts: tuple[int, ...]
    prompts: tuple[tuple[str, ...], ...]

    def __len__(self) -> int:
        return len(self.phrases)

    @property
    def fingerprint(self) -> str:
        """Names ids, phrases and prompts; counts may change with the data without moving an id."""
        return fingerprint([list(self.phrases), [list(p) for p in self.prompts]])


def build(phrases: list[dict[str, object]], counts: Counter[int], min_count: int) -> Vocabulary:
    """Phrases with at least `min_count` images, in the order given. Raises: VillaError when none is left."""
    kept = [i for i in range(len(phrases)) if counts[i] >= min_count]
    if not kept:
        raise VillaError(
            f"none of the {len(phrases)} phrases of the vocabulary occurs in {min_count} or more texts; check "
            "vocabulary.attributes against the data, or lower vocabulary.min_count"
        )

    def prompts_of(index: int) -> tuple[str, ...]:
        given = phrases[index].get("prompts") or [phrases[index]["phrase"]]
        assert isinstance(given, list)
        return tuple(str(p) for p in given)

    return Vocabulary(
        tuple(str(phrases[i]["phrase"]) for i in kept),
        tuple(str(phrases[i].get("group") or "all") for i in kept),
        tuple(counts[i] for i in kept),
        tuple(prompts_of(i) for i in kept),
    )


def write(store: Store, vocabulary: Vocabulary, choice: Mapping[str, Any]) -> None:
    """choice: the settings that chose these phrases, kept beside them."""
    store.put(CHOICE, json.dumps(choice, indent=1, sort_keys=True).encode())
    columns = {
        "attribute": list(range(len(vocabulary))),
        "phrase": list(vocabulary.phrases),
        "group": list(vocabulary.groups),
        "count": list(vocabulary.counts),
        "prompts": [list(p) for p in vocabulary.prompts],
    }
    store.put(NAME, sidecar.to_bytes(sidecar.table(SCHEMA, columns)))


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
    )
