"""Whether a marker's JSON is what a marker is: every field there, and of its type."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from shards.commit import Marker
from shards.errors import ShardError

TEXTS = (
    "shard",
    "stage",
    "fingerprint",
    "input_digest",
    "keys_digest",
    "came_in_digest",
    "refused_digest",
    "content_digest",
)
DIGEST = re.compile(r"[0-9a-f]{32}")
SHA256 = re.compile(r"([0-9a-f]{64})?")  # empty where the writer was told not to hash


def read_marker(data: bytes, place: str) -> Marker:
    """A marker whose fields have their types. Raises: ShardError naming the field that has not."""
    try:
        values = json.loads(data)
        problem = mistyped(values)
        data.decode("ascii")  # as json writes it; no half characters in messages
    except (ValueError, RecursionError) as error:
        problem = str(error)
    if problem:
        raise ShardError(
            f"marker {place} is damaged ({ascii(problem)[1:-1]}); remove it and run again: the shard is redone"
        )
    return Marker.from_bytes(data, place)


def mistyped(values: Any) -> str:
    """The first field that no marker has, or has otherwise; empty for a good one."""
    if not isinstance(values, dict):
        return f"expected an object, found {type(values).__name__}"
    wanted = set(Marker.__dataclass_fields__)
    if set(values) != wanted:
        return f"fields {sorted(set(values) ^ wanted)} are missing or unknown"
    for name in TEXTS:
        if not _is_text(values[name]):
            return f"{name} is no text: {values[name]!r}"
    for name in ("samples", "came_in"):
        if not _is_count(values[name]):
            return f"{name} is no count: {values[name]!r}"
    for name in ("refused", "counts", "seconds"):
        if not _numbers(values[name], whole=name == "refused"):
            return f"{name} does not map names to numbers: {values[name]!r}"
    for name in ("keys_digest", "came_in_digest", "refused_digest", "content_digest"):
        if not DIGEST.fullmatch(values[name]) and not (values[name] == "" and name != "keys_digest"):
            return f"{name} is no digest: {values[name]!r}"
    if not isinstance(values["warnings"], list) or not all(isinstance(w, str) for w in values["warnings"]):
        return f"warnings are no texts: {values['warnings']!r}"
    if not isinstance(values["outputs"], list):
        return f"outputs are no list: {values['outputs']!r}"
    return next((p for o in values["outputs"] if (p := _output_problem(o))), "")


def _output_problem(output: Any) -> str:
    if not isinstance(output, dict) or set(output) != {"file", "attempt", "bytes", "sha256"}:
        return f"an output is not file, attempt, bytes and sha256: {output!r}"
    for name in ("file", "attempt"):
        value = output[name]
        if not _is_text(value) or not value or value.startswith("/") or ".." in value.split("/"):
            return f"an output's {name} is no name below the stage: {value!r}"
    if not _is_count(output["bytes"]) or not _is_text(output["sha256"]) or not SHA256.fullmatch(output["sha256"]):
        return f"an output's bytes or sha256 are none: {output!r}"
    return ""


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and not any(0xD800 <= ord(c) < 0xE000 for c in value)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 62


def _numbers(values: Any, *, whole: bool) -> bool:
    if not isinstance(values, Mapping):
        return False
    numbers = [isinstance(v, (int, float)) and not isinstance(v, bool) and abs(v) < 1e300 for v in values.values()]
    return all(numbers) and all(_is_text(k) for k in values) and (not whole or all(map(_is_count, values.values())))
