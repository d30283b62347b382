"""The config: strict pydantic models, YAML by safe_load, `--set a.b=c`, errors that name key, file and remedy.

One file describes a whole run. Every section is frozen and refuses unknown keys; the resolved config is saved with the
run, and each stage is bound to the part of it that it depends on.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from villa_dist.config_base import MOST_REGIONS, Count, Fraction, Positive, PositiveFloat, Section, Width
from villa_dist.config_checks import refuse_engine_options
from villa_dist.config_evaluate import DetectionConfig, EvaluateConfig
from villa_dist.config_train import FitConfig, OptimConfig, PretrainConfig, TrainConfig


class MixConfig(Section):
    """Another run whose pairs are learnt from too; docs/training.md."""

    train: Annotated[str, Field(min_length=1)]  # a run, or its train split's folder
    weight: PositiveFloat = 1.0


class DataConfig(Section):
    """Where image-text samples come from. `shards` reads WebDataset tars from a folder per split."""

    source: Literal["docmnist", "shards"] = "docmnist"
    train: str | None = None
    validation: str | None = None
    test: str | None = None
    max_pixels: Positive = 64_000_000
    max_quarantine_fraction: Fraction = 0.01
    quarantine_allowance: Count = 10  # refused samples that never fail a run, whatever the fraction
    mix: list[MixConfig] = []  # data sets that the region VLM learns from beside this run's own
    own_weight: Annotated[float, Field(ge=0)] = 1.0  # of this run's own in such a mix; 0: it is left out

    @model_validator(mode="after")
    def _something_is_learnt_from(self) -> DataConfig:
        if self.own_weight != 1 and not self.mix:
            raise ValueError(
                f"own_weight={self.own_weight} is relative to the weights of mix, which is empty; leave it out"
            )
        return self


class DigitsConfig(Section):
    mnist_dir: str | None = None  # None: scikit-learn's bundled digits


class BudgetConfig(Section):
    """Attributes spent on a split (the paper's setting), or a fixed number of images instead."""

    train: Positive = 30_000
    validation: Positive = 10_000
    test: Positive = 10_000


class ImagesConfig(Section):
    train: Positive | None = None
    validation: Positive | None = None
    test: Positive | None = None


class DocMNISTConfig(Section):
    target: Annotated[int, Field(ge=4, le=1000)] = 16  # target complexity: attributes an image may hold
    budget: BudgetConfig = BudgetConfig()
    images: ImagesConfig = ImagesConfig()
    shard_images: Positive = 256
    # chance that a text leaves out an attribute it should mention, or mentions one that it should not
    text_noise: Fraction = 0.0
    coupling: Fraction = 0.0  # chance that a digit takes the colour that goes with it, instead of any


class PhraseConfig(Section):
    phrase: Annotated[str, Field(min_length=1)]
    group: str = ""
    prompts: list[str] = []  # none: the templates of its group, or the phrase itself
    synonyms: list[str] = []  # other ways to say it


class VocabularyConfig(Section):
    """Which phrases are looked for in the training texts, and which of them become attributes (docs/vocabulary.md)."""

    attributes: list[PhraseConfig] | None = None  # neither these nor lists: the twenty of DocMNIST
    lists: list[str] = []  # files, or names of built-in lists
    templates: dict[str, list[str]] = {}  # prompts by group, such as "a photo of a {phrase}"; "all" for every other
    negation: Literal["none", "reports", "captions"] = "none"  # else "no effusion", "no hat" mention neither
    min_count: Count = 1  # texts that mention a phrase, at least
    max_count_fraction: Fraction = 1.0  # of all texts, at most
    max_phrases: Positive | None = None  # the most frequent ones are kept
    order: Literal["list", "count"] = "list"  # how attributes are numbered

    @model_validator(mode="after")
    def _templates_hold_a_phrase(self) -> VocabularyConfig:
        for group, templates in self.templates.items():
            for template in templates:
                if len(re.findall(r"\{(?:phrase)?\}", template)) < 1:
                    raise ValueError(f"templates.{group}: {template!r} must hold {{phrase}}, where the phrase goes")
        return self


class ImageTowerConfig(Section):
    """conv: trained from scratch. clip_rn50 and hf: built from `model.weights` (docs/models.md)."""

    kind: Literal["conv", "clip_rn50", "hf"] = "conv"
    width: Annotated[int, Field(ge=8, multiple_of=2)] = 32  # of conv
    roi_bins: Annotated[int, Field(ge=3, le=14)] = 7  # of conv and hf; clip_rn50 has its own
    regions: Literal["dense", "crops"] = "dense"  # RoIAlign on one map an image, or each region encoded by itself
    values: bool = True  # dense regions of a CLIP ViT by the last layer's values (MaskCLIP), else its tokens
    size: Positive | None = None  # side of the square whose pixels a dense input has; None: the checkpoint's
    shape: Literal["aspect", "square"] = "aspect"  # of a dense input
    context: Annotated[float, Field(ge=1.0)] = 1.0  # a crop is its box times this


class TextTowerConfig(Section):
    kind: Literal["words", "clip", "hf"] = "words"  # left out: what belongs to model.image.kind
    buckets: Positive = 8192  # of words
    vocabulary: str | None = None  # of clip: the file bpe_simple_vocab_16e6.txt.gz
    frozen: bool = False  # leave it as published while the image tower learns


TEXT_OF_IMAGE = {"conv": "words", "clip_rn50": "clip", "hf": "hf"}


class ModelConfig(Section):
    image: ImageTowerConfig = ImageTowerConfig()
    text: TextTowerConfig = TextTowerConfig()
    dim: Width | None = None  # None: 128, or that of the checkpoint
    temperature: PositiveFloat | None = None  # None: 0.07, or that of the checkpoint
    weights: str | None = None  # a checkpoint's file or folder, or a hub id such as org/name
    revision: str | None = None  # of a hub id: a branch, tag or commit
    attention: Literal["sdpa", "eager", "flash_attention_2", "xformers"] = "sdpa"  # of hf
    dtype: Literal["auto", "fp32", "bf16", "fp16"] = "auto"  # of embedding stages; auto: fp32 on a CPU, else half

    @model_validator(mode="before")
    @classmethod
    def _text_follows_image(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        image, text = values.get("image"), values.get("text", {})
        kind = image.get("kind") if isinstance(image, dict) else getattr(image, "kind", None)
        if kind in TEXT_OF_IMAGE and isinstance(text, dict) and "kind" not in text:
            return {**values, "text": {**text, "kind": TEXT_OF_IMAGE[kind]}}
        return values

    @model_validator(mode="after")
    def _parts_belong_together(self) -> ModelConfig:
        image, text = self.image.kind, self.text.kind
        if TEXT_OF_IMAGE[image] != text:
            raise ValueError(
                f"image.kind={image} goes with text.kind={TEXT_OF_IMAGE[image]}, not {text}; leave text.kind out"
            )
        if image == "conv" and self.weights:
            raise ValueError(
                "weights are of a published checkpoint, and image.kind=conv starts from none; set image.kind to hf (a "
                "folder or hub id) or clip_rn50 (a file), or leave weights out"
            )
        if image != "conv" and not self.weights:
            raise ValueError(
                f"image.kind={image} needs weights: the path of a checkpoint{' or a hub id' * (image == 'hf')}"
            )
        if image == "clip_rn50" and not self.text.vocabulary:
            raise ValueError(
                "image.kind=clip_rn50 needs text.vocabulary: the path of CLIP's bpe_simple_vocab_16e6.txt.gz"
            )
        if image == "clip_rn50" and self.image.regions == "dense" and self.image.size and self.image.size % 32:
            raise ValueError(f"image.size={self.image.size} is not a multiple of 32, the stride of clip_rn50")
        return self

    @property
    def published(self) -> bool:
        """Whether it starts from a checkpoint."""
        return self.weights is not None


class SegmentsConfig(Section):
    """Felzenszwalb segments merged hierarchically. scales: of the segmentation, one hierarchy each; `side` is the longer
    side, in pixels, of the image that is segmented."""

    scales: Annotated[list[PositiveFloat], Field(min_length=1)] = [50.0, 200.0]
    side: Annotated[int, Field(ge=32, le=2048)] = 256
    min_pixels: Positive = 20  # of a segment, at `side`


class DetectorConfig(Section):
    """A transformers object detector, its classes left out. model: a local folder or a hub id.

    score: `max` over the classes, `objectness` from the model's own head or its "no object" class, `auto` the latter for
    models that have such a head. size: overrides the shorter side (or the square) the checkpoint asks for.
    """

    model: Annotated[str, Field(min_length=1)] | None = None
    revision: str | None = None
    score: Literal["auto", "max", "objectness"] = "auto"
    size: Annotated[int, Field(ge=32, le=4096)] | None = None
    prompt: Annotated[str, Field(min_length=1)] = "object ."  # for detectors that are asked by text
    device: Literal["auto", "cpu", "cuda"] = "auto"
    batch_images: Positive = 8


class RegionsConfig(Section):
    """Where regions come from: proposals, then what is kept of them.

    top_k, min_size and nms_iou hold for backends that rank their boxes (`segments`, `hf`); `annotations` and `grid` are
    taken as they are.
    """

    proposals: Literal["annotations", "grid", "segments", "hf"] = "annotations"
    top_k: Annotated[int, Field(ge=1, le=MOST_REGIONS)] = 100
    min_size: Annotated[float, Field(ge=0)] = 0.02  # of a box's shorter side: below 1 of the image's, from 1 in pixels
    nms_iou: Fraction = 0.7  # a box that overlaps a better one by more is dropped
    keep_whole_image: bool = False  # the whole image as one more region, after the others
    grid: Annotated[list[Positive], Field(min_length=2, max_length=2)] = [3, 3]  # rows, columns
    grid_levels: Annotated[int, Field(ge=1, le=6)] = 1  # each level beyond the first doubles rows and columns
    segments: SegmentsConfig = SegmentsConfig()
    hf: DetectorConfig = DetectorConfig()
    batch_images: Positive = 128  # at most so many images are embedded at once
    batch_pixels: Positive = 16_777_216  # and so many pixels of them, as padded
    batch_boxes: Positive = 4096  # and so many regions; one image that is over stands alone
    threads: Positive = 1  # fixed, so that results do not depend on the machine's load
    decode_threads: Positive = 1  # decode the next images while these are embedded
    # of how many shards, chosen by their names, the embeddings are kept (mapping.encoder=frozen); and, where pairs are
    # fused, the regions at all. fit-mapping learns from these
    keep_embeddings: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0

    @model_validator(mode="after")
    def _detector_is_named(self) -> RegionsConfig:
        if self.proposals == "hf" and self.hf.model is None:
            raise ValueError("proposals: hf needs hf.model, the folder or the hub id of a transformers object detector")
        cells = self.grid[0] * self.grid[1] * (4**self.grid_levels - 1) // 3
        if cells > MOST_REGIONS:
            raise ValueError(
                f"grid and grid_levels make {cells} cells, over the limit of {MOST_REGIONS} regions an image"
            )
        return self


class MappingConfig(Section):
    """docs/mapping.md says what each choice is worth."""

    # frozen: features of the one-to-one VLM; adapter: a light MLP on them; end_to_end: a tower trained with the head
    encoder: Literal["frozen", "adapter", "end_to_end"] = "end_to_end"
    head: Literal["shared", "per_attribute"] = "shared"
    residual: bool = False  # of the shared head: a vector of each attribute's own beside what its text gives
    hidden: Width = 256
    loss: Literal["contrastive", "noisy_or", "negative_unlabelled", "both"] = "both"
    contrast: Literal["images", "both"] = "images"  # the paper contrasts over images
    pooling: Literal["max", "logsumexp", "attention"] = "max"  # of an image's regions, in the contrastive loss
    null: bool = False  # and one region that holds nothing
    temperature: PositiveFloat = 0.07
    reference_denominator: bool = False
    # groups of attributes that exclude one another in a region, which has one of them or none
    exclusive: list[str] = []
    # groups of attributes that an image keeps when it is turned and mirrored, and when its colour channels are exchanged.
    # They are learnt from images so changed; groups that keep different changes have towers of their own
    turned: list[str] = []
    recoloured: list[str] = []
    # absence: half of each batch is drawn by the common attributes its images lack, which are what teaches those attributes
    draws: Literal["uniform", "absence"] = "uniform"
    fit: FitConfig = FitConfig()

    @model_validator(mode="after")
    def _options_belong_together(self) -> MappingConfig:
        if self.residual and self.head != "shared":
            raise ValueError("residual belongs to head: shared; per_attribute has parameters of each attribute already")
        if len(set(self.exclusive)) < len(self.exclusive):
            raise ValueError(f"exclusive names a group twice: {', '.join(self.exclusive)}")
        for name, usual in (("pooling", "max"), ("contrast", "images")):
            if getattr(self, name) != usual and self.loss != "contrastive":
                raise ValueError(f"{name} belongs to loss: contrastive, and loss is {self.loss}")
        if self.reference_denominator and self.loss != "contrastive":
            raise ValueError("reference_denominator belongs to loss: contrastive")
        if self.null and self.loss != "contrastive":
            raise ValueError("null belongs to loss: contrastive; groups named in `exclusive` have a none of their own")
        for name in ("exclusive", "turned", "recoloured"):
            if getattr(self, name) and self.loss == "contrastive":
                raise ValueError(f"{name} belongs to losses of probabilities (noisy_or, negative_unlabelled, both)")
        if self.draws != "uniform" and self.loss in ("contrastive", "noisy_or"):
            raise ValueError(f"draws: {self.draws} belongs to loss: negative_unlabelled or both")
        if (self.turned or self.recoloured) and self.frozen:
            raise ValueError(
                "turned and recoloured need encoder: end_to_end; frozen features are of images as they were"
            )
        return self

    @property
    def frozen(self) -> bool:
        """Whether region features come from the one-to-one VLM as it is."""
        return self.encoder != "end_to_end"


class PairsConfig(Section):
    """relative: every region within `epsilon` of the image's best (the paper). absolute: score >= `threshold`. calibrated:
    score >= a threshold of each attribute's own, found without labels. transport: absolute, of scores moved so that each
    attribute has about a region, and a region about one attribute of a group. All of them keep the image's best."""

    assign: Literal["relative", "absolute", "calibrated", "transport"] = "absolute"
    epsilon: Annotated[float, Field(ge=0)] = 0.2
    threshold: float = 0.5
    # how much the proposals' objectness counts beside the mapping's score: the weight of its logarithm, relative to the
    # image's most object-like region. For ranked proposals (`segments`, `hf`)
    objectness: Annotated[float, Field(ge=0.0, le=100.0)] = 0.0
    fused: bool = False  # propose, embed and map in one pass, without region sidecars of every shard


class RayConfig(Section):
    """How and where: no key of it says what is made, so none is in a stage's claim. docs/operate.md, autoscaling."""

    address: str | None = None  # None: the cluster of RAY_ADDRESS, or a local Ray made for this run
    workers: Positive | None = None  # asked for whether they are up or not; None: one a CPU that is up, less a slack
    # whether stages that embed, and training, ask for GPUs; auto: where there are enough; true: also before they are up
    gpus: Literal["auto"] | bool = "auto"
    start_seconds: PositiveFloat = 300.0  # that the first worker may take to come up, and the GPUs of training
    shard_timeout_seconds: PositiveFloat = 1800.0
    attempts: Positive = 4  # a shard's tries before the stage fails
    gpus_per_worker: PositiveFloat = 1.0  # of stages that embed, where the cluster has GPUs; 0.5: two workers a GPU
    insecure_no_token: bool = False  # use a cluster on a network without a token: whoever reaches it can run code on it


class Config(Section):
    run: Annotated[str, Field(min_length=1)] = "runs/quickstart"
    seed: Annotated[int, Field(ge=0)] = 0
    runner: Literal["ray", "local"] = "ray"
    ray: RayConfig = RayConfig()
    data: DataConfig = DataConfig()
    digits: DigitsConfig = DigitsConfig()
    docmnist: DocMNISTConfig = DocMNISTConfig()
    vocabulary: VocabularyConfig = VocabularyConfig()
    model: ModelConfig = ModelConfig()
    pretrain: PretrainConfig = PretrainConfig()
    regions: RegionsConfig = RegionsConfig()
    mapping: MappingConfig = MappingConfig()
    pairs: PairsConfig = PairsConfig()
    train: TrainConfig = TrainConfig()
    evaluate: EvaluateConfig = EvaluateConfig()

    @model_validator(mode="after")
    def _splits_are_given(self) -> Config:
        if self.data.source == "shards" and not self.data.train:
            raise ValueError("data.source: shards needs data.train, a folder of .tar shards")
        if self.pairs.assign == "transport" and self.mapping.loss == "contrastive":
            raise ValueError("pairs.assign: transport moves probabilities, and mapping.loss=contrastive gives cosines")
        if self.pairs.assign == "calibrated" and self.pairs.objectness:
            raise ValueError(
                f"pairs.objectness={self.pairs.objectness} changes scores, and pairs.assign=calibrated cuts them where the "
                "mapping's own were calibrated; leave one of the two out, or take assign: relative or absolute"
            )
        if found := self.evaluate.detection:
            self._can_detect(found)
        for name in ("fine_grained", "classes"):
            if getattr(self.evaluate, name) and self.data.source == "docmnist":
                raise ValueError(
                    f"evaluate.{name} is of photos, and data.source=docmnist has none; leave it out, or set "
                    "data.source=shards"
                )
        if self.pretrain.steps == 0 and not self.model.published and self.pretrain.start is None:
            raise ValueError(
                "pretrain.steps=0 takes the one-to-one VLM as it is; name a checkpoint in model.weights or a finished "
                "VLM's folder in pretrain.start, or train for some steps"
            )
        if self.train.micro_images and self.model.image.kind == "conv":
            raise ValueError(
                f"train.micro_images={self.train.micro_images}: the conv tower normalises by the statistics of the whole "
                "batch, which are not those of its parts; leave it out, or take model.image.kind: hf or clip_rn50"
            )
        for name, job in (("pretrain", self.pretrain), ("train", self.train), ("mapping.fit", self.mapping.fit)):
            if job.batch_images % job.workers:
                raise ValueError(
                    f"{name}.batch_images={job.batch_images} is not divisible by {name}.workers={job.workers}"
                )
            if job.validate_steps is not None:
                self._can_validate(name, job)
            refuse_engine_options(name, job, self.model)
            by_size = self.model.image.kind == "clip_rn50" and self.model.image.shape == "aspect"
            if job.zero_stage == 3 and job.workers > 1 and by_size:
                raise ValueError(
                    f"{name}.zero_stage=3 needs model.image.shape=square with clip_rn50: images of several shapes are "
                    "encoded one shape at a time, and ranks with different shapes would wait for each other for ever"
                )
        return self

    def _can_detect(self, asked: DetectionConfig) -> None:
        if asked.boxes != "truth" and self.regions.proposals == "annotations":
            raise ValueError(
                f"evaluate.detection.boxes={asked.boxes} needs proposals, and regions.proposals=annotations are the true "
                "boxes; set evaluate.detection.boxes=truth, or regions.proposals to segments, hf or grid"
            )
        if self.data.source == "docmnist":
            raise ValueError(
                "evaluate.detection needs photos with known boxes of named categories, and data.source=docmnist has none; "
                "leave it out, or set data.source=shards"
            )

    def _can_validate(self, name: str, job: OptimConfig) -> None:
        asked = f"{name}.validate_steps={job.validate_steps}"
        if "validation" not in self.evaluate.splits or (self.data.source == "shards" and not self.data.validation):
            given = " and give data.validation" * (self.data.source == "shards")
            raise ValueError(f"{asked} needs a validation split; add validation to evaluate.splits{given}")
        if job.zero_stage == 3:
            raise ValueError(f"{asked} does not work with zero_stage=3, where no rank holds a whole model; use 2")


class StudyConfig(Section):
    """The complexity study: one run of `base` for every setting, target and seed.

    equal_budget: the paper's setting, a fixed number of attributes, so fewer images at a higher complexity.
    equal_images: `images` training images at every complexity.
    """

    out: Annotated[str, Field(min_length=1)] = "runs/study"
    targets: Annotated[list[Annotated[int, Field(ge=4)]], Field(min_length=1)] = [6, 16, 33]
    seeds: Annotated[list[Count], Field(min_length=1)] = [0, 1, 2]
    settings: Annotated[list[Literal["equal_budget", "equal_images"]], Field(min_length=1)] = [
        "equal_budget",
        "equal_images",
    ]
    images: Positive = 1000
    parallel: Positive = 2
    base: Config = Config()
