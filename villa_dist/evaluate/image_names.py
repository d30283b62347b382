"""Which sample is meant by an image's path in somebody's annotations: the one whose key ends as the path does."""

from __future__ import annotations

from bisect import bisect_left
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
        self._ends = sorted((tuple(reversed(_parts(path))), n) for n, path in enumerate(paths))  # the file's name first

    def find(self, key: str) -> int | None:
        """The index of the path that a key is of. Raises: EvaluationError naming two paths that it could be."""
        end = tuple(reversed(key.split("/")))
        found = [n for length in range(1, len(end)) for n in self._from(end[:length], length)]
        found += self._from(end, None)
        if len(found) > 1:
            two = " and ".join(repr(self.paths[n]) for n in found[:2])
            raise EvaluationError(f"sample {key!r} could be {two}; give the samples keys with their folders")
        return found[0] if found else None

    def _from(self, end: tuple[str, ...], length: int | None) -> list[int]:
        """Up to two of the paths that end so, whole or (length: None) after any folders."""
        first = bisect_left(self._ends, (end, -1))
        near = self._ends[first : first + 2]
        return [n for parts, n in near if parts[: len(end)] == end and length in (None, len(parts))]


def _parts(path: str) -> list[str]:
    stem, dot, suffix = path.rpartition(".")
    known = dot and suffix.lower() in (*IMAGE_SUFFIXES, "dcm", "tif", "tiff", "bmp", "gif")
    return safe_key((stem if known else path).strip("/")).split("/")
