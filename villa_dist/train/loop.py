"""One training job, from its spec to its committed weights: run_job -> train_steps -> engine.step.

<run>/models/<job>/config.json            what the job is bound to
<run>/models/<job>/checkpoints/step-…/    DeepSpeed checkpoints with our marker
<run>/models/<job>/metrics.jsonl          one line a logged step
<run>/models/<job>/tensorboard/           the same for TensorBoard
<run>/models/<job>/ranks/                 what each rank is at, while it trains
<run>/models/<job>/nonfinite/             the samples of a step whose loss was not finite
<run>/models/<job>/model.safetensors      the weights, once done
<run>/models/<job>/done.json              the commit marker, last
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from villa_dist import models
from villa_dist.config_train import OptimConfig
from villa_dist.data.loader import Batches, Recipe
from villa_dist.data.samples import Samples
from villa_dist.distributed import rank, world_size
from villa_dist.names import CHECKPOINTS
from villa_dist.train import nonfinite, resume, signals
from villa_dist.train.agree import agree, check_shared
from villa_dist.train.checkpoint import TrainState
from villa_dist.train.engine import Engine, init_process_group
from villa_dist.train.journal import messages_to
from villa_dist.train.ledger import opened
from villa_dist.train.metrics import Meter
from villa_dist.train.pulse import Pulse, watched_by
from villa_dist.train.saving import Saver
from villa_dist.train.schedule import warmup_cosine

Complete = Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]


@dataclass(frozen=True)
class JobParts:
    """What `run_job` needs beyond the optimizer's settings. `export` picks what is saved from the objective."""

    objective: nn.Module
    samples: Samples
    export: Callable[[nn.Module], nn.Module]
    description: dict[str, Any]  # saved beside the weights; enough to rebuild the exported module
    files: Mapping[str, bytes] = field(default_factory=dict)  # also saved beside them
    recipe: Recipe = field(default_factory=Recipe)  # beside what the optimizer's settings say
    complete: Complete | None = None  # adds to the weights before they are written
    validate: Callable[[Any], dict[str, float]] | None = None  # measures what `export` picks, on all ranks at once


def run_job(build: Callable[[], JobParts], config: OptimConfig, folder: str, seed: int, fingerprint: str) -> None:
    """Train for the config's steps or epochs, resuming from the newest whole checkpoint. Called once on every rank.

    Raises: VillaError when the loss is not finite, or a checkpoint belongs to other data; Preempted when asked to stop.
    """
    signals.listen()
    torch.set_num_threads(config.threads)
    init_process_group()
    torch.manual_seed(seed)
    with messages_to(Path(folder)) if rank() == 0 else nullcontext():
        checkpoints = Path(folder) / CHECKPOINTS
        check_shared(checkpoints)
        parts = build()
        start = resume.find(checkpoints, config, parts.samples.manifest.digest, fingerprint)
        start.load_frozen(parts.objective)
        engine = Engine(parts.objective, config)
        try:
            start.load(engine)
            train_steps(engine, parts, config, Path(folder), seed, fingerprint, start.step)
        finally:
            engine.close()


def train_steps(
    engine: Engine, parts: JobParts, config: OptimConfig, folder: Path, seed: int, fingerprint: str, start: int
) -> None:
    data, steps = parts.samples.manifest.digest, config.steps_over(parts.samples.manifest.total)
    vlm = parts.export(engine.module)
    meter = Meter(engine, vlm, config, folder, stage=parts.samples.stage, start=start, steps=steps)
    batches = Batches(
        parts.samples,
        seed=seed,
        window=config.window,
        batch_images=config.batch_images,
        rank=rank(),
        world=world_size(),
        recipe=replace(parts.recipe, shift_pixels=config.shift_pixels),
        start=start,
        stop=steps,
    )
    ledger = opened(folder.name, start)
    begun = TrainState(start, seed, config.batch_images, data, fingerprint, world_size())
    engine.module.train()
    with (
        Pulse(folder, rank(), start, watch=watched_by(rank(), config.stall_minutes)) as pulse,
        Saver(engine, folder / CHECKPOINTS, config, begun, ledger) as saver,
    ):
        for step, batch in pulse.each(batches):
            seed_step(seed, step)
            rate = warmup_cosine(step, steps, config.warmup_steps, config.learning_rate)
            with meter.counting(step):
                loss = engine(batch.to(engine.device))
            with meter.counting(step):
                engine.step(loss, rate)
            verdict = agree(loss, engine.grad_norm, stop=signals.asked(), save=saver.overdue)
            if verdict.nonfinite:
                error = nonfinite.stopped(batches, step, loss.item(), engine.grad_norm, folder, config)
                saver.close()
                raise error
            saver.stepped(loss)
            if ledger:
                ledger.trained(batches, step)
            if parts.validate and config.validate_steps and (step + 1) % config.validate_steps == 0:
                with pulse.during("validate"), meter.aside():
                    meter.validated(saver.measured(parts.validate(vlm)))
            meter.after(step, loss, rate, batch, batches.waited)
            if saver.due(step + 1, steps) or verdict.save or verdict.stop:
                with pulse.during("save"):
                    saver.save(step + 1)
            if verdict.stop and step + 1 < steps:
                saver.close()
                raise signals.preempted(folder.name, step + 1)
        meter.close()
        with pulse.during("end"):
            weights = engine.full_state_dict()
            if rank() == 0:
                finish(engine, parts, weights, folder, fingerprint)
            saver.close()


def seed_step(seed: int, step: int) -> None:
    """What a module draws in a step, such as dropout, is a function of (seed, step, rank): a resumed run draws the same."""
    torch.manual_seed(int(np.random.SeedSequence([seed, step, rank()]).generate_state(1, np.uint64)[0] >> 1))


def finish(engine: Engine, parts: JobParts, weights: dict[str, torch.Tensor], folder: Path, fingerprint: str) -> None:
    """Write the exported module's weights, then the marker."""
    exported = parts.export(engine.module)
    prefix = next(name for name, module in engine.module.named_modules() if module is exported)
    mine = {
        k.removeprefix(f"{prefix}."): v.detach().contiguous().cpu()
        for k, v in weights.items()
        if not prefix or k.startswith(f"{prefix}.")
    }
    if parts.complete:
        mine = parts.complete(mine)
    models.commit(str(folder), mine, parts.description, parts.files, fingerprint)
