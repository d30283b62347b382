"""The `evaluate` section of the config (docs/evaluation.md)."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import Field, model_validator

from villa_dist.config_base import Section

OWN_ROWS = ("one_to_one", "mapping", "villa", "ground_truth")


class ClassesConfig(Section):
    """Names of categories, or their ids in `truth`."""

    base: list[str | int] = []
    novel: list[str | int] = []

    @model_validator(mode="after")
    def _some(self) -> ClassesConfig:
        if not self.base + self.novel:
            raise ValueError("classes names none; list some under base or novel, or set classes to null for all")
        both = sorted({str(c) for c in self.base} & {str(c) for c in self.novel})
        if both:
            raise ValueError(f"classes: {both[0]!r} is both base and novel")
        return self


class DetectionConfig(Section):
    """Zero-shot detection of every model of the run and of `evaluate.baselines`.

    truth: a COCO or LVIS instances file; None: the boxes in the samples' .json. classes: None for all of the truth.
    templates: a JSON list of prompts; None: "a photo of a {}". objectness: what the proposals' scores are.
    """

    truth: str | None = None
    boxes: Literal["truth", "proposals", "both"] = "truth"
    protocol: Literal["coco", "lvis"] = "coco"
    classes: Literal["coco_48_17"] | ClassesConfig | None = None
    templates: str | None = None
    objectness: Literal["probability", "logit", "raw_logit"] = "probability"
    engine: Literal["fast", "faster-coco-eval", "official"] = "fast"
    drop_empty_images: bool = False  # without a box of `classes`
    bootstrap: Annotated[int, Field(ge=0, le=100_000)] = 200  # resamples of the intervals; 0: none

    @model_validator(mode="after")
    def _lvis_is_a_file(self) -> DetectionConfig:
        if self.protocol == "lvis" and (self.truth is None or self.classes is not None):
            raise ValueError(
                "protocol: lvis needs truth, an LVIS instances file, and all of its classes (classes: null)"
            )
        return self

    @property
    def modes(self) -> tuple[str, ...]:
        return ("truth", "proposals") if self.boxes == "both" else (self.boxes,)


class BaselineConfig(Section):
    """A published CLIP or SigLIP, evaluated as it is. weights: a folder or a hub id; regions: as of `model.image`."""

    weights: Annotated[str, Field(min_length=1)]
    revision: str | None = None
    regions: Literal["dense", "crops"] = "dense"
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")] | None = (
        None  # None: of the weights and regions
    )

    @property
    def row(self) -> str:
        """Its name in tables and folders."""
        last = re.sub(r"[^A-Za-z0-9._-]", "-", self.weights.rstrip("/").rpartition("/")[2])
        return self.name or f"{last}-{self.regions}"


class EvaluateConfig(Section):
    splits: Annotated[list[Literal["validation", "test"]], Field(min_length=1)] = ["test"]
    ground_truth: bool = True  # also train on the true pairs, where they are known
    detection: DetectionConfig | None = None
    baselines: list[BaselineConfig] = []  # of `detection`

    @model_validator(mode="after")
    def _rows_have_names(self) -> EvaluateConfig:
        if self.baselines and self.detection is None:
            raise ValueError("baselines are measured by detection only; set evaluate.detection (such as {}) too")
        names = [*OWN_ROWS, *(b.row for b in self.baselines)]
        twice = next((n for i, n in enumerate(names) if n in names[:i]), None)
        if twice is not None:
            raise ValueError(f"two rows are called {twice!r}; give the baseline another `name`")
        return self
