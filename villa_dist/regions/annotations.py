"""Boxes that came with the data: from a `truth` sidecar, else from the `boxes` list of a sample's .json member."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float

from shards.decode import DecodeError, decode_json
from shards.errors import ShardError
from villa_dist.regions.proposals import Photo
from villa_dist.types import RegionSet

FIELD = "boxes"


class AnnotationProposer:
    """Gives `photo.given` back. Raises: ShardError for a photo that came without boxes."""

    needs_pixels = False
    ranked = False

    def propose(self, photos: Sequence[Photo]) -> list[RegionSet]:
        found = []
        for photo in photos:
            if photo.given is None:
                raise ShardError(f"sample {photo.key!r}: {UNKNOWN}")
            found.append(RegionSet(photo.given.astype(np.float32), np.ones(len(photo.given), np.float32)))
        return found


UNKNOWN = (
    f"regions.proposals: annotations needs known boxes, and there is neither a truth sidecar nor a list {FIELD!r} in the "
    "sample's .json member (an empty list says that an image has none); set regions.proposals=segments or "
    "regions.proposals=grid"
)


def boxes_in(members: Mapping[str, bytes]) -> Float[np.ndarray, "R 4"] | None:
    """`boxes`: [[x1, y1, x2, y2], …] of a sample's .json member, in pixels; None where there is none.

    Raises: DecodeError(bad_json) naming the first entry that is not four finite numbers.
    """
    values = decode_json(members["json"]).get(FIELD) if "json" in members else None
    if values is None:
        return None
    if not isinstance(values, list):
        raise DecodeError("bad_json", f"{FIELD!r} is a {type(values).__name__}, expected a list of [x1, y1, x2, y2]")
    for n, box in enumerate(values):
        if not (isinstance(box, list) and len(box) == 4 and all(_is_number(v) for v in box)):
            raise DecodeError("bad_json", f"{FIELD}[{n}] = {str(box)[:80]} is not [x1, y1, x2, y2] in pixels")
    return np.asarray(values, np.float32).reshape(-1, 4)


def _is_number(value: object) -> bool:
    """A number that float32 holds; NaN, infinity and integers beyond any float are none."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e30
