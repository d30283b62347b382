"""Sections of the training jobs: `pretrain`, `mapping.fit`, `train`."""

from __future__ import annotations

import math
import re
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from shards.errors import VillaError
from villa_dist.config_base import Count, Fraction, Positive, PositiveFloat, Section
from villa_dist.data.words import GUARDS, SIDES, Sides


class AugmentConfig(Section):
    """How images are changed in training, their boxes, attributes and texts with them; docs/training.md."""

    crop: Annotated[list[Annotated[float, Field(gt=0, le=1)]], Field(min_length=2, max_length=2)] | None = None
    flip: Fraction = 0.0  # the chance of a mirror image, in whose text left and right change places
    colour: Fraction = 0.0  # how far brightness, contrast and saturation may move from 1
    sides: list[Annotated[list[str], Field(min_length=2, max_length=2)]] | None = None  # None: English left and right
    side_guards: list[str] | None = None  # phrases in which they are left alone, such as "* now"; None: English ones

    @model_validator(mode="after")
    def _can_be_done(self) -> AugmentConfig:
        if self.crop is not None and self.crop[0] > self.crop[1]:
            raise ValueError(
                f"crop={self.crop} must be the least and the greatest share of the image's area, in that order"
            )
        try:
            self.made_sides()
        except VillaError as error:
            raise ValueError(str(error)) from error
        return self

    def made_sides(self) -> Sides:
        pairs = SIDES if self.sides is None else self.sides
        return Sides(pairs, GUARDS if self.side_guards is None else self.side_guards)


class OptimConfig(Section):
    """One training job, of so many `steps` or, where given, `epochs`. `workers` ranks share the global batch."""

    steps: Positive | None = 400
    epochs: PositiveFloat | None = None
    batch_images: Positive = 64
    learning_rate: PositiveFloat = 1e-3
    weight_decay: Annotated[float, Field(ge=0)] = 0.05
    warmup_steps: Count = 40
    clip: PositiveFloat = 1.0
    shift_pixels: Annotated[int, Field(ge=0, le=1024)] = (
        2  # random translation, a pure function of (seed, epoch, sample)
    )
    augment: AugmentConfig | None = None
    loader_workers: Annotated[int, Field(ge=0, le=256)] = 1  # threads of a rank that decode; 0: the training thread
    checkpoint_steps: Positive = 100
    checkpoint_minutes: PositiveFloat | None = None  # and whenever so long has passed since the last one
    keep_checkpoints: Positive = 2  # the newest whole ones
    keep_best: str | None = None  # and the best one by `loss`, or by one of the last validation, `validation_…`
    checkpoint_copy: str | None = None  # s3://bucket/prefix, to which checkpoints are copied while training goes on
    stall_minutes: PositiveFloat | None = 10.0  # without a finished step, after which the workers are started again
    restarts: Count = 2  # of the workers after a death, between one checkpoint and the next
    track: Literal["tensorboard", "wandb", "none"] = "tensorboard"  # beside metrics.jsonl
    validate_steps: Positive | None = None  # retrieval on the validation split every so many steps
    validate_images: Positive = 512  # of that split
    zero_stage: Annotated[int, Field(ge=0, le=3)] = 1
    precision: Literal["auto", "fp32", "bf16", "fp16"] = (
        "auto"  # of products; auto: bf16 on GPUs that have it, else fp32
    )
    offload: Literal["none", "optimizer"] = "none"  # optimizer: AdamW and its moments on the CPU; zero_stage 1 to 3
    activation_checkpointing: bool = False  # blocks of published towers are computed again in the backward pass
    layer_decay: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0  # of the learning rate, a block of the image tower down
    text_learning_rate: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0  # the text tower's, as a part of the others'
    workers: Positive = 2
    threads: Positive = 1
    window: Positive = 65_536

    @model_validator(mode="before")
    @classmethod
    def _epochs_replace_steps(cls, values: Any) -> Any:
        if not isinstance(values, dict) or values.get("epochs") is None:
            return values
        if values.get("steps") is not None:
            raise ValueError("give steps or epochs, not both; set the other to null")
        return {**values, "steps": None}

    @model_validator(mode="after")
    def _copies_go_to_a_bucket(self) -> OptimConfig:
        if self.checkpoint_copy is not None and not re.fullmatch(r"s3a?://[^/@:]+(/.*)?", self.checkpoint_copy):
            raise ValueError("checkpoint_copy must be s3://bucket/prefix, without credentials; null: no copies")
        return self

    @model_validator(mode="after")
    def _some_length(self) -> OptimConfig:
        if self.steps is None and self.epochs is None:
            raise ValueError("give steps or epochs")
        if self.keep_best not in (None, "loss") and self.validate_steps is None:
            raise ValueError(
                f"keep_best={self.keep_best} is not measured without validate_steps; set it, or keep_best: loss"
            )
        return self

    def steps_over(self, samples: int) -> int:
        """Steps of the job over a data set of `samples` images."""
        if self.steps is not None:
            return self.steps
        assert self.epochs is not None
        return max(1, math.ceil(self.epochs * samples / self.batch_images))


class PretrainConfig(OptimConfig):
    """The one-to-one VLM's training job. No steps at all: it is what it starts from, as it is."""

    steps: Count | None = 400
    start: str | None = None  # a finished VLM's folder, RUN/models/villa; None: `model.weights`, or random weights


class FitConfig(OptimConfig):
    """The mapping's training job: a higher rate and a looser clip than a VLM's."""

    learning_rate: PositiveFloat = 2e-3
    clip: PositiveFloat = 5.0

    @model_validator(mode="after")
    def _a_mapping_has_changes_of_its_own(self) -> FitConfig:
        if self.augment is not None:
            raise ValueError("augment belongs to pretrain and train; see mapping.turned and mapping.recoloured")
        return self

    @model_validator(mode="after")
    def _a_mapping_retrieves_nothing(self) -> FitConfig:
        if self.validate_steps is not None:
            raise ValueError("validate_steps belongs to pretrain and train, whose models retrieve; leave it out")
        return self


class TrainConfig(OptimConfig):
    """A region VLM's training job; docs/training.md says what each choice is."""

    loss: Literal["multi_positive", "sigmoid", "infonce"] = "multi_positive"
    # attributes whose texts have a cosine above it are no negatives of each other, as the published text tower sees them;
    # without effect on a tower trained from scratch, and on infonce
    near_duplicates: Annotated[float, Field(gt=0.0, lt=1.0)] | None = 0.9
    whole_weight: Annotated[float, Field(ge=0)] = 0.0  # of whole images with whole texts, beside the regions' loss
    micro_images: Positive | None = None  # a rank embeds so many images at once, with all of the batch as negatives
    regions_per_image: Positive | None = None  # drawn anew each time an image comes; None: all
    attribute_balance: Fraction = 0.0  # 0: all regions alike; 1: by the inverse frequency of their rarest attribute

    @model_validator(mode="after")
    def _balance_is_of_draws(self) -> TrainConfig:
        if self.attribute_balance and self.regions_per_image is None:
            raise ValueError(
                f"attribute_balance={self.attribute_balance} is of regions that are drawn; set regions_per_image"
            )
        return self
