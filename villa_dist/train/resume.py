"""Where a job starts: the newest whole checkpoint, from here or from its copy, for any number of ranks.

One rank looks, checks digests and, when another number of ranks wrote the checkpoint, converts it; all others hear of it.
"""

from __future__ import annotations

import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from shards.errors import VillaError
from villa_dist.config_train import OptimConfig
from villa_dist.distributed import barrier, rank, world_size
from villa_dist.observe import LOG
from villa_dist.train import checkpoint, remote
from villa_dist.train.agree import from_rank_0
from villa_dist.train.engine import Engine, frozen_state, to_universal

UNIVERSAL = "universal-"
HALF = ".tmp"
CONVERTED = "step"  # the one tag in a universal folder


@dataclass(frozen=True)
class Start:
    """What training starts from. tag: a checkpoint in `folder`, empty for none; universal: a folder made of it for this
    number of ranks."""

    folder: Path
    step: int = 0
    tag: str = ""
    universal: Path | None = None

    def load_frozen(self, module: nn.Module) -> None:
        """To be called before the engine is made: what DeepSpeed's universal checkpoints leave out."""
        if self.universal:
            module.load_state_dict(frozen_state(self.universal, CONVERTED), strict=False)

    def load(self, engine: Engine) -> None:
        """Restore weights and optimizer, on every rank; what was converted is removed."""
        if self.universal:
            engine.load_universal(self.universal, CONVERTED)
            barrier()
            if rank() == 0:
                shutil.rmtree(self.universal, ignore_errors=True)
        elif self.tag:
            engine.load(self.folder, self.tag)
        if self.tag and rank() == 0:
            LOG.info("%s resumes at step %d", self.folder.parent.name, self.step)


def find(folder: Path, config: OptimConfig, data: str, fingerprint: str) -> Start:
    """Called by every rank; all get the same. data, fingerprint: what a checkpoint must have been made of.

    Raises: VillaError when it was made of other data or another config.
    """
    return from_rank_0(lambda: _find(folder, config, data, fingerprint))


def _find(folder: Path, config: OptimConfig, data: str, fingerprint: str) -> Start:
    _remove_leftovers(folder)
    if config.checkpoint_copy:
        folder.mkdir(parents=True, exist_ok=True)
        remote.fetch_newest(remote.place_of(config.checkpoint_copy, folder.parent.name, fingerprint), folder)
    found = checkpoint.newest(folder)
    if found is None:
        return Start(folder)
    path, state = found
    if (state.manifest, state.fingerprint) != (data, fingerprint):
        raise VillaError(
            f"checkpoint {path} belongs to other data or another config (data {state.manifest}, config "
            f"{state.fingerprint}; now {data}, {fingerprint}); set `run` to another folder, or repeat with --force"
        )
    wrote = checkpoint.writers(path, state)
    if wrote in (0, world_size()):
        return Start(folder, state.step, path.name)
    return Start(folder, state.step, path.name, convert(path, wrote))


def convert(path: Path, wrote: int) -> Path:
    """A folder beside a checkpoint with what any number of ranks can load; it has its name when it is whole.

    Raises: StorageFullError; it takes about as much room as the checkpoint.
    """
    final = path.parent / f"{UNIVERSAL}{path.name}"
    temporary = path.parent / f"{final.name}{HALF}"
    began = time.monotonic()
    with checkpoint.save_errors(str(temporary)):
        to_universal(path, temporary / CONVERTED)
        os.replace(temporary, final)
    LOG.info(
        "checkpoint %s of %d workers is converted for %d (%.1f s)",
        *(path.name, wrote, world_size(), time.monotonic() - began),
    )
    return final


def _remove_leftovers(folder: Path) -> None:
    for path in [*folder.glob(f"{UNIVERSAL}*"), *folder.glob(f"{remote.FETCHED}*")]:
        shutil.rmtree(path, ignore_errors=True)
