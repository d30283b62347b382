"""DeepSpeed, and nothing else in this file: the only place that imports it.

The optimizer is torch's AdamW (a DeepSpeed "AdamW" would compile FusedAdam for minutes); on a CPU the shared-memory
collectives, which want a compiler, are switched off before they are looked for.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import torch
from torch import nn

from villa_dist.config import OptimConfig
from villa_dist.distributed import world_size


def init_process_group() -> None:
    """Join the process group of RANK, WORLD_SIZE and MASTER_ADDR through DeepSpeed (gloo on a CPU, nccl on a GPU)."""
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


class Engine:
    """A module under ZeRO. `step(loss)` is backward, clip, optimizer step."""

    def __init__(self, module: nn.Module, config: OptimConfig) -> None:
        trainable = [p for p in module.parameters() if p.requires_grad]
        decayed = [p for p in trainable if p.ndim > 1]
        plain = [p for p in trainable if p.ndim <= 1]
        groups = [
            {"params": decayed, "weight_decay": config.weight_decay},
            {"params": plain, "weight_decay": 0.0},
        ]
        optimizer = torch.optim.AdamW(groups, lr=config.learning_rate)
        settings = {
            "train_batch_size": config.batch_images,
            "train_micro_batch_size_per_gpu": config.batch_images // world_size(),
            "gradient_clipping": config.clip,
            "zero_optimization": {"stage": config.zero_stage},
            "zero_allow_untested_optimizer": True,
            "steps_per_print": 1 << 60,
            "wall_clock_breakdown": False,
        }
        self.raw, *_ = _deepspeed().initialize(model=module, optimizer=optimizer, config=settings)

    @property
    def module(self) -> nn.Module:
        module: nn.Module = self.raw.module
        return module

    @property
    def device(self) -> torch.device:
        return torch.device(self.raw.device)

    def __call__(self, batch: Any) -> torch.Tensor:
        loss: torch.Tensor = self.raw(batch)
        return loss

    def step(self, loss: torch.Tensor, learning_rate: float) -> None:
        for group in self.raw.optimizer.param_groups:
            group["lr"] = learning_rate
        self.raw.backward(loss)
        self.raw.step()

    @property
    def grad_norm(self) -> float | None:
        """The norm of the last step's gradients over all ranks, before they were clipped; None before the first step."""
        norm = self.raw.get_global_grad_norm()
        return None if norm is None else float(norm)

    def save(self, folder: Path, tag: str, state: dict[str, Any]) -> None:
        """Write this rank's part of `<folder>/<tag>`; all ranks call it. `latest` is not written: it is derived."""
        self.raw.save_checkpoint(str(folder), tag=tag, client_state={"villa": state}, save_latest=False)

    def load(self, folder: Path, tag: str) -> dict[str, Any]:
        """Restore weights, optimizer and our state. DeepSpeed unpickles here: the caller checks digests first."""
        _, client = self.raw.load_checkpoint(str(folder), tag=tag)
        state: dict[str, Any] = client["villa"]
        return state

    def full_state_dict(self) -> dict[str, torch.Tensor]:
        """The module's whole state on every rank, gathered where ZeRO-3 has cut it."""
        if self.raw.zero_optimization_stage() < 3:
            return self.module.state_dict()
        with _deepspeed().zero.GatheredParameters(list(self.module.parameters())):
            return {k: v.detach().clone() for k, v in self.module.state_dict().items()}

    def close(self) -> None:
        self.raw.destroy()


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
