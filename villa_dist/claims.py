"""What each stage's output is bound to: the part of the config and the inputs it depends on.

A claim is saved as `config.json` in the folder it is for. The same functions say what a folder *should* be bound to, so
that a single stage can refuse to build on output of another config (`check_upstream`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import PurePosixPath
from typing import Any

from shards import manifest
from shards.commit import StageFolder
from shards.digest import difference, fingerprint
from shards.errors import StaleStageError, VillaError
from shards.manifest import Manifest
from shards.sample import ALL, chosen
from shards.store import Store
from villa_dist import models
from villa_dist.attributes import vocabulary
from villa_dist.attributes.extract import VERSION as EXTRACTION
from villa_dist.attributes.phrases import Phrase
from villa_dist.attributes.vocabulary import Choice
from villa_dist.config import Config
from villa_dist.data.others import others
from villa_dist.encoders import published
from villa_dist.regions.detector import identity
from villa_dist.stages import vocabulary as vocabulary_stage
from villa_dist.stages.ingest import Unit, units
from villa_dist.train.jobs import TrainRequest, keeps_a_sample, kept_below, model_folder
from villa_dist.train.start import start_digest

FORMAT = 3  # raised when the same config would give other bytes
TRAINING = ("pretrain", "fit-mapping", "train")
STAGES = ("ingest", "vocabulary", "pretrain", "regions", "fit-mapping", "pairs", "train", "evaluate", "report")
HOW = (  # how a job is trained, not what it gives
    "workers",
    "threads",
    "loader_workers",
    "micro_images",
    "offload",
    "activation_checkpointing",
    "checkpoint_steps",
    "checkpoint_minutes",
    "keep_checkpoints",
    "keep_best",
    "checkpoint_copy",
    "stall_minutes",
    "restarts",
    "track",
    "validate_steps",
    "validate_images",
)

# settings that say nothing while they are off: what was trained before there were any is what would be trained now
OFF = {"augment": None, "regions_per_image": None, "attribute_balance": 0.0}


@dataclass(frozen=True)
class Claim:
    """`config` claims `folders` together; --force empties `clears` as well. below: of the embeddings' folder, only shards
    whose rank lies below it are kept (`shards.sample`)."""

    folders: tuple[StageFolder, ...]
    config: dict[str, Any]
    clears: tuple[StageFolder, ...] = ()
    below: int = ALL


# ---- what a run consists of


def splits(config: Config) -> list[str]:
    """train, then the splits that are evaluated and have data."""
    given = config.data.source == "docmnist"
    return ["train"] + [s for s in config.evaluate.splits if given or getattr(config.data, s)]


def jobs(config: Config) -> list[str]:
    """VLMs of a run: the one-to-one baseline, ViLLA, and the one on true pairs where they are known."""
    truth = config.evaluate.ground_truth and config.data.source == "docmnist"
    return ["one_to_one", "villa"] + (["ground_truth"] if truth else [])


def dataset(config: Config, split: str) -> str:
    return f"{config.run}/{split}"


def stage_manifest(config: Config, split: str, folder: str = "base") -> Manifest:
    return manifest.read(StageFolder(dataset(config, split), folder))


# ---- the claims, stage by stage


def ingest(config: Config, split: str, plan: Sequence[Unit]) -> Claim:
    shards = fingerprint([[u.shard, u.images, u.source, u.bytes] for u in plan])
    if config.data.source == "shards":
        what = {"source": getattr(config.data, split), "shards": shards, "max_pixels": config.data.max_pixels}
        return _on_split(config, split, what, ("base",), ("base", "truth"))
    digits = config.digits.mnist_dir
    made_of = {"digits": f"MNIST in {digits}" if digits else "scikit-learn", "seed": config.seed, "shards": shards}
    return _on_split(config, split, {"docmnist": _section(config, "docmnist"), **made_of}, ("truth", "base"))


def phrases(config: Config, candidates: Sequence[Phrase] | None = None) -> Claim:
    """candidates: as `vocabulary_stage.phrases` reads them, where that is known."""
    listed = vocabulary_stage.phrases(config.vocabulary) if candidates is None else candidates
    said = fingerprint([[p.phrase, *p.synonyms] for p in listed])
    what = {"phrases": said, "base": stage_manifest(config, "train").digest, **_extraction(config)}
    return _on_split(config, "train", what, ("vocabulary",))


def choice(config: Config) -> Choice:
    """What decides, beside the counts, which phrases become attributes; all of DocMNIST's do."""
    words = config.vocabulary
    if config.data.source == "docmnist":
        return Choice(min_count=0)
    return Choice(words.min_count, words.max_count_fraction, words.max_phrases, words.order)


def vocabulary_choice(config: Config, candidates: Sequence[Phrase] | None = None) -> dict[str, Any]:
    """`choice`, and what is said of the phrases beside the phrases themselves, as it is kept with the vocabulary."""
    listed = vocabulary_stage.phrases(config.vocabulary) if candidates is None else candidates
    made = choice(config)
    return {
        "vocabulary.min_count": made.min_count,
        "vocabulary.max_count_fraction": made.max_fraction,
        "vocabulary.max_phrases": made.max_phrases,
        "vocabulary.order": made.order,
        "groups and prompts": fingerprint([[p.group, *p.prompts] for p in listed]),
    }


def _extraction(config: Config) -> dict[str, Any]:
    return {"extraction": EXTRACTION, "negation": config.vocabulary.negation}


def region_splits(config: Config) -> list[str]:
    """The splits that the regions stage works on: where pairs are fused, only the one that fit-mapping learns from."""
    return splits(config)[:1] if config.pairs.fused else splits(config)


def region_shards(config: Config, split: str) -> list[str]:
    """The shards of a split whose regions are kept."""
    shards = stage_manifest(config, split).shards
    below = kept_below(config, shards) if config.pairs.fused else ALL
    return [s for s in shards if chosen(s, below)]


def regions(config: Config, split: str) -> Claim:
    frozen = config.mapping.frozen
    base = stage_manifest(config, split)
    what = {
        "regions": regions_choice(config),
        "vocabulary": vocabulary.read(Store(config.run)).fingerprint,
        **_extraction(config),
        "base": base.digest,
        "embeddings": models.load(model_folder(config, "one_to_one")).sha256 if frozen else "none kept",
    }
    written = ("embeddings", "regions") if frozen else ("regions",)
    claim = _on_split(config, split, what, written, ("regions", "embeddings"))
    return replace(claim, below=kept_below(config, base.shards))


def regions_choice(config: Config) -> dict[str, Any]:
    """What decides about boxes: of the backends' own settings only the chosen one's."""
    left_out = {"segments", "hf", "decode_threads"} - {config.regions.proposals}
    if not keeps_a_sample(config):
        left_out.add("keep_embeddings")
    settings = config.regions.model_dump(mode="json", exclude=left_out)
    if config.regions.proposals == "hf":
        where = ("model", "revision", "device", "batch_images")
        settings["hf"] = {k: v for k, v in settings["hf"].items() if k not in where}
        settings["hf"]["checkpoint"] = identity(config.regions.hf)
    return settings


def pairs(config: Config, split: str) -> Claim:
    """Fused pairs depend on what regions would be made of, the others on the regions that are there."""
    what = {
        "pairs": config.pairs.model_dump(mode="json", exclude={"fused"}),
        "mapping": models.load(model_folder(config, "mapping")).sha256,
        "base": stage_manifest(config, split).digest,
    }
    if config.pairs.fused:
        what["fused"] = regions(config, split).config
    else:
        what["regions"] = stage_manifest(config, split, "regions").digest
    return _on_split(config, split, what, ("pairs",))


def embed(config: Config, split: str, job: str) -> Claim:
    what = {"model": models.load(model_folder(config, job)).sha256, "base": stage_manifest(config, split).digest}
    return _on_split(config, split, what, (f"evaluate-{job}",))


def boxes(config: Config, split: str, truth: str) -> Claim:
    """truth: digest of the truth's file, or "samples"."""
    wanted = config.evaluate.detection
    assert wanted is not None
    what = {
        "truth": truth,
        "base": stage_manifest(config, split).digest,
        "proposals": regions_choice(config) if "proposals" in wanted.modes else "none",
    }
    return _on_split(config, split, what, ("boxes",))


def detect(config: Config, split: str, row: str, model: str, classes: Sequence[str], templates: Sequence[str]) -> Claim:
    """model: digest of the model that this row of the table is of."""
    wanted = config.evaluate.detection
    assert wanted is not None
    what = {
        "detection": wanted.model_dump(mode="json", include={"boxes", "protocol", "objectness"}),
        "model": model,
        "classes": list(classes),
        "templates": list(templates),
        "boxes": stage_manifest(config, split, "boxes").digest,
    }
    return _on_split(config, split, what, (f"detect-{row}",))


def whole(config: Config, split: str, row: str, model: str) -> Claim:
    """model: digest of the model that this row of the tables is of."""
    what = {"model": model, "base": stage_manifest(config, split).digest}
    if config.evaluate.classes is not None and config.evaluate.classes.field is not None:
        what["field"] = config.evaluate.classes.field
    return _on_split(config, split, what, (f"whole-{row}",))


def phrases_of_boxes(config: Config, split: str, row: str, model: str, annotations: str) -> Claim:
    """annotations: digest of the boxes and their phrases."""
    what = {"model": model, "annotations": annotations, "base": stage_manifest(config, split).digest}
    return _on_split(config, split, what, (f"phrases-{row}",))


def results(config: Config) -> str:
    """Fingerprint of what results.json is of, beside the weights: what `evaluate` asks for, and the images of its splits.

    Files count by their names, since a submitted job has them elsewhere. Raises: VillaError where a split is not there.
    """
    wanted = config.evaluate.model_dump(mode="json", exclude_defaults=True)  # so that keys can be added
    bases = {split: stage_manifest(config, split).digest for split in splits(config)[1:]}
    return fingerprint({"evaluate": _named(wanted, config.evaluate.files.values()), "bases": bases})


def _named(value: Any, files: Collection[str]) -> Any:
    """`value` with the paths among `files` as their last parts."""
    if isinstance(value, dict):
        return {k: _named(v, files) for k, v in value.items()}
    if isinstance(value, list):
        return [_named(v, files) for v in value]
    return PurePosixPath(value).name if isinstance(value, str) and value in files else value


def training(config: Config, job: str) -> Claim:
    """job: one_to_one, mapping, villa or ground_truth."""
    request = TrainRequest(job, config, "")
    optim = request.optim.model_dump(mode="json", exclude={*HOW, "start"})
    optim = {k: v for k, v in optim.items() if k not in OFF or v != OFF[k]}
    what: dict[str, Any] = {"format": FORMAT, "seed": config.seed, "steps": optim, "model": _section(config, "model")}
    what["base"] = stage_manifest(config, "train").digest
    what["data"] = {"max_pixels": config.data.max_pixels}
    if config.model.published and job != "mapping":  # which starts from the one-to-one VLM
        what["checkpoint"] = published.digest(config.model)
    if job == "one_to_one" and config.pretrain.start is not None:
        what["start"] = start_digest(config)
    if job != "one_to_one":
        what["vocabulary"] = vocabulary.read(Store(config.run)).fingerprint
    if job == "mapping":
        what["mapping"] = config.mapping.model_dump(mode="json", exclude={"fit"})
        if config.mapping.exclusive or config.mapping.turned or config.mapping.recoloured:
            what["groups"] = fingerprint(list(vocabulary.read(Store(config.run)).groups))
        what["one_to_one"] = models.load(model_folder(config, "one_to_one")).sha256
        what["regions"] = stage_manifest(config, "train", "regions").digest
        if keeps_a_sample(config):
            what["keep_embeddings"] = config.regions.keep_embeddings
    elif job != "one_to_one":
        what[request.pairs] = stage_manifest(config, "train", request.pairs).digest
        if config.data.mix:
            mixed = others(config.data.mix, request.pairs, what["vocabulary"])
            what["mix"] = [config.data.own_weight, *([o.weight, o.base.digest, o.pairs.digest] for o in mixed)]
    return Claim((StageFolder(f"{config.run}/models", job),), what)


def check_upstream(config: Config, stage: str) -> None:
    """Refuse to run one stage on what earlier stages made with another config, or made anew since.

    What is not there is passed over: the stage that needs it says so in its own words. Raises: StaleStageError naming
    folder, differences and remedy.
    """
    for earlier in STAGES[: STAGES.index(stage)]:
        for make in _makers(config, earlier):
            try:
                claim = make()
            except VillaError:
                continue
            for folder in claim.folders:
                _check(stage, earlier, folder.store.path(), folder.claimed(), claim.config)
        if earlier == "vocabulary":
            store = Store(config.run)
            try:
                chosen = vocabulary_choice(config)
            except VillaError:  # a list that is gone
                continue
            _check(stage, earlier, store.path(vocabulary.NAME), vocabulary.choice(store), chosen)


def _check(stage: str, earlier: str, place: str, theirs: dict[str, Any] | None, mine: dict[str, Any]) -> None:
    if theirs is None:
        return
    if "source" in mine:  # the tars a data set was taken from may be gone by now
        theirs, mine = {**theirs, "shards": ""}, {**mine, "shards": ""}
    if fingerprint(theirs) == fingerprint(mine):
        return
    lines = "\n".join(f"  {line}" for line in difference(theirs, mine))
    raise StaleStageError(
        f"{stage} builds on {place}, which was made with another config or from other inputs. What differs "
        f"(there -> here):\n{lines}\nGive {stage} the config that made it, or redo it first: `villa {earlier} CONFIG "
        "--force`."
    )


def _makers(config: Config, stage: str) -> list[Callable[[], Claim]]:
    """What makes the claims of a stage."""
    every = splits(config)
    made: dict[str, list[Callable[[], Claim]]] = {
        "ingest": [partial(_ingested, config, split) for split in every],
        "vocabulary": [partial(phrases, config)],
        "pretrain": [partial(training, config, "one_to_one")],
        "regions": [partial(regions, config, split) for split in region_splits(config)],
        "fit-mapping": [partial(training, config, "mapping")],
        "pairs": [partial(pairs, config, split) for split in every],
        "train": [partial(training, config, job) for job in jobs(config)[1:]],
        "evaluate": [partial(embed, config, split, job) for split in every[1:] for job in jobs(config)],
    }
    return made[stage]


def _ingested(config: Config, split: str) -> Claim:
    return ingest(config, split, units(config, split) if config.data.source == "docmnist" else [])


def _on_split(
    config: Config, split: str, what: dict[str, Any], folders: Sequence[str], clears: Sequence[str] = ()
) -> Claim:
    place = dataset(config, split)
    return Claim(
        tuple(StageFolder(place, name) for name in folders),
        {"format": FORMAT, **what},
        tuple(StageFolder(place, name) for name in clears or folders),
    )


def _section(config: Config, name: str) -> dict[str, Any]:
    section: dict[str, Any] = getattr(config, name).model_dump(mode="json")
    return section
