"""What a report is bound to: it says in its head which results.json it shows."""

from __future__ import annotations

import re

from shards.digest import sha256

HEAD = 4096  # bytes of a page that hold its meta elements
TAG = re.compile(rb'<meta name="villa-results" content="([0-9a-f]{64})">')


def bound_to(results: bytes | None) -> str:
    """The digest by which a page names its results.json; empty where there is none."""
    return sha256(results) if results is not None else ""


def shows(page: bytes, results: bytes) -> bool:
    """Whether a page is whole and is the report of these results."""
    found = TAG.search(page[:HEAD])
    return found is not None and found[1].decode() == bound_to(results) and page.rstrip().endswith(b"</html>")
