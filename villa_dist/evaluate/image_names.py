"""Which sample is meant by an image's path in somebody's annotations: the one whose key ends as the path does."""

from __future__ import annotations

from collections.abc import Sequence

from shards.decode import IMAGE_SUFFIXES
from shards.sources.names import safe_key
from villa_dist.evaluate.errors import EvaluationError


class ImageNames:
    """Paths such as `val2017/000000000139.jpg`, found by keys such as `000000000139` or `coco/val2017/000000000139`.

    The shorter of path (without suffix) and key must be the end of the longer, whole folders compared. Keys are as packing
    makes them of paths.
    """

    def __init__(self, paths: Sequence[str]) -> None:
        self.paths = list(paths)
        self._parts = [_parts(path) for path in paths]
        self._by_last: dict[str, list[int]] = {}
        for n, parts in enumerate(self._parts):
            self._by_last.setdefault(parts[-1], []).append(n)

    def find(self, key: str) -> int | None:
        """The index of the path that a key is of. Raises: EvaluationError naming two paths that it could be."""
        parts = key.split("/")
        found = [n for n in self._by_last.get(parts[-1], ()) if _one_ends_as_the_other(parts, self._parts[n])]
        if len(found) > 1:
            two = " and ".join(repr(self.paths[n]) for n in found[:2])
            raise EvaluationError(f"sample {key!r} could be {two}; give the samples keys with their folders")
        return found[0] if found else None


def _parts(path: str) -> list[str]:
    stem, dot, suffix = path.rpartition(".")
    known = dot and suffix.lower() in (*IMAGE_SUFFIXES, "dcm", "tif", "tiff", "bmp", "gif")
    return safe_key((stem if known else path).strip("/")).split("/")


def _one_ends_as_the_other(a: Sequence[str], b: Sequence[str]) -> bool:
    short = min(len(a), len(b))
    return list(a[-short:]) == list(b[-short:])
