"""detect: a model's zero-shot detections on a split, from true boxes, from proposals, or from both in one pass.

Letters: T true boxes of one image that are asked for, P proposals, D embedding, C classes.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from shards import sidecar
from shards.commit import Marker, StageFolder
from shards.errors import ShardError
from shards.reader import read_sidecar
from villa_dist.config_evaluate import DetectionConfig
from villa_dist.evaluate.detection import Detections
from villa_dist.evaluate.errors import EvaluationError
from villa_dist.evaluate.known_boxes import KNOWN, NONE
from villa_dist.evaluate.models_measured import read_class_vectors
from villa_dist.evaluate.zero_shot import COCO, LVIS, ImageRegions, Protocol, detect, probabilities, top_k
from villa_dist.observe import Timers
from villa_dist.regions.boxes import clip, large_enough
from villa_dist.stages.base import StageRequest, write_sidecar
from villa_dist.stages.images import embed_regions
from villa_dist.stages.windows import ReadAhead, windows

XYWH = pa.list_(pa.float64(), 4)
MODES = ("truth", "proposals")


def schema(modes: tuple[str, ...]) -> pa.Schema:
    """One row an image. known: true boxes that were classified, top1 and top5: how many of them rightly, ties by
    expectation; then the detections of each mode, best first: box (x, y, width, height), class (row of the class vectors),
    score. Scores are float64: probabilities at a temperature of .01 lie so close to 1 that float32 makes many of them equal,
    and the order of equal scores moves average precision."""
    columns = [("key", pa.string()), ("known", pa.int32()), ("top1", pa.float64()), ("top5", pa.float64())]
    for mode in modes:
        columns += [
            (f"{mode}_box", pa.list_(XYWH)),
            (f"{mode}_class", pa.list_(pa.int32())),
            (f"{mode}_score", pa.list_(pa.float64())),
        ]
    return pa.schema(columns)


def protocol_of(config: DetectionConfig) -> Protocol:
    return replace(LVIS if config.protocol == "lvis" else COCO, objectness=config.objectness)


class DetectStage:
    """params: model, a `Measured`; vectors, the file of its class vectors in the run; classes, their names."""

    def __init__(self, request: StageRequest) -> None:
        self.request, detection = request, request.config.evaluate.detection
        assert detection is not None
        self.modes, self.protocol = detection.modes, protocol_of(detection)
        torch.set_num_threads(request.config.regions.threads)
        row = request.params["model"]
        self.config = row.config(request.config)
        self.model = row.load(request.config)
        self.vectors = read_class_vectors(request.run, request.params["vectors"])
        self.column = {name: i for i, name in enumerate(request.params["classes"])}
        self.ahead = ReadAhead(StageFolder(request.dataset, "base"))
        self.known = StageFolder(request.dataset, "boxes")

    def read_ahead(self, shard: str) -> None:
        self.ahead.begin(shard)

    def process(self, shard: str) -> Marker:
        timers = Timers()
        base = self.ahead.open(shard, timers)
        table = read_sidecar(self.known, shard, KNOWN)
        sidecar.check_aligned(table, base.keys, self.known.store.path(shard))
        images = _Images(table, self.column)
        found: list[dict[str, Any]] = []
        for window in windows(base, self.config, timers, pixels=True):
            true = [images.true(s.row, s.width, s.height) if "truth" in self.modes else NO_TRUE for s in window]
            made = [images.proposals(s.row) if "proposals" in self.modes else NO_PROPOSALS for s in window]
            boxes = [
                np.concatenate([clip(t[0].astype(np.float32), s.width, s.height), p[0]])
                for s, t, p in zip(window, true, made, strict=True)
            ]
            with timers.time("embed"):
                embed, width = self.model.embed_regions, self.model.dim
                embedded = embed_regions(embed, self.model, window, boxes, self.config, width, base.place).numpy()
            with timers.time("detect"):
                at = np.cumsum([0, *(len(b) for b in boxes)])
                for n, sample in enumerate(window):
                    try:
                        found.append(self._of_image(sample.row, true[n], made[n], embedded[at[n] : at[n + 1]]))
                    except EvaluationError as error:
                        raise ShardError(f"shard {shard}: sample {sample.key!r}: {error}") from error
        counts = {"regions": sum(f["regions"] for f in found), "decoded": len(base)}
        counts |= {f"detections:{mode}": sum(len(f[mode]) for f in found) for mode in self.modes}
        return write_sidecar(self.request, base, lambda: _table(base.keys, found, self.modes), timers, counts)

    def _of_image(
        self, row: int, true: tuple[np.ndarray, np.ndarray], made: tuple[np.ndarray, np.ndarray], embedded: np.ndarray
    ) -> dict[str, Any]:
        """true: boxes and classes; made: boxes and objectness; embedded: of the true boxes, then the proposals."""
        (boxes, label), (proposals, objectness) = true, made
        split = len(boxes)
        right = top_k(probabilities(embedded[:split], self.vectors), label).sum(0)
        found: dict[str, Any] = {"known": split, "top1": right[0], "top5": right[1], "regions": len(embedded)}
        number = np.arange(len(self.vectors))
        given = {
            "truth": ImageRegions(row, boxes, embedded[:split]),
            "proposals": ImageRegions(row, proposals, embedded[split:], objectness),
        }
        return found | {mode: detect(given[mode], self.vectors, number, self.protocol) for mode in self.modes}


NO_TRUE = (np.zeros((0, 4)), np.zeros(0, np.int64))
NO_PROPOSALS = (np.zeros((0, 4), np.float32), np.zeros(0, np.float32))


class _Images:
    """The rows of a `boxes` sidecar. Images without truth have no boxes of either kind."""

    def __init__(self, table: pa.Table, column: dict[str, int]) -> None:
        self.image = table["image"].to_numpy()
        self.box, self.at = sidecar.list_column(table, "true_box")
        names = sidecar.list_column(table, "true_name")[0]
        crowd = sidecar.list_column(table, "true_crowd")[0].astype(bool)
        self.label = np.array([column.get(n, -1) for n in names], np.int64)
        self.label[crowd] = -1
        self.proposal, self.proposal_at = sidecar.list_column(table, "proposal")
        self.score, _ = sidecar.list_column(table, "proposal_score")

    def true(self, row: int, width: int, height: int) -> tuple[np.ndarray, np.ndarray]:
        """T x 4 corners as they are in the truth, and T classes: no crowds, none without area inside the image."""
        here = slice(self.at[row], self.at[row + 1])
        box, label = self.box[here].copy(), self.label[here]
        box[:, 2:] += box[:, :2]
        fit = (label >= 0) & large_enough(clip(box.astype(np.float32), width, height), 0.0)
        return box[fit], label[fit]

    def proposals(self, row: int) -> tuple[np.ndarray, np.ndarray]:
        if self.image[row] == NONE:
            return NO_PROPOSALS
        here = slice(self.proposal_at[row], self.proposal_at[row + 1])
        return self.proposal[here], self.score[here]


def _table(keys: list[str], found: list[dict[str, Any]], modes: tuple[str, ...]) -> pa.Table:
    wanted = schema(modes)
    columns: dict[str, Any] = {"key": pa.array(keys, pa.string())}
    for name in ("known", "top1", "top5"):
        columns[name] = pa.array([f[name] for f in found], wanted.field(name).type)
    for mode in modes:
        parts: list[Detections] = [f[mode] for f in found]
        joined, lengths = Detections.join(parts), [len(p) for p in parts]
        for name, values in (("box", joined.box), ("class", joined.category), ("score", joined.score)):
            kind = wanted.field(f"{mode}_{name}").type
            number = np.int32 if name == "class" else np.float64
            columns[f"{mode}_{name}"] = sidecar.ragged(kind, values.astype(number), lengths)
    return pa.table(columns, schema=wanted)
