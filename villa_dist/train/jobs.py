"""The three training jobs of a run, built in each rank from the config: one_to_one, mapping, and the region VLMs."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Float
from torch import nn

from shards import manifest, sidecar
from shards.commit import StageFolder
from shards.errors import VillaError
from shards.reader import read_sidecar
from shards.sample import ALL, bound, chosen
from shards.store import Store
from villa_dist import models
from villa_dist.attributes import vocabulary
from villa_dist.config import Config
from villa_dist.config_train import OptimConfig, TrainConfig
from villa_dist.data.augment import Augment
from villa_dist.data.loader import Draws, Recipe
from villa_dist.data.mixture import MixedSamples
from villa_dist.data.others import others
from villa_dist.data.sampler import Counted, RegionSampling, counted, frequencies
from villa_dist.data.samples import Samples
from villa_dist.encoders.precision import best_device
from villa_dist.mapping.model import MappingModel
from villa_dist.mapping.rates import positive_share, rates
from villa_dist.train import lessons, near
from villa_dist.train.calibration import calibrated
from villa_dist.train.loop import JobParts, run_job
from villa_dist.train.objective import MappingObjective, RegionObjective, WholeObjective, join_prompts
from villa_dist.train.start import first_vlm
from villa_dist.train.validate import Validation
from villa_dist.vlm.model import RegionVLM

EMBED_ATTRIBUTES = 512  # at once
DRAWN_SHARDS = 32  # that images are drawn from by what they lack: few enough to stay open
RATE_SHARDS = 256  # shards whose region sidecars are read for the attribute rates


@dataclass(frozen=True)
class TrainRequest:
    """A training job of a run; small and picklable."""

    job: str  # one_to_one, mapping, villa, ground_truth
    config: Config
    fingerprint: str

    @property
    def pairs(self) -> str:
        """The sidecar a region VLM learns from."""
        return "truth" if self.job == "ground_truth" else "pairs"

    @property
    def folder(self) -> str:
        return model_folder(self.config, self.job)

    @property
    def optim(self) -> OptimConfig:
        if self.job == "one_to_one":
            return self.config.pretrain
        return self.config.mapping.fit if self.job == "mapping" else self.config.train


def model_folder(config: Config, job: str) -> str:
    return f"{config.run}/models/{job}"


def run_request(request: TrainRequest) -> None:
    """Train one job; called once on every rank, with the process group's environment set.

    A one-to-one VLM that is taken as it is (`pretrain.steps: 0`) is not trained but written, by one rank.
    """
    build: Callable[[], JobParts]
    if request.job == "one_to_one" and request.optim.steps == 0:
        if int(os.environ.get("RANK", "0")) == 0:
            models.write(request.folder, first_vlm(request.config), request.fingerprint)
        return
    if request.job == "one_to_one":
        build = partial(one_to_one, request.config)
    elif request.job == "mapping":
        build = partial(mapping, request.config)
    else:
        build = partial(region_vlm, request.config, request.pairs)
    run_job(build, request.optim, request.folder, request.config.seed, request.fingerprint)


def one_to_one(config: Config) -> JobParts:
    samples = _samples(config, None)
    vlm = first_vlm(config)
    check = validation(config, config.pretrain)
    described, recipe = models.vlm_description(vlm), recipe_of(config.pretrain)
    return JobParts(
        WholeObjective(vlm), samples, _vlm_of, described, models.vlm_files(vlm), recipe=recipe, validate=check
    )


def region_vlm(config: Config, pairs: str) -> JobParts:
    words = vocabulary.read(Store(config.run))
    vlm = RegionVLM(config.model)
    samples = mixed(config, pairs, _samples(config, pairs, texts=config.train.whole_weight > 0), words)
    recipe = replace(recipe_of(config.train, words), regions=sampling(config, samples, len(words)))
    objective = RegionObjective(vlm, words.prompts, config.train, near_reference(config.train, vlm, words))
    check = validation(config, config.train)
    described, files = models.vlm_description(vlm), models.vlm_files(vlm)
    return JobParts(objective, samples, _vlm_of, described, files, recipe=recipe, validate=check)


def recipe_of(optim: OptimConfig, words: vocabulary.Vocabulary | None = None) -> Recipe:
    """What the settings of a VLM's job say of its images. words: the attributes its pairs are of; None: whole texts."""
    if optim.augment is None:
        return Recipe(workers=optim.loader_workers)
    chosen_sides, crop = optim.augment.made_sides(), optim.augment.crop
    return Recipe(
        workers=optim.loader_workers,
        augment=Augment(
            crop=(crop[0], crop[1]) if crop else None,
            flip=optim.augment.flip,
            colour=optim.augment.colour,
            sides=chosen_sides,
            counterpart=chosen_sides.counterparts(words.phrases) if words else None,
        ),
    )


def mixed(config: Config, stage: str, own: Samples, words: vocabulary.Vocabulary) -> Samples:
    """A region VLM's samples: the run's own, with those of `data.mix`. Raises: VillaError for one that does not fit."""
    if not config.data.mix:
        return own
    found = others(config.data.mix, stage, words.fingerprint)
    sets = [(own, config.data.own_weight)] if config.data.own_weight else []
    for o in found:
        its = Samples(o.dataset_url, stage, images=True, max_pixels=own.max_pixels, texts=own.texts)
        sets.append((its, o.weight))
    return MixedSamples([its for its, _ in sets], [weight for _, weight in sets])


def images_of(config: Config, job: str, own: int) -> int:
    """Images of a job's data sets together; own: those of this run."""
    if not config.data.mix or job in ("one_to_one", "mapping"):
        return own
    words = vocabulary.read(Store(config.run))
    found = others(config.data.mix, TrainRequest(job, config, "").pairs, words.fingerprint)
    return own * bool(config.data.own_weight) + sum(o.base.total for o in found)


def sampling(config: Config, samples: Samples, attributes: int) -> RegionSampling | None:
    """How regions are drawn; their attributes are counted only where they matter."""
    if config.train.regions_per_image is None:
        return None
    parts: list[Counted] = []
    if config.train.attribute_balance:
        assert samples.stage is not None
        sets, weights = (samples.sets, samples.weights) if isinstance(samples, MixedSamples) else ((samples,), (1.0,))
        for each, weight in zip(sets, weights, strict=True):
            parts.append(counted(each.dataset_url, samples.stage, attributes, config.seed, weight / sum(weights)))
    frequency = frequencies(parts) if parts else np.ones(attributes)
    return RegionSampling(config.train.regions_per_image, config.train.attribute_balance, frequency)


def validation(config: Config, optim: OptimConfig) -> Validation | None:
    """Retrieval to measure while a VLM trains, where it is asked for."""
    if optim.validate_steps is None:
        return None
    store = Store(config.run)
    words = vocabulary.read(store) if store.exists(vocabulary.NAME) else None
    return Validation(config.run, words, optim.validate_images, config.data.max_pixels)


def near_reference(
    train: TrainConfig, vlm: RegionVLM, words: vocabulary.Vocabulary
) -> Float[torch.Tensor, "V D"] | None:
    """By the text tower as published. One trained from scratch cannot tell yet what is near: nothing is."""
    if vlm.published is None or train.near_duplicates is None or train.loss == "infonce":
        return None
    return near.reference(attribute_embeddings(vlm, words), train.near_duplicates)


def mapping(config: Config) -> JobParts:
    """The mapping model over the one-to-one VLM: its frozen region features, or its tower trained on."""
    frozen = config.mapping.frozen
    place = f"{config.run}/train"
    below = kept_below(config, manifest.read(StageFolder(place, "base")).shards)
    pixels = config.data.max_pixels
    samples = Samples(place, "regions", images=not frozen, embeddings=frozen, max_pixels=pixels, below=below)
    vlm = models.load_vlm(model_folder(config, "one_to_one"))
    words = vocabulary.read(Store(config.run))
    changes, expert = lessons.changes(config.mapping, words.groups)
    images_with, mentions = mention_counts(config, len(words), below)
    rate = rates(images_with, mentions)
    share = torch.from_numpy(positive_share(images_with, rate)).float()
    features = vlm.image.feature_dim
    model = MappingModel(
        config.mapping,
        config.model.image,
        attribute_embeddings(vlm, words),
        torch.from_numpy(rate).float(),
        features,
        vlm.published,
        config.model.attention,
        group=lessons.exclusive_groups(config.mapping, words.groups),
        expert=expert,
        experts=len(changes),
    )
    if not frozen:
        for k in range(len(changes)):
            model.of(k).tower.load_state_dict(vlm.image.state_dict())
    description = models.mapping_description(config.mapping, config.model, features, vlm.published, len(changes))
    draws = (
        absence_draws(config, samples, mentions, int(images_with.sum())) if config.mapping.draws == "absence" else None
    )
    objective = MappingObjective(model, share)

    def complete(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        fitted = models.build_mapping(description, weights).to(best_device())
        return {**weights, "threshold": calibrated(fitted, samples, share, config.mapping.fit, config.seed)}

    recipe = Recipe(changes=changes, draws=draws, workers=config.mapping.fit.loader_workers)
    return JobParts(objective, samples, _model_of, description, recipe=recipe, complete=complete)


def attribute_embeddings(vlm: RegionVLM, words: vocabulary.Vocabulary) -> torch.Tensor:
    """V x D: the unit mean of each attribute's prompts' embeddings, a part of the vocabulary at a time."""
    parts = [torch.zeros(0, vlm.dim)]
    with torch.no_grad():
        for first in range(0, len(words), EMBED_ATTRIBUTES):
            prompts = words.prompts[first : first + EMBED_ATTRIBUTES]
            tokens, group_of = join_prompts([vlm.tokenize(list(p)) for p in prompts])
            parts.append(vlm.embed_groups(tokens, group_of, len(prompts)).cpu())
    return torch.cat(parts)


def keeps_a_sample(config: Config) -> bool:
    """Whether fit-mapping learns from a sample of the shards, `regions.keep_embeddings` of them."""
    return config.regions.keep_embeddings < 1 and (config.mapping.frozen or config.pairs.fused)


def kept_below(config: Config, shards: Sequence[str]) -> int:
    """The bound of the sample of `shards` whose embeddings are kept (`shards.sample`)."""
    return bound(shards, config.regions.keep_embeddings) if keeps_a_sample(config) else ALL


def mention_counts(config: Config, attributes: int, below: int = ALL) -> tuple[np.ndarray, np.ndarray]:
    """(images with n regions, by n; images that mention each attribute), from a sample of the region sidecars. An image
    without a region says nothing of what regions have, so neither it nor its mentions count."""
    images_with, mentions = np.zeros(1, np.int64), np.zeros(attributes, np.int64)
    for _, table in _surveyed(config, below):
        regions = np.diff(sidecar.list_column(table, "boxes")[1])
        counts = np.bincount(regions[regions > 0])
        size = max(len(counts), len(images_with))
        images_with = np.pad(images_with, (0, size - len(images_with))) + np.pad(counts, (0, size - len(counts)))
        attribute, at = sidecar.list_column(table, "attributes")
        mentions += np.bincount(attribute[np.repeat(regions > 0, np.diff(at))], minlength=attributes)
    return images_with, mentions


def absence_draws(config: Config, samples: Samples, mentions: np.ndarray, images: int) -> Draws | None:
    """Images to draw by the common attributes they lack, from the same sample of the region sidecars."""
    common = np.nonzero(mentions > lessons.COMMON * images)[0]
    number = {name: i for i, name in enumerate(samples.manifest.shards)}
    place, said = [np.zeros((0, 2), np.int64)], [np.zeros((0, len(common)), bool)]
    for shard, table in islice(_surveyed(config, samples.below), DRAWN_SHARDS):
        attribute, at = sidecar.list_column(table, "attributes")
        row = np.repeat(np.arange(len(table)), np.diff(at))
        column = np.full(len(mentions), -1)
        column[common] = np.arange(len(common))
        here = column[attribute] >= 0
        mentioned = np.zeros((len(table), len(common)), bool)
        mentioned[row[here], column[attribute[here]]] = True
        filled = np.diff(sidecar.list_column(table, "boxes")[1]) > 0
        place.append(np.stack([np.full(len(table), number[shard]), np.arange(len(table))], 1)[filled])
        said.append(mentioned[filled])
    return lessons.absence_draws(np.concatenate(place), np.concatenate(said), samples.manifest.total)


def _surveyed(config: Config, below: int) -> Iterator[tuple[str, pa.Table]]:
    """At most RATE_SHARDS region sidecars, chosen by the seed."""
    folder = StageFolder(f"{config.run}/train", "regions")
    shards = [s for s in manifest.read(folder).shards if chosen(s, below)]
    picked = np.random.default_rng(config.seed).permutation(len(shards))[:RATE_SHARDS]
    for index in sorted(picked.tolist()):
        yield shards[index], read_sidecar(folder, shards[index], sidecar.REGIONS)


def _samples(config: Config, stage: str | None, *, texts: bool = False) -> Samples:
    samples = Samples(f"{config.run}/train", stage, images=True, max_pixels=config.data.max_pixels, texts=texts)
    if samples.manifest.total == 0:
        raise VillaError("the train split holds no sample; see its quarantine for why each was refused")
    return samples


def _vlm_of(objective: nn.Module) -> nn.Module:
    assert isinstance(objective, WholeObjective | RegionObjective)
    return objective.vlm


def _model_of(objective: nn.Module) -> nn.Module:
    assert isinstance(objective, MappingObjective)
    return objective.model
