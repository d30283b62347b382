"""A run, stage by stage: ingest -> vocabulary -> pretrain -> regions -> fit-mapping -> pairs -> train -> evaluate -> report.

Each method binds its output to the part of the config and to the inputs it depends on, does what is not committed, and
leaves a manifest or a model. Calling it again is resuming.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from shards import manifest
from shards.collect import Summary, conservation
from shards.commit import SUFFIX, StageFolder
from shards.digest import fingerprint
from shards.errors import BudgetError, ShardError, StaleStageError, VillaError
from shards.manifest import Manifest
from shards.sample import ALL, chosen
from shards.store import Store
from villa_dist import claims, models
from villa_dist.attributes import vocabulary
from villa_dist.claims import STAGES, TRAINING, Claim
from villa_dist.config import Config
from villa_dist.config_file import dump
from villa_dist.docmnist import words as docmnist_words
from villa_dist.enough import check_enough
from villa_dist.evaluate import assemble, parts
from villa_dist.mapping import quality
from villa_dist.observe import LOG
from villa_dist.profile import summed
from villa_dist.report.provenance import code
from villa_dist.runner import Runner
from villa_dist.stages import vocabulary as vocabulary_stage
from villa_dist.stages.base import StageRequest
from villa_dist.stages.ingest import units
from villa_dist.stages.progress import StageProgress
from villa_dist.train import lessons
from villa_dist.train.jobs import TrainRequest, images_of, kept_below, model_folder
from villa_dist.train.progress import watch

JUDGED = 256  # shards whose pairs are judged after the stage


def check_stages(config: Config, stages: Sequence[str]) -> None:
    """Raises: VillaError for an unknown stage, or one that cannot work where `run` is."""
    for name in stages:
        if name not in STAGES:
            raise VillaError(f"there is no stage {name!r}; stages in order: {', '.join(STAGES)}")
    trains = [s for s in stages if s in TRAINING]
    if trains and not Store(config.run).local:
        raise VillaError(
            f"run = {config.run!r}: {trains[0]} keeps checkpoints, which need a local or shared file system; "
            "set run to a folder on one (data.train and the others may stay on s3://)"
        )


class Pipeline:
    """One run of a config by a runner. force: redo stages whose config or inputs changed."""

    def __init__(self, config: Config, runner: Runner, *, force: bool = False) -> None:
        self.config, self.runner, self.force = config, runner, force
        self.store = Store(config.run)

    # ---- the stages, in order

    def run(self, stages: Sequence[str] = STAGES) -> dict[str, Any]:
        """Run the stages named and return the result line. Raises: VillaError for an unknown stage."""
        check_stages(self.config, stages)
        for name in stages[:1]:  # those that follow in one run are checked by their own inputs
            claims.check_upstream(self.config, name)
        if "evaluate" in stages:
            parts.check(self.config)
        started = time.monotonic()
        result: dict[str, Any] = {"run": self.config.run}
        for name in stages:
            result.update(getattr(self, name.replace("-", "_"))() or {})
            if name == stages[-1] or not self.store.exists("config.yaml"):  # all of it holds, or it is the run's first
                self.store.put("config.yaml", dump(self.config).encode())
        return {**result, "seconds": round(time.monotonic() - started, 1)}

    def ingest(self) -> dict[str, Any]:
        images: dict[str, int] = {}
        refused: dict[str, int] = {}
        warnings: list[str] = []
        for split in claims.splits(self.config):
            plan = units(self.config, split)
            shards = [u.shard for u in plan]
            check = partial(self._check_budget, split, shards, quiet=True)
            self._shards("ingest", split, claims.ingest(self.config, split, plan), shards, check=check)
            summary = self._check_budget(split, shards)
            images[split], warnings = summary.out, warnings + summary.warnings
            for reason, count in summary.refused.items():
                refused[reason] = refused.get(reason, 0) + count
            if self.config.data.source == "docmnist":
                manifest.write(StageFolder(claims.dataset(self.config, split), "truth"), shards)
        return {"images": images, "quarantined": refused, "warnings": warnings}

    def vocabulary(self) -> dict[str, Any]:
        base = self._base("train")
        candidates = vocabulary_stage.phrases(self.config.vocabulary, report=True)
        vocabulary.write_candidates(self.store, candidates)
        self._shards("vocabulary", "train", claims.phrases(self.config, candidates), base.shards)
        counted = StageFolder(claims.dataset(self.config, "train"), "vocabulary")
        counts = vocabulary_stage.merged_counts(counted, base.shards, len(candidates), base.total)
        built = vocabulary.build(candidates, counts, claims.choice(self.config))
        if self.config.data.source == "docmnist" and built.phrases != docmnist_words.ATTRIBUTES:
            raise VillaError(
                "vocabulary.attributes and vocabulary.lists must be left out with data.source: docmnist, whose true pairs "
                "are numbered by its own twenty attributes"
            )
        lessons.check_groups(self.config.mapping, built.groups)
        vocabulary.write(self.store, built, claims.vocabulary_choice(self.config, candidates))
        LOG.info("vocabulary: %d of %d phrases became attributes", len(built), len(candidates))
        return {"attributes": len(built)}

    def pretrain(self) -> None:
        self._train("one_to_one")

    def regions(self) -> None:
        for split in claims.region_splits(self.config):
            claim = claims.regions(self.config, split)
            params = {"model": self._frozen(), "keep": claim.below}
            self._shards("regions", split, claim, claims.region_shards(self.config, split), params)

    def fit_mapping(self) -> None:
        self._train("mapping")

    def pairs(self) -> None:
        for split in claims.splits(self.config):
            fused = fingerprint(claims.regions(self.config, split).config) if self.config.pairs.fused else None
            params = {"model": model_folder(self.config, "mapping"), "vlm": self._frozen(), "regions": fused}
            self._shards("pairs", split, claims.pairs(self.config, split), self._base(split).shards, params)
            for line in quality.shortcomings(self.mapping_quality(split)):
                LOG.warning("pairs %s: %s", split, line)

    def mapping_quality(self, split: str) -> dict[str, float]:
        """Of the pairs of a split, judged without labels on a sample of its shards."""
        folder, shards = StageFolder(claims.dataset(self.config, split), "pairs"), self._base(split).shards
        sample = shards[:: -(-len(shards) // JUDGED)]
        return quality.of_counts(summed(folder.marker(s).counts for s in sample))

    def train(self) -> None:
        for job in claims.jobs(self.config)[1:]:
            self._train(job)

    def evaluate(self) -> dict[str, Any]:
        measured: dict[str, Any] = {}
        for split in claims.splits(self.config)[1:]:
            if self._has_truth(split):
                measured[split] = self._measure(split)
            else:
                LOG.info("%s has no known pairs, so no R-Precision", claims.dataset(self.config, split))
        others = parts.measure(self.config, claims.splits(self.config)[1:], self._shards)
        if not measured and not others:
            LOG.warning("no split with known pairs, and no other part of evaluate: the metrics are empty")
        reported: dict[str, Any] = measured.get("test") or next(iter(measured.values()), {})
        weights = models.digests(self.config.run)
        results = {
            "metrics": reported,
            "splits": measured,
            "images": self._images(),
            "weights": weights,
            "asked": claims.results(self.config),
            "code": code(),
            **others,
        }
        self.store.put("results.json", json.dumps(results, indent=1).encode())  # in the order in which it is shown
        told: dict[str, Any] = {"metrics": reported, **({"splits": measured} if len(measured) > 1 else {})}
        return {**told, **others}

    def report(self) -> dict[str, Any]:
        from villa_dist.report.build import build

        path = build(self.config)
        LOG.info("report: %s", path)
        return {"report": path}

    # ---- what the stages share

    def _frozen(self) -> str:
        """The folder of the VLM whose features the mapping takes; empty where it has a tower of its own."""
        return model_folder(self.config, "one_to_one") if self.config.mapping.frozen else ""

    def _measure(self, split: str) -> dict[str, Any]:
        measured: dict[str, Any] = {}
        for job in claims.jobs(self.config):
            params = {"model": model_folder(self.config, job)}
            self._shards("embed", split, claims.embed(self.config, split, job), self._base(split).shards, params)
            measured[job] = assemble.retrieval(self.config, split, job)
        measured["mapping"] = assemble.mapping(self.config, split)
        return measured

    def _shards(
        self,
        stage: str,
        split: str,
        claim: Claim,
        shards: Sequence[str],
        params: Mapping[str, Any] | None = None,
        check: Callable[[], object] = bool,
    ) -> Manifest:
        """Do what is missing of one stage on one split, and write the manifest of the claim's last folder.

        check: called when all shards are committed, before the manifest says so.
        """
        output = claim.folders[-1]
        of_model = stage in ("embed", "detect", "whole", "phrases")
        name = f"{output.stage if of_model else stage} {split}"
        bound = self._claim(claim)
        left = [f for f in claim.clears if f.stage not in {c.stage for c in claim.folders}]
        for each in (*claim.folders, *left):
            each.settle_all()
        done = set.intersection(*(self._committed(each, claim, shards, bound) for each in claim.folders))
        missing = [s for s in shards if s not in done]
        if not missing and (whole := self._manifest(output)):
            LOG.info("%s: complete, %d shards", name, len(shards))
            return whole
        request = StageRequest(stage, output.stage, split, self.config, bound, dict(params or {}))
        with StageProgress(name, output, len(shards), len(shards) - len(missing)) as progress:
            self.runner.shards(request, missing, progress.done, progress.again)
        for each in (*claim.folders, *left):
            each.settle_all()
        check()
        return manifest.write(output, shards)

    def _committed(self, output: StageFolder, claim: Claim, shards: Sequence[str], bound: str) -> set[str]:
        """The shards that `output` need not be given any more."""
        unkept = {s for s in shards if not chosen(s, claim.below)} if output.stage == "embeddings" else set()
        return self._sound(output, output.shards_done(), bound) | unkept

    def _manifest(self, output: StageFolder) -> Manifest | None:
        """A stage's manifest; None where there is none or it is damaged, since markers can make it anew."""
        try:
            return manifest.read(output) if manifest.exists(output) else None
        except ShardError:
            return None

    def _sound(self, output: StageFolder, shards: Sequence[str], bound: str) -> set[str]:
        """Committed shards whose files are as committed. With --force the others are redone, else they are an error.

        bound: the config's fingerprint, which every marker must have.
        """
        sizes = output.store.list_sizes() if shards else {}
        sound = set() if self.force else manifest.sound(output, sizes, bound, shards) & set(shards)
        for shard in sorted(set(shards) - sound):
            trouble = output.damaged(shard, content=self.force, bound=bound, sizes=sizes)
            if not trouble:
                sound.add(shard)
            elif not self.force:
                raise ShardError(f"{trouble}; restore the file, or repeat with --force to redo the shard")
            else:
                LOG.warning("--force: redoing shard %s: %s", shard, trouble)
                output.store.remove(shard + SUFFIX)
                output.store.remove(manifest.NAME)
        return sound

    def _train(self, job: str) -> None:
        folder, claim = model_folder(self.config, job), claims.training(self.config, job)
        bound = self._claim(claim)
        request = TrainRequest(job, self.config, bound)
        done = models.done(folder)
        if done and done["fingerprint"] != bound and not self.force:
            raise StaleStageError(
                f"{folder} holds weights of another config ({done['fingerprint']}, now {bound}), left by a run that was cut "
                "off while it was cleared; repeat with --force to train again"
            )
        if done and self.force and (done["fingerprint"] != bound or not models.is_sound(folder)):
            LOG.warning("--force: training %s again", job)
            claim.folders[-1].clear()
            self._claim(claim)
        if models.done(folder):
            LOG.info("train %s: complete", job)
            return
        base = self._base("train")
        below = kept_below(self.config, base.shards) if job == "mapping" else ALL
        check_enough(self.config, job)
        samples = images_of(self.config, job, base.of({s for s in base.shards if chosen(s, below)}).total)
        with watch(folder, job, request.optim.steps_over(samples), request.optim.stall_minutes):
            self.runner.train(request)
        if not models.done(folder):
            raise ShardError(f"training {job} ended without its marker {folder}/done.json; run the same command again")

    def _claim(self, claim: Claim) -> str:
        """Bind the claim's folders; with --force, empty those of another config first. Returns its fingerprint."""
        try:
            return [each.claim(claim.config) for each in claim.folders][-1]
        except StaleStageError:
            if not self.force:
                raise
        for folder in claim.clears or claim.folders:
            LOG.warning("--force: redoing %s", folder.store.path())
            folder.clear()
        return [each.claim(claim.config) for each in claim.folders][-1]

    def _check_budget(self, split: str, shards: Sequence[str], *, quiet: bool = False) -> Summary:
        """Prove conservation, then hold refusals against the budget. quiet: leave the warnings to a later call."""
        output, summary = StageFolder(claims.dataset(self.config, split), "base"), Summary()
        markers = [output.marker(s) for s in shards]
        for marker in markers:
            summary.add(marker)
        if not conservation(markers).holds():
            raise ShardError(f"{output.store.path()}: samples in and out do not balance; redo the stage with --force")
        for line in [] if quiet else summary.warnings:
            LOG.warning("%s", line)
        refused, counted = summary.refusals, summary.counted()
        where = f"see {output.store.path('quarantine')}"
        if refused and not quiet:
            LOG.warning("ingest %s: %d of %d samples refused (%s); %s", split, refused, summary.came_in, counted, where)
        if summary.out == 0:
            raise BudgetError(
                f"no sample of split {split!r} could be used ({counted or 'the shards are empty'}); {where}"
            )
        limit = self.config.data.max_quarantine_fraction
        if refused > max(limit * summary.came_in, self.config.data.quarantine_allowance):
            raise BudgetError(
                f"{refused} of {summary.came_in} samples of split {split!r} were refused ({counted}), over the budget of "
                f"data.max_quarantine_fraction={limit}; {where}, mend the data, or raise the budget"
            )
        return summary

    def _base(self, split: str) -> Manifest:
        return claims.stage_manifest(self.config, split)

    def _has_truth(self, split: str) -> bool:
        return manifest.exists(StageFolder(claims.dataset(self.config, split), "truth"))

    def _images(self) -> dict[str, int]:
        return {split: self._base(split).total for split in claims.splits(self.config)}
