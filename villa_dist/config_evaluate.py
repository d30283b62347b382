"""The `evaluate` section of the config (docs/evaluation.md)."""

from __future__ import annotations

import re
from pathlib import PurePath
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from villa_dist.config_base import Count, Positive, Section

OWN_ROWS = ("one_to_one", "mapping", "villa", "ground_truth", "chance")


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


class FineGrainedConfig(Section):
    """The right phrase of a box among hard negatives (FG-OVD).

    annotations: a file of FG-OVD, as its COCO-like JSON or as JSON lines, or several by the names their tables shall have.
    negatives: the first so many of each box; None: all of them.
    """

    annotations: str | dict[str, str]
    negatives: Positive | None = None

    @field_validator("annotations", mode="before")
    @classmethod
    def _one_file_or_several(cls, given: Any) -> Any:
        files = list(given.values()) if isinstance(given, dict) else [given]
        if not files or not all(isinstance(f, str) and f for f in files):
            raise ValueError("must be a path, or several by name such as {hard: PATH, easy: PATH}")
        return given

    @property
    def files(self) -> dict[str, str]:
        """By name; one file alone is called as it is, without its suffix."""
        given = self.annotations
        return given if isinstance(given, dict) else {PurePath(given).stem: given}


class ClassTextsConfig(Section):
    """Retrieval and classification of images that have one class each (CheXpert 5x200).

    prompts: by class, or a JSON or YAML file of that; a class without prompts is said by its name. The class of an image is
    told by labels, a CSV with a column `key` of images' names and a column of 0 and 1 for each class; or by field, of its
    .json.
    """

    prompts: str | dict[str, list[str]]
    labels: Annotated[str, Field(min_length=1)] | None = None
    key: Annotated[str, Field(min_length=1)] = "key"
    field: Annotated[str, Field(min_length=1)] | None = None
    precision_at: Annotated[list[Positive], Field(min_length=1)] = [5, 10, 100]

    @field_validator("prompts", mode="before")
    @classmethod
    def _a_file_or_a_mapping(cls, given: Any) -> Any:
        if isinstance(given, str) and given:
            return given
        made = {k: [v] if isinstance(v, str) else v for k, v in given.items()} if isinstance(given, dict) else {}
        if len(made) < 2 or not all(isinstance(v, list) and all(isinstance(p, str) for p in v) for v in made.values()):
            raise ValueError(
                "must be a file, or two or more classes with their prompts such as {cat: [a photo of a cat], dog: []}"
            )
        return made

    @model_validator(mode="after")
    def _classes_are_told(self) -> ClassTextsConfig:
        if (self.labels is None) == (self.field is None):
            raise ValueError(
                "the class of an image is told by labels (a CSV) or by field (of its .json): give one of the two"
            )
        return self


class EvaluateConfig(Section):
    splits: Annotated[list[Literal["validation", "test"]], Field(min_length=1)] = ["test"]
    ground_truth: bool = True  # also train on the true pairs, where they are known
    recall: list[Positive] = [1, 5, 10]  # of whole images and whole texts, at these ranks; none: it is left out
    recall_images: Positive = 50_000  # of a split, drawn where it has more: recall and classes compare all with all
    detection: DetectionConfig | None = None
    fine_grained: FineGrainedConfig | None = None
    classes: ClassTextsConfig | None = None
    baselines: list[BaselineConfig] = []  # of all of these
    bootstrap: Annotated[Count, Field(le=100_000)] = 200  # resamples of their intervals but detection's; 0: none

    @property
    def files(self) -> dict[str, str]:
        """The files that it names, by their keys; the weights of baselines are not among them."""
        found: dict[str, str | None] = {}
        if self.detection is not None:
            found["detection.truth"], found["detection.templates"] = self.detection.truth, self.detection.templates
        if self.fine_grained is not None:
            several = isinstance(self.fine_grained.annotations, dict)
            for name, path in self.fine_grained.files.items():
                found[f"fine_grained.annotations{f'.{name}' if several else ''}"] = path
        if self.classes is not None:
            found["classes.labels"] = self.classes.labels
            found["classes.prompts"] = self.classes.prompts if isinstance(self.classes.prompts, str) else None
        return {key: path for key, path in found.items() if path is not None}

    @field_validator("splits")
    @classmethod
    def _no_split_twice(cls, splits: list[str]) -> list[str]:
        twice = next((s for i, s in enumerate(splits) if s in splits[:i]), None)
        if twice is not None:
            raise ValueError(f"{twice} is given twice, and would be measured twice; leave one")
        return splits

    @model_validator(mode="after")
    def _rows_have_names(self) -> EvaluateConfig:
        if self.baselines and not (self.recall or self.detection or self.fine_grained or self.classes):
            raise ValueError(
                "baselines are measured by recall, detection, fine_grained and classes; set one of them, or leave "
                "baselines out"
            )
        names = [*OWN_ROWS, *(b.row for b in self.baselines)]
        twice = next((n for i, n in enumerate(names) if n in names[:i]), None)
        if twice is not None:
            raise ValueError(f"two rows are called {twice!r}; give the baseline another `name`")
        return self
