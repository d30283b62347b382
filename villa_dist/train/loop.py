"""One training job, from its spec to its committed weights: run_job -> train_steps -> engine.step.

<run>/models/<job>/config.json            what the job is bound to
<run>/models/<job>/checkpoints/step-…/    DeepSpeed checkpoints with our marker
<run>/models/<job>/metrics.jsonl          one line a logged step
<run>/models/<job>/tensorboard/           the same for TensorBoard
<run>/models/<job>/model.safetensors      the weights, once done
<run>/models/<job>/done.json              the commit marker, last
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from shards.errors import VillaError
from villa_dist import models
from villa_dist.config import OptimConfig
from villa_dist.data.loader import Batches, Recipe
from villa_dist.data.samples import Samples
from villa_dist.distributed import barrier, rank, world_size
from villa_dist.names import CHECKPOINTS
from villa_dist.observe import LOG
from villa_dist.train import checkpoint
from villa_dist.train.checkpoint import TrainState
from villa_dist.train.engine import Engine, init_process_group
from villa_dist.train.journal import messages_to
from villa_dist.train.metrics import Meter
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

    Raises: VillaError when the loss is not finite, or a checkpoint belongs to other data.
    """
    torch.set_num_threads(config.threads)
    init_process_group()
    torch.manual_seed(seed)
    with messages_to(Path(folder)) if rank() == 0 else nullcontext():
        parts = build()
        engine = Engine(parts.objective, config)
        try:
            train_steps(engine, parts, config, Path(folder), seed, fingerprint)
        finally:
            engine.close()


def train_steps(
    engine: Engine, parts: JobParts, config: OptimConfig, folder: Path, seed: int, fingerprint: str
) -> None:
    checkpoints = folder / CHECKPOINTS
    data, steps = parts.samples.manifest.digest, config.steps_over(parts.samples.manifest.total)
    start = resume(engine, checkpoints, data, fingerprint)
    vlm, stage = parts.export(engine.module), parts.samples.stage
    meter = Meter(engine, vlm, config, folder, stage=stage, start=start, steps=steps)
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
    engine.module.train()
    for step, batch in batches:
        rate = warmup_cosine(step, steps, config.warmup_steps, config.learning_rate)
        with meter.counting(step):
            loss = engine(batch.to(engine.device))
        if not bool(torch.isfinite(loss)):
            raise VillaError(
                f"the loss of {folder.name} is {loss.item()} at step {step} (seed {seed}, global batch "
                f"{config.batch_images}); lower its learning_rate ({config.learning_rate}) and run again with --force"
            )
        with meter.counting(step):
            engine.step(loss, rate)
        if parts.validate and config.validate_steps and (step + 1) % config.validate_steps == 0:
            with meter.aside():
                meter.validated(parts.validate(vlm))
        meter.after(step, loss, rate, batch, batches.waited)
        if (step + 1) % config.checkpoint_steps == 0 or step + 1 == steps:
            state = TrainState(step + 1, seed, config.batch_images, data, fingerprint)
            save(engine, checkpoints, state, config.keep_checkpoints)
    meter.close()
    weights = engine.full_state_dict()
    if rank() == 0:
        finish(engine, parts, weights, folder, fingerprint)
    barrier()


def resume(engine: Engine, checkpoints: Path, data: str, fingerprint: str) -> int:
    """The step to start from. Every rank scans by itself; the choice is the same, since saving ends with a barrier."""
    found = checkpoint.newest(checkpoints)
    barrier()  # nobody may prune or save before all have looked
    if found is None:
        return 0
    path, state = found
    if (state.manifest, state.fingerprint) != (data, fingerprint):
        raise VillaError(
            f"checkpoint {path} belongs to other data or another config (data {state.manifest}, config "
            f"{state.fingerprint}; now {data}, {fingerprint}); set `run` to another folder, or repeat with --force"
        )
    wrote = checkpoint.writers(path)
    if wrote not in (0, world_size()):
        raise VillaError(
            f"checkpoint {path} was written by {wrote} workers, and this job has {world_size()}; set its `workers` to "
            f"{wrote} to continue it, or remove {checkpoints} to start it again"
        )
    engine.load(checkpoints, path.name)
    if rank() == 0:
        LOG.info("%s resumes at step %d", checkpoints.parent.name, state.step)
    return state.step


def save(engine: Engine, checkpoints: Path, state: TrainState, keep: int) -> None:
    tag = checkpoint.tag(state.step)
    with checkpoint.save_errors(str(checkpoints / tag)):
        engine.save(checkpoints, tag, {"step": state.step})
    barrier()
    if rank() == 0:
        checkpoint.seal(checkpoints / tag, state)
        checkpoint.prune(checkpoints, keep)
    barrier()


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
