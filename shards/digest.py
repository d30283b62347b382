"""Digests: of bytes, of configs, and the order-independent digest that proves conservation of samples."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

MODULUS = 1 << 128


def sha256(data: bytes | memoryview) -> str:
    return hashlib.sha256(data).hexdigest()


def fingerprint(value: Any) -> str:
    """16 hex digits that name a JSON-able value, the same on every machine and run."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def sample_hash(key: str, members: Iterable[tuple[str, bytes | memoryview]]) -> int:
    """A 128-bit number for one sample: its key and every (suffix, content), whatever the members' order."""
    return hash_of(key, ((suffix, member_digest(data)) for suffix, data in members))


def member_digest(data: bytes | memoryview) -> bytes:
    return hashlib.blake2b(data, digest_size=16).digest()


def hash_of(key: str, digests: Iterable[tuple[str, bytes]]) -> int:
    """`sample_hash` from the members' digests."""
    return digest_of(key, [b"\0" + suffix.encode() + b"\0" + digest for suffix, digest in sorted(digests, key=_suffix)])


def digest_of(key: str, parts: Iterable[bytes]) -> int:
    """`hash_of` where `parts` are the members' suffixes and digests, laid out already."""
    text = key.encode("utf-8", "surrogateescape") + b"".join(parts)
    return int.from_bytes(hashlib.blake2b(text, digest_size=16).digest(), "big")


def _suffix(member: tuple[str, bytes]) -> str:
    return member[0]


@dataclass
class SampleDigest:
    """A multiset of samples: count and the sum of their hashes mod 2^128, so that order does not matter.

    Adding digests is taking the union: in = out + quarantined holds for the counts *and* for the sums, so
    one sample swapped for another, lost, or counted twice is seen.
    """

    count: int = 0
    total: int = 0

    def add(self, value: int) -> None:
        self.count += 1
        self.total = (self.total + value) % MODULUS

    def __add__(self, other: SampleDigest) -> SampleDigest:
        return SampleDigest(self.count + other.count, (self.total + other.total) % MODULUS)

    @property
    def hex(self) -> str:
        return f"{self.total:032x}"

    @classmethod
    def parse(cls, count: int, text: str) -> SampleDigest:
        return cls(count, int(text, 16))


@dataclass
class Conservation:
    """Where the samples that came in have gone."""

    came_in: SampleDigest = field(default_factory=SampleDigest)
    out: SampleDigest = field(default_factory=SampleDigest)
    refused: SampleDigest = field(default_factory=SampleDigest)

    def holds(self) -> bool:
        return self.came_in == self.out + self.refused


def keys_digest(keys: Iterable[str]) -> SampleDigest:
    """The order-independent digest of keys alone, which every sidecar shares with its base shard."""
    hashes = key_hashes(keys)
    return SampleDigest(len(hashes), sum(hashes) % MODULUS)


def key_hashes(keys: Iterable[str]) -> list[int]:
    """`sample_hash` of each key without members."""
    blake, number = hashlib.blake2b, int.from_bytes
    return [number(blake(k.encode("utf-8", "surrogateescape"), digest_size=16).digest(), "big") for k in keys]


def difference(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Readable lines for what differs between two nested configs: `mapping.epsilon: 0.2 -> 0.3`."""
    lines: list[str] = []
    for key in sorted(set(old) | set(new)):
        name, a, b = f"{prefix}{key}", old.get(key, "(absent)"), new.get(key, "(absent)")
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            lines += difference(a, b, f"{name}.")
        elif a != b:
            lines.append(f"{name}: {_short(a)} -> {_short(b)}")
    return lines


def _short(value: Any, limit: int = 120) -> str:
    text = value if isinstance(value, str) else json.dumps(value, sort_keys=True)
    return text if len(text) <= limit else text[: limit - 1] + "…"
