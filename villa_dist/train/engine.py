"""DeepSpeed, and nothing else in this file: the only place that imports it.

The optimizer is torch's AdamW (a DeepSpeed "AdamW" would compile FusedAdam for minutes); on a CPU the shared-memory
collectives, which want a compiler, are switched off before they are looked for.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import math
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import set_checkpoint_early_stop

from shards.errors import VillaError
from villa_dist.config_train import OptimConfig
from villa_dist.distributed import rank, world_size
from villa_dist.encoders.precision import best_device
from villa_dist.observe import LOG
from villa_dist.train.groups import parameter_groups
from villa_dist.train.precision import LossScale, in_format, training_format
from villa_dist.train.recompute import recompute_blocks

FROZEN = "frozen.pt"
LARGEST_BUCKET = 500_000_000  # numbers
DISABLED = "TORCHDYNAMO_DISABLE"


def init_process_group() -> None:
    """Join the process group of RANK, WORLD_SIZE and MASTER_ADDR through DeepSpeed (gloo on a CPU, nccl on a GPU)."""
    if torch.cuda.is_available():  # collectives before the engine is made must not meet on one device
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    _deepspeed().init_distributed(dist_backend="nccl" if torch.cuda.is_available() else "gloo", verbose=False)


def _deepspeed() -> Any:
    if not torch.cuda.is_available():
        os.environ["DS_ACCELERATOR"] = "cpu"
    os.environ.setdefault("DEEPSPEED_LOG_LEVEL", "warning")
    import deepspeed

    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    if not torch.cuda.is_available():
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed


@contextlib.contextmanager
def _no_compiler() -> Iterator[None]:
    """DeepSpeed decorates an optimizer that is not used here with torch.compile, which would import all of inductor: more
    than a CPU-second of every rank's start."""
    before = os.environ.get(DISABLED)
    os.environ[DISABLED] = "1"
    try:
        yield
    finally:
        del os.environ[DISABLED]
        if before is not None:
            os.environ[DISABLED] = before


def settings(config: OptimConfig, world: int, numbers: int) -> dict[str, Any]:
    """DeepSpeed's own configuration, for a model that trains so many numbers.

    Gradients are reduced in buckets as large as the model at most: DeepSpeed would hold 2 GB for them. On a CPU they are
    not copied together first. An offloaded optimizer stays torch's: DeepSpeed's would be compiled first.
    """
    zero: dict[str, Any] = {"stage": config.zero_stage, "contiguous_gradients": torch.cuda.is_available()}
    zero["reduce_bucket_size"] = min(numbers, LARGEST_BUCKET)
    if config.offload == "optimizer":
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
    return {
        "train_batch_size": config.batch_images,
        "train_micro_batch_size_per_gpu": config.batch_images // world,
        "gradient_clipping": config.clip if config.zero_stage else 0.0,  # at stage 0 `Engine` clips, and knows the norm
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 1 << 60,
        "wall_clock_breakdown": False,
    }


class Engine:
    """A module under ZeRO. `step(loss)` is backward, clip, optimizer step.

    Raises: VillaError when the device has no such number format, or nothing can be computed again.
    """

    def __init__(self, module: nn.Module, config: OptimConfig) -> None:
        self.dtype = training_format(config.precision, best_device())
        self.scale = LossScale() if self.dtype == torch.float16 else None
        self.overflowed = self.skipped = False
        self.clip = config.clip
        self.norm: torch.Tensor | None = None  # of stage 0
        if config.activation_checkpointing:
            recompute_blocks(module)
        module.forward = in_format(module.forward, self.dtype, best_device())
        groups = parameter_groups(module, config)
        self.factors = [g.factor for g in groups]
        optimizer = torch.optim.AdamW([g.as_torch() for g in groups], lr=config.learning_rate)
        numbers = sum(p.numel() for g in groups for p in g.params)
        with _no_compiler():
            self.raw, *_ = _deepspeed().initialize(
                model=module, optimizer=optimizer, config=settings(config, world_size(), numbers)
            )

    @property
    def module(self) -> nn.Module:
        module: nn.Module = self.raw.module
        return module

    @property
    def device(self) -> torch.device:
        return torch.device(self.raw.device)

    def __call__(self, batch: Any) -> torch.Tensor:
        with set_checkpoint_early_stop(False):  # ZeRO-3: a second pass too must call every module on every rank
            loss: torch.Tensor = self.raw(batch)
        return loss

    def step(self, loss: torch.Tensor, learning_rate: float) -> None:
        for group, factor in zip(self.raw.optimizer.param_groups, self.factors, strict=True):
            group["lr"] = learning_rate * factor
        with set_checkpoint_early_stop(False):
            if self.scale is None:
                self.raw.backward(loss)
                if self.raw.zero_optimization_stage() == 0:
                    self._clip()
                self.raw.step()
            else:
                self._scaled_step(loss, self.scale)

    def _scaled_step(self, loss: torch.Tensor, scale: LossScale) -> None:
        """With gradients scaled while they are fp16's. All ranks see an overflow alike: their gradients are reduced."""
        value = scale.value
        if self.raw.zero_optimization_stage() == 0:
            self.raw.backward(loss * value)
            grads = [p.grad for p in self.module.parameters() if p.grad is not None]
            torch._foreach_mul_(grads, 1 / value)
            self.overflowed = not self._clip()
            if self.overflowed:
                self.raw.zero_grad()
            else:
                self.raw.step()
        else:
            self.raw.optimizer.override_loss_scale(value)
            self.raw.backward(loss)
            self.raw.step()
            self.overflowed = bool(self.raw.optimizer.overflow)
        self.skipped = scale.stepped(overflow=self.overflowed)
        if self.skipped and rank() == 0:
            LOG.info("fp16: a gradient overflowed at the loss scale %g; the step is skipped, the scale halved", value)

    def _clip(self) -> bool:
        """Stage 0's gradients, whole on every rank after the backward pass. Returns whether they are finite."""
        self.norm = torch.nn.utils.clip_grad_norm_(self.module.parameters(), self.clip)
        return bool(self.norm.isfinite())

    @property
    def grad_norm(self) -> float | None:
        """The norm of the last step's gradients over all ranks, before they were clipped; None before the first step and
        after one that was skipped, infinite where an overflow is none of the loss scale's making."""
        if self.overflowed:
            return None if self.skipped else math.inf
        norm = self.norm if self.raw.zero_optimization_stage() == 0 else self.raw.get_global_grad_norm()
        return None if norm is None else float(norm)

    def save(self, folder: Path, tag: str, state: dict[str, Any]) -> None:
        """Write this rank's part of `<folder>/<tag>`; all ranks call it. `latest` is not written: it is derived."""
        scale = self.scale.state() if self.scale else None
        client = {"villa": state, "loss_scale": scale}
        self.raw.save_checkpoint(str(folder), tag=tag, client_state=client, save_latest=False)

    def load(self, folder: Path, tag: str) -> dict[str, Any]:
        """Restore weights, optimizer and our state. DeepSpeed unpickles here: the caller checks digests first."""
        _, client = self.raw.load_checkpoint(str(folder), tag=tag)
        return self._restored(client)

    def _restored(self, client: dict[str, Any]) -> dict[str, Any]:
        if self.scale and client.get("loss_scale"):
            self.scale.load(client["loss_scale"])
        state: dict[str, Any] = client["villa"]
        return state

    def load_universal(self, folder: Path, tag: str) -> dict[str, Any]:
        """The same from what `to_universal` has left in `<folder>/<tag>`, for any number of ranks.

        DeepSpeed restores weights and moments right, and three things wrong in silence: what is not trained (the caller
        loads `frozen_state` before the engine is made), and at stage 3 the hyperparameters of all groups, which become
        those of the first, and the step counts, which become one tensor that every part of the optimizer counts up.
        """
        groups = self.raw.optimizer.param_groups
        own = [{k: v for k, v in group.items() if k != "params"} for group in groups]
        self.raw._config.load_universal_checkpoint = True
        logging.getLogger("DeepSpeed").setLevel(logging.ERROR)  # it would warn of what is not used here
        try:
            _, client = self.raw.load_checkpoint(str(folder), tag=tag)
        except IndexError as error:
            raise VillaError(
                f"{folder} cannot be cut for {world_size()} workers: one of them would hold no part of the smallest "
                "group of weights; set `workers` lower"
            ) from error
        finally:
            self.raw._config.load_universal_checkpoint = False
            logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
        _restore_groups(groups, own)
        _separate_steps(self.raw.optimizer.optimizer)
        return self._restored(client)

    def full_state_dict(self) -> dict[str, torch.Tensor]:
        """The module's whole state on every rank, gathered where ZeRO-3 has cut it."""
        if self.raw.zero_optimization_stage() < 3:
            return self.module.state_dict()
        with _deepspeed().zero.GatheredParameters(list(self.module.parameters())):
            return {k: v.detach().clone() for k, v in self.module.state_dict().items()}

    def close(self) -> None:
        self.raw.destroy()


def _restore_groups(groups: list[dict[str, Any]], own: list[dict[str, Any]]) -> None:
    """The config's hyperparameters are those of the checkpoint too: its fingerprint says so."""
    for group, values in zip(groups, own, strict=True):
        group.update(values)


def _separate_steps(optimizer: torch.optim.Optimizer) -> None:
    for state in optimizer.state.values():
        if torch.is_tensor(state.get("step")):
            state["step"] = state["step"].clone()


def to_universal(source: Path, target: Path) -> None:
    """Write a ZeRO checkpoint as DeepSpeed's universal checkpoint, which any number of ranks can read, and beside it
    `frozen_state`. Called by one rank, in its own process: DeepSpeed's converter would start others."""
    _deepspeed()
    from deepspeed.checkpoint import ds_to_universal

    target.mkdir(parents=True)
    arguments = argparse.Namespace(
        input_folder=str(source),
        output_folder=str(target),
        num_extract_workers=1,
        num_merge_workers=1,
        keep_temp_folder=False,
        strict=True,
        inject_missing_state=True,
    )
    with contextlib.ExitStack() as quiet:
        nowhere = quiet.enter_context(open(os.devnull, "w", encoding="utf-8"))
        quiet.enter_context(contextlib.redirect_stdout(nowhere))
        quiet.enter_context(contextlib.redirect_stderr(nowhere))
        ds_to_universal.main(arguments)
    torch.save(_untrained(source), target / FROZEN)


def _untrained(source: Path) -> dict[str, torch.Tensor]:
    """Buffers and frozen parameters of a checkpoint, whole."""
    paths = sorted(source.glob("*model_states.pt"), key=lambda p: [int(n) for n in re.findall(r"\d+", p.name)])
    ranks = [torch.load(p, map_location="cpu", weights_only=False, mmap=True) for p in paths]
    first, module = ranks[0], ranks[0]["module"]
    trained = {name for group in first["param_shapes"] for name in group}
    if not paths[0].name.startswith("zero_pp_rank_"):  # below stage 3 the module is whole in one file
        return {name: value.clone() for name, value in module.items() if name not in trained}
    found = {name: module[name].clone() for name in first["buffer_names"] if name in module}
    for name, shape in first["frozen_param_shapes"].items():
        parts = torch.cat([r["frozen_param_fragments"][name].flatten() for r in ranks])
        found[name] = parts[: math.prod(shape)].reshape(shape).clone()
    return found


def frozen_state(folder: Path, tag: str) -> dict[str, torch.Tensor]:
    """What a universal checkpoint holds of the module besides its trained parameters; to be loaded before `Engine`."""
    state: dict[str, torch.Tensor] = torch.load(folder / tag / FROZEN, map_location="cpu", weights_only=True)
    return state


def consolidated(folder: Path, tag: str) -> dict[str, torch.Tensor]:
    """All weights and buffers of `<folder>/<tag>` in fp32 on the CPU, whatever the ZeRO stage and the number of ranks.

    It unpickles: the caller checks digests first.
    """
    if not any((folder / tag).glob("*optim_states.pt")):  # stage 0: every rank held everything
        content = torch.load(folder / tag / "mp_rank_00_model_states.pt", map_location="cpu", weights_only=False)
        return dict(content["module"])
    _deepspeed()
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

    return dict(get_fp32_state_dict_from_zero_checkpoint(str(folder), tag=tag))
