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
from shards.commit import SUFFIX, StageFolder
from shards.digest import fingerprint
from shards.errors import BudgetError, ShardError, StaleStageError, VillaError
from shards.manifest import Manifest
from shards.store import Store
from villa_dist import models
from villa_dist.attributes import vocabulary
from villa_dist.attributes.vocabulary import Vocabulary
from villa_dist.config import Config, dump
from villa_dist.docmnist import words as docmnist_words
from villa_dist.evaluate import assemble
from villa_dist.observe import LOG, Progress
from villa_dist.runner import Runner
from villa_dist.stages import vocabulary as vocabulary_stage
from villa_dist.stages.base import StageRequest
from villa_dist.stages.ingest import IngestSummary, conservation, units
from villa_dist.train.jobs import TrainRequest, model_folder
from villa_dist.train.progress import watch

FORMAT = 1  # raised when the same config would give other bytes
STAGES = ("ingest", "vocabulary", "pretrain", "regions", "fit-mapping", "pairs", "train", "evaluate", "report")


class Pipeline:
    """One run of a config by a runner. force: redo stages whose config or inputs changed."""

    def __init__(self, config: Config, runner: Runner, *, force: bool = False) -> None:
        self.config, self.runner, self.force = config, runner, force
        self.store = Store(config.run)

    # ---- the stages, in order

    def run(self, stages: Sequence[str] = STAGES) -> dict[str, Any]:
        """Run the stages named and return the result line. Raises: VillaError for an unknown stage."""
        for name in stages:
            if name not in STAGES:
                raise VillaError(f"there is no stage {name!r}; stages in order: {', '.join(STAGES)}")
        started = time.monotonic()
        result: dict[str, Any] = {"run": self.config.run}
        for name in stages:
            result.update(getattr(self, name.replace("-", "_"))() or {})
            if len(stages) == len(STAGES) or not self.store.exists("config.yaml"):
                self.store.put("config.yaml", dump(self.config).encode())
        return {**result, "seconds": round(time.monotonic() - started, 1)}

    def ingest(self) -> dict[str, Any]:
        images: dict[str, int] = {}
        refused: dict[str, int] = {}
        warnings: list[str] = []
        for split in self.splits():
            plan = units(self.config, split)
            claim = self._ingest_claim(split, [[u.shard, u.images, u.source, u.bytes] for u in plan])
            shards = [u.shard for u in plan]
            also = ("truth", "base") if self.config.data.source == "docmnist" else ("base",)
            check = partial(self._check_budget, split, shards, quiet=True)
            self._shards("ingest", "base", split, claim, shards, clears=("base", "truth"), also=also, check=check)
            summary = self._check_budget(split, shards)
            images[split], warnings = summary.out, warnings + summary.warnings
            for reason, count in summary.refused.items():
                refused[reason] = refused.get(reason, 0) + count
            if self.config.data.source == "docmnist":
                manifest.write(StageFolder(self._dataset(split), "truth"), [u.shard for u in plan])
        return {"images": images, "quarantined": refused, "warnings": warnings}

    def vocabulary(self) -> dict[str, Any]:
        phrases = vocabulary_stage.phrases(self.config.vocabulary)
        claim = {"phrases": fingerprint(phrases), "base": self._base("train").digest}
        self._shards("vocabulary", "vocabulary", "train", claim, self._base("train").shards)
        counts = vocabulary_stage.merged_counts(
            StageFolder(self._dataset("train"), "vocabulary"), self._base("train").shards
        )
        docmnist = self.config.data.source == "docmnist"
        built = vocabulary.build(phrases, counts, 0 if docmnist else self.config.vocabulary.min_count)
        if docmnist and built.phrases != docmnist_words.ATTRIBUTES:
            raise VillaError(
                "vocabulary.attributes must be left out with data.source: docmnist, whose true pairs are numbered by its "
                "own twenty attributes"
            )
        vocabulary.write(self.store, built)
        return {"attributes": len(built)}

    def pretrain(self) -> None:
        self._train("one_to_one", {"model": self._section("model"), "base": self._base("train").digest})

    def regions(self) -> None:
        frozen = self.config.mapping.encoder == "frozen"
        for split in self.splits():
            claim = {
                "regions": self._section("regions"),
                "vocabulary": self._vocabulary().fingerprint,
                "base": self._base(split).digest,
                "embeddings": models.load(model_folder(self.config, "one_to_one")).sha256 if frozen else "none kept",
            }
            if self.config.regions.proposals == "annotations" and not self._has_truth(split):
                raise VillaError(
                    f"regions.proposals: annotations needs known boxes, and {self._dataset(split)} has no truth sidecar; "
                    "set regions.proposals=grid"
                )
            params = {"model": model_folder(self.config, "one_to_one") if frozen else ""}
            clears = ("regions", "embeddings")
            also = ("embeddings", "regions") if frozen else ("regions",)
            self._shards("regions", "regions", split, claim, self._base(split).shards, params, clears=clears, also=also)

    def fit_mapping(self) -> None:
        mapping = self._section("mapping")
        mapping.pop("fit")
        claim = {
            "mapping": mapping,
            "model": self._section("model"),
            "one_to_one": models.load(model_folder(self.config, "one_to_one")).sha256,
            "regions": manifest.read(StageFolder(self._dataset("train"), "regions")).digest,
            "base": self._base("train").digest,
            "vocabulary": self._vocabulary().fingerprint,
        }
        self._train("mapping", claim)

    def pairs(self) -> None:
        for split in self.splits():
            claim = {
                "pairs": self._section("pairs"),
                "mapping": models.load(model_folder(self.config, "mapping")).sha256,
                "regions": manifest.read(StageFolder(self._dataset(split), "regions")).digest,
                "base": self._base(split).digest,
            }
            params = {"model": model_folder(self.config, "mapping")}
            self._shards("pairs", "pairs", split, claim, self._base(split).shards, params)

    def train(self) -> None:
        for job in self.jobs()[1:]:
            pairs = "truth" if job == "ground_truth" else "pairs"
            claim = {
                "model": self._section("model"),
                "base": self._base("train").digest,
                pairs: manifest.read(StageFolder(self._dataset("train"), pairs)).digest,
                "vocabulary": self._vocabulary().fingerprint,
            }
            self._train(job, claim, pairs)

    def evaluate(self) -> dict[str, Any]:
        measured: dict[str, Any] = {}
        for split in self.splits()[1:]:
            if not self._has_truth(split):
                LOG.warning("%s has no known pairs, so nothing is measured on it", self._dataset(split))
                continue
            measured[split] = self._measure(split)
        if not measured:
            LOG.warning("no split with known pairs: the metrics are empty")
        reported: dict[str, Any] = measured.get("test") or next(iter(measured.values()), {})
        results = {"metrics": reported, "splits": measured, "images": self._images()}
        self.store.put("results.json", json.dumps(results, indent=1, sort_keys=True).encode())
        return {"metrics": reported, **({"splits": measured} if len(measured) > 1 else {})}

    def report(self) -> dict[str, Any]:
        from villa_dist.report.build import build

        path = build(self.config)
        LOG.info("report: %s", path)
        return {"report": path}

    # ---- what the stages share

    def splits(self) -> list[str]:
        """train, then the splits that are evaluated and have data."""
        given = self.config.data.source == "docmnist"
        return ["train"] + [s for s in self.config.evaluate.splits if given or getattr(self.config.data, s)]

    def jobs(self) -> list[str]:
        """VLMs of this run: the one-to-one baseline, ViLLA, and the one on true pairs where they are known."""
        truth = self.config.evaluate.ground_truth and self.config.data.source == "docmnist"
        return ["one_to_one", "villa"] + (["ground_truth"] if truth else [])

    def _measure(self, split: str) -> dict[str, Any]:
        measured: dict[str, Any] = {}
        for job in self.jobs():
            folder = model_folder(self.config, job)
            claim = {"model": models.load(folder).sha256, "base": self._base(split).digest}
            self._shards("embed", f"evaluate-{job}", split, claim, self._base(split).shards, {"model": folder})
            measured[job] = assemble.retrieval(self.config, split, job)
        measured["mapping"] = assemble.mapping(self.config, split)
        return measured

    def _shards(
        self,
        stage: str,
        folder: str,
        split: str,
        claim: Mapping[str, Any],
        shards: Sequence[str],
        params: Mapping[str, Any] | None = None,
        clears: Sequence[str] = (),
        also: Sequence[str] = (),
        check: Callable[[], object] = bool,
    ) -> Manifest:
        """Do what is missing of one stage on one split, and write its manifest.

        clears: folders that --force empties. also: folders the stage writes, its own among them. check: called when all
        shards are committed, before the manifest says so.
        """
        output = StageFolder(self._dataset(split), folder)
        name = f"{stage} {split}" if stage != "embed" else f"{folder} {split}"
        claimed = also or (folder,)
        bound = self._claim(output, {"format": FORMAT, **claim}, clears or (folder,), claimed)
        folders = [StageFolder(output.dataset_url, f) for f in (*claimed, *(set(clears) - set(claimed)))]
        for each in folders:
            each.settle_all()
        done = set.intersection(*(self._sound(each, each.shards_done(), bound) for each in folders[: len(claimed)]))
        missing = [s for s in shards if s not in done]
        if not missing and (whole := self._manifest(output)):
            LOG.info("%s: complete, %d shards", name, len(shards))
            return whole
        request = StageRequest(stage, folder, split, self.config, bound, dict(params or {}))
        with Progress(name, len(shards), "shards", len(shards) - len(missing)) as progress:
            self.runner.shards(request, missing, lambda shard: progress.advance())
        for each in folders:
            each.settle_all()
        check()
        return manifest.write(output, shards)

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
        sound = set()
        for shard in shards:
            trouble = output.damaged(shard, content=self.force)
            if not trouble and output.marker(shard).fingerprint != bound:
                trouble = f"shard {shard} of {output.store.path()} was committed under another config"
            if not trouble:
                sound.add(shard)
            elif not self.force:
                raise ShardError(f"{trouble}; restore the file, or repeat with --force to redo the shard")
            else:
                LOG.warning("--force: redoing shard %s: %s", shard, trouble)
                output.store.remove(shard + SUFFIX)
                output.store.remove(manifest.NAME)
        return sound

    def _train(self, job: str, claim: Mapping[str, Any], pairs: str = "") -> None:
        folder = model_folder(self.config, job)
        request = TrainRequest(job, self.config, "", pairs)
        optim = request.optim.model_dump(mode="json")
        for name in ("workers", "threads", "keep_checkpoints", "checkpoint_steps"):
            optim.pop(name)  # how, not what
        output = StageFolder(f"{self.config.run}/models", job)
        full = {"format": FORMAT, "seed": self.config.seed, "steps": optim, **claim}
        full["data"] = {"max_pixels": self.config.data.max_pixels}
        bound = self._claim(output, full, (job,), (job,))
        request = TrainRequest(job, self.config, bound, pairs)
        done = models.done(folder)
        if done and done["fingerprint"] != bound and not self.force:
            raise StaleStageError(
                f"{folder} holds weights of another config ({done['fingerprint']}, now {bound}), left by a run that was cut "
                "off while it was cleared; repeat with --force to train again"
            )
        if done and self.force and (done["fingerprint"] != bound or not models.is_sound(folder)):
            LOG.warning("--force: training %s again", job)
            output.clear()
            output.claim(full)
        if models.done(folder):
            LOG.info("train %s: complete", job)
            return
        with watch(folder, job, request.optim.steps):
            self.runner.train(request)
        if not models.done(folder):
            raise ShardError(f"training {job} ended without its marker {folder}/done.json; run the same command again")

    def _claim(
        self, output: StageFolder, claim: Mapping[str, Any], clears: Sequence[str], claimed: Sequence[str]
    ) -> str:
        folders = [StageFolder(output.dataset_url, name) for name in claimed]
        try:
            return [each.claim(claim) for each in folders][-1]
        except StaleStageError:
            if not self.force:
                raise
        for folder in clears:
            LOG.warning("--force: redoing %s/%s", output.dataset_url, folder)
            StageFolder(output.dataset_url, folder).clear()
        return [each.claim(claim) for each in folders][-1]

    def _ingest_claim(self, split: str, plan: list[list[Any]]) -> dict[str, Any]:
        if self.config.data.source == "shards":
            return {"source": getattr(self.config.data, split), "shards": fingerprint(plan), **self._limits()}
        digits = self.config.digits.mnist_dir
        return {
            "docmnist": self._section("docmnist"),
            "digits": f"MNIST in {digits}" if digits else "scikit-learn",
            "seed": self.config.seed,
            "shards": fingerprint(plan),
        }

    def _limits(self) -> dict[str, Any]:
        return {"max_pixels": self.config.data.max_pixels}

    def _check_budget(self, split: str, shards: Sequence[str], *, quiet: bool = False) -> IngestSummary:
        """Prove conservation, then hold refusals against the budget. quiet: leave the warnings to a later call."""
        output, summary = StageFolder(self._dataset(split), "base"), IngestSummary()
        markers = [output.marker(s) for s in shards]
        for marker in markers:
            summary.add(marker)
        if not conservation(iter(markers)).holds():
            raise ShardError(f"{output.store.path()}: samples in and out do not balance; redo the stage with --force")
        for line in [] if quiet else summary.warnings:
            LOG.warning("%s", line)
        refused = sum(summary.refused.values())
        counted = ", ".join(f"{count} x {reason}" for reason, count in sorted(summary.refused.items()))
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

    def _section(self, name: str) -> dict[str, Any]:
        section: dict[str, Any] = getattr(self.config, name).model_dump(mode="json")
        return section

    def _dataset(self, split: str) -> str:
        return f"{self.config.run}/{split}"

    def _base(self, split: str) -> Manifest:
        return manifest.read(StageFolder(self._dataset(split), "base"))

    def _vocabulary(self) -> Vocabulary:
        return vocabulary.read(self.store)

    def _has_truth(self, split: str) -> bool:
        return manifest.exists(StageFolder(self._dataset(split), "truth"))

    def _images(self) -> dict[str, int]:
        return {split: self._base(split).total for split in self.splits()}
