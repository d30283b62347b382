"""Keys that any tool can take as file names: ASCII letters, digits, `_`, `-`, and `/` between folders.

A part that has to be changed ends in eight hex digits of what it was, so two names stay two keys: `a b` becomes
`a_b-c7f3f2b8`. Where that still clashes (with a name that looks like it), more digits are added.
"""

from __future__ import annotations

import hashlib
import re

UNSAFE = re.compile(r"[^A-Za-z0-9_-]+")
LONGEST = 80  # characters of one part


def tag(name: str, digits: int = 8) -> str:
    """Hex digits that name a string, bytes that are not UTF-8 included."""
    return hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()[:digits]


def safe_part(part: str) -> str:
    """One part of a key. Equal parts give equal keys, different parts (all but surely) different ones."""
    if part and len(part) <= LONGEST and not UNSAFE.search(part):
        return part
    readable = UNSAFE.sub("_", part).strip("_-")[: LONGEST - 20]
    return f"{readable or 'x'}-{tag(part)}"


def safe_key(name: str) -> str:
    """All parts of a name with `/` between them; no part is left empty, so no key starts with `/`."""
    return "/".join(safe_part(part) for part in name.split("/"))


class Names:
    """Gives every name of one level (a folder, a tar, a list) a key of its own, in the order they are asked for."""

    def __init__(self) -> None:
        self._taken: set[str] = set()

    def give(self, name: str) -> str:
        """A key no earlier call has got, also where the names were equal."""
        key, digits, count = safe_key(name), 8, 0
        while key in self._taken:
            digits, count = min(digits + 4, 32), count + 1
            key = f"{safe_key(name)}-{tag(f'{name}/{count}', digits)}"
        self._taken.add(key)
        return key
