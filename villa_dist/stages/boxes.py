"""boxes: the true boxes of a split's images, and their proposals, once for all models that are measured on them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch

from shards import sidecar
from shards.commit import Marker, StageFolder
from shards.decode import DecodeError, decode_json
from shards.errors import ShardError
from shards.reader import BaseShard, read_sidecar
from shards.store import Store
from villa_dist.evaluate.known_boxes import KNOWN, NONE, TRUTH
from villa_dist.observe import Timers
from villa_dist.regions.annotations import boxes_in
from villa_dist.regions.backends import make_proposer
from villa_dist.regions.proposals import Photo, regions_of
from villa_dist.stages.base import StageRequest, write_sidecar
from villa_dist.stages.images import NO_BOXES
from villa_dist.stages.windows import ReadAhead, Sample, windows

NO_SCORES = np.zeros(0, np.float32)


@dataclass(frozen=True, slots=True)
class Boxes:
    """True boxes of an image: x, y, width, height."""

    image: int
    box: np.ndarray
    names: list[str]
    crowd: list[bool]


NOTHING = Boxes(NONE, np.zeros((0, 4)), [], [])


class BoxesStage:
    """params: truth, the name of the truth's parquet in the run, or None for the samples' own boxes; proposals: "none",
    "regions" (take them from that stage's sidecars) or "make"."""

    def __init__(self, request: StageRequest) -> None:
        self.request, self.config = request, request.config
        torch.set_num_threads(self.config.regions.threads)
        self.ahead = ReadAhead(StageFolder(request.dataset, "base"))
        self.regions = StageFolder(request.dataset, "regions")
        self.source = request.params["proposals"]
        self.proposer = make_proposer(self.config.regions) if self.source == "make" else None
        truth = request.params["truth"]
        self.truth = _read_truth(Store(request.run), truth) if truth else None

    def read_ahead(self, shard: str) -> None:
        self.ahead.begin(shard)

    def process(self, shard: str) -> Marker:
        timers = Timers()
        base = self.ahead.open(shard, timers)
        known: list[Boxes] = []
        proposed = self._of_regions(shard, base)
        pixels = self.proposer is not None and self.proposer.needs_pixels
        for window in windows(base, self.config, timers, pixels=pixels):
            known += [self._known(shard, sample) for sample in window]
            if self.proposer is not None:
                with timers.time("propose"):
                    photos = [Photo(s.key, s.width, s.height, s.pixels) for s in window]
                    try:
                        kept = regions_of(self.proposer, self.config.regions, photos)
                    except ShardError as error:
                        raise ShardError(f"shard {shard}: {error}") from error
                    proposed += [(k.regions.boxes, k.regions.objectness) for k in kept]
        counts = {
            "true boxes": sum(len(k.names) for k in known),
            "proposals": sum(len(s) for _, s in proposed),
            "samples without truth": sum(k.image == NONE for k in known),
            "decoded": len(base) * pixels,
        }
        proposed = proposed or [(NO_BOXES, NO_SCORES)] * len(base)
        return write_sidecar(self.request, base, lambda: _table(base.keys, known, proposed), timers, counts)

    def _of_regions(self, shard: str, base: BaseShard) -> list[tuple[np.ndarray, np.ndarray]]:
        if self.source != "regions":
            return []
        table = read_sidecar(self.regions, shard, sidecar.REGIONS)
        sidecar.check_aligned(table, base.keys, self.regions.store.path(shard))
        boxes, at = sidecar.list_column(table, "boxes")
        score, _ = sidecar.list_column(table, "objectness")
        return [(boxes[at[i] : at[i + 1]], score[at[i] : at[i + 1]]) for i in range(len(base))]

    def _known(self, shard: str, sample: Sample) -> Boxes:
        """Raises: ShardError naming the sample whose .json cannot be used."""
        try:
            if self.truth is None:
                return own_boxes(sample)
            return self.truth.get(image_id(sample), NOTHING)
        except DecodeError as error:
            raise ShardError(f"shard {shard}: sample {sample.key!r}: {error.detail}; mend its .json member") from error


def image_id(sample: Sample) -> int:
    """`image_id` of its .json, else the number its key ends in, as in COCO's file names; NONE where there is neither.

    Raises: DecodeError.
    """
    found = decode_json(sample.members["json"]).get("image_id") if "json" in sample.members else None
    if type(found) is int:
        return found
    last = sample.key.rpartition("/")[2]
    return int(last) if last.isascii() and last.isdigit() else NONE


def own_boxes(sample: Sample) -> Boxes:
    """`boxes`, `categories` and `crowd` of its .json; NOTHING where there are no boxes, which an empty list says too.

    Raises: DecodeError when they do not fit together.
    """
    corners = boxes_in(sample.members)
    if corners is None:
        return NOTHING
    values = decode_json(sample.members["json"])
    exact = np.array(values["boxes"], np.float64).reshape(-1, 4)
    names, crowd = values.get("categories", []), values.get("crowd", [0] * len(exact))
    for name, given, kind in (("categories", names, str), ("crowd", crowd, int)):
        if not isinstance(given, list) or len(given) != len(exact) or not all(isinstance(v, kind) for v in given):
            expected = "a name" if kind is str else "0 or 1"
            raise DecodeError(
                "bad_json", f"{name!r} is {str(given)[:80]}, expected {expected} for each of {len(exact)} boxes"
            )
    if (exact[:, 2:] < exact[:, :2]).any():
        raise DecodeError("bad_json", "a box has x2 < x1 or y2 < y1; boxes are [x1, y1, x2, y2]")
    exact[:, 2:] -= exact[:, :2]
    return Boxes(sample.row, exact, names, [bool(c) for c in crowd])


def _read_truth(store: Store, name: str) -> dict[int, Boxes]:
    table = sidecar.from_bytes(store.read(name), store.path(name), TRUTH)
    boxes, at = sidecar.list_column(table, "boxes")
    names, crowd = (sidecar.list_column(table, n)[0].tolist() for n in ("names", "crowd"))
    spans = zip(table["image"].to_pylist(), at[:-1].tolist(), at[1:].tolist(), strict=True)
    return {image: Boxes(image, boxes[a:b], names[a:b], crowd[a:b]) for image, a, b in spans}


def _table(keys: list[str], known: list[Boxes], proposed: list[tuple[np.ndarray, np.ndarray]]) -> pa.Table:
    true, made = [len(k.names) for k in known], [len(s) for _, s in proposed]

    def column(name: str, values: np.ndarray, lengths: list[int]) -> pa.Array:
        return sidecar.ragged(KNOWN.field(name).type, values, lengths)

    names = np.array([n for k in known for n in k.names], object)
    columns = {
        "key": pa.array(keys, pa.string()),
        "image": pa.array([k.image for k in known], pa.int64()),
        "true_box": column("true_box", np.concatenate([np.zeros((0, 4)), *(k.box for k in known)]), true),
        "true_name": column("true_name", names, true),
        "true_crowd": column("true_crowd", np.array([c for k in known for c in k.crowd], bool), true),
        "proposal": column("proposal", np.concatenate([NO_BOXES, *(b for b, _ in proposed)]).astype(np.float32), made),
        "proposal_score": column("proposal_score", np.concatenate([NO_SCORES, *(s for _, s in proposed)]), made),
    }
    return pa.table(columns, schema=KNOWN)
