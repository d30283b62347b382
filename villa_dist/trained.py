"""Finding the model that a user names: a run, a model's folder, a checkpoint of training, an exported folder, a hub id."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from shards.commit import StageFolder
from shards.errors import ShardError, VillaError
from villa_dist import models
from villa_dist.config import ModelConfig
from villa_dist.config_base import HUB_ID
from villa_dist.encoders.hf_checkpoint import FAMILIES, local_folder, own_names, read_json
from villa_dist.names import CHECKPOINTS, DONE, TITLES, TOKENIZER, VLMS, WEIGHTS
from villa_dist.train import checkpoint
from villa_dist.vlm.model import RegionVLM

ACCEPTED = (
    "give a run (its `villa` model), a model's folder (<run>/models/<job>), a checkpoint of training "
    "(<run>/models/<job>/checkpoints/step-…), a folder that `villa export` wrote, or a CLIP or SigLIP folder or hub id"
)
OBJECTIVE = "vlm."  # where a VLM stands in what is trained


@dataclass(frozen=True)
class Trained:
    """A VLM in eval mode on the CPU, and where it came from. run: None where it is no part of one; step: of a checkpoint."""

    vlm: RegionVLM
    place: str
    job: str | None = None
    run: str | None = None
    step: int | None = None

    @property
    def title(self) -> str:
        return TITLES.get(self.job or "", self.job or Path(self.place).name)


def find(place: str) -> Trained:
    """The VLM at a path or under a hub id. Raises: VillaError saying what is there instead, and what can be given."""
    folder = Path(place)
    if "://" in place or models.done(place):
        return _finished(place)
    if not folder.exists() and HUB_ID.fullmatch(place):
        folder = _from_hub(place)
    if not folder.is_dir():
        raise VillaError(f"{place} is {'a file' if folder.is_file() else 'not there'}; {ACCEPTED}")
    if (folder / "config.json").is_file():
        settings = read_json(folder / "config.json")
        if isinstance(settings.get("villa"), dict):
            return Trained(_exported(folder, settings["villa"]), place)
        if settings.get("model_type") in FAMILIES:
            return Trained(_published(folder), place)
    if folder.name.startswith(checkpoint.PREFIX) or (folder / checkpoint.MARKER).is_file():
        return _of_checkpoint(folder.resolve())
    if (folder / CHECKPOINTS).is_dir() or folder.name == CHECKPOINTS:
        raise VillaError(f"{place} is not finished: it has no {DONE}; {_newest(folder)}")
    if (folder / "models").is_dir():
        return _finished(f"{place.rstrip('/')}/models/villa")
    raise VillaError(f"{place} holds no model; {ACCEPTED}")


def _from_hub(name: str) -> Path:
    try:
        return local_folder(name, None)
    except VillaError as error:
        raise VillaError(f"{name} is not there, and the hub gives nothing under that name; {ACCEPTED}") from error


def _finished(place: str) -> Trained:
    if models.done(place) is None:
        raise ShardError(f"model {place} is not finished; run the stage that trains it (`villa run CONFIG`)")
    saved = models.load(place)
    if saved.description.get("kind") != "region_vlm":
        raise VillaError(f"{place} is the mapping model, which embeds no texts; {ACCEPTED}")
    folder = place.rstrip("/") if "://" in place else str(Path(place).resolve())
    parent, _, job = folder.rpartition("/")
    run = parent.removesuffix("/models") if parent.endswith("/models") else None
    return Trained(models.load_vlm(folder), folder, job, run)


def _exported(folder: Path, description: dict[str, Any]) -> RegionVLM:
    """A folder that `villa export` wrote. Its code is not run: the towers are this package's."""
    try:
        state: dict[str, Tensor] = load_file(folder / WEIGHTS)
    except Exception as error:
        raise VillaError(f"{folder / WEIGHTS} is no whole safetensors file ({error}); export again") from error
    if "logit_scale" in state:
        state = {**own_names(state), "log_scale": state["logit_scale"].reshape(1)}
    tokenizer = folder / TOKENIZER
    return _built(description, tokenizer.read_bytes() if tokenizer.is_file() else None, state, str(folder))


def _published(folder: Path) -> RegionVLM:
    config = ModelConfig.model_validate({"image": {"kind": "hf"}, "weights": str(folder)})
    return RegionVLM(config).eval().requires_grad_(False)


def _of_checkpoint(folder: Path) -> Trained:
    """A checkpoint of training, whole by its marker: its digests are checked before anything of it is unpickled."""
    from villa_dist.train.engine import consolidated

    trouble = checkpoint.problem(folder)
    if trouble:
        raise ShardError(f"checkpoint {folder} cannot be used: {trouble}; {_newest(folder.parent)}")
    job = folder.parent.parent
    if job.name not in VLMS:
        raise VillaError(f"{folder} is a checkpoint of {job.name!r}, which is no VLM ({', '.join(VLMS)})")
    weights = consolidated(folder.parent, folder.name)
    state = {n.removeprefix(OBJECTIVE): t for n, t in weights.items() if n.startswith(OBJECTIVE)}
    step, run = checkpoint.read_marker(folder)[0].step, str(job.parent.parent)
    if models.done(str(job)):  # finished by now: all that its towers are built from is in its folder
        saved = models.load(str(job))
        tokenizer = job / TOKENIZER
        content = tokenizer.read_bytes() if tokenizer.is_file() else None
        return Trained(_built(saved.description, content, state, str(folder)), str(folder), job.name, run, step)
    claimed = StageFolder(str(job.parent), job.name).claimed()
    if not claimed or "model" not in claimed:
        raise ShardError(f"{job}/config.json does not say which model is trained there; export the finished model")
    with models.of_this_version(str(job)):
        vlm = RegionVLM(ModelConfig.model_validate(claimed["model"]))
    _load(vlm, state, str(folder))
    return Trained(vlm.eval().requires_grad_(False), str(folder), job.name, run, step)


def _built(description: dict[str, Any], tokenizer: bytes | None, state: dict[str, Tensor], place: str) -> RegionVLM:
    with models.of_this_version(place):
        vlm = models.build_vlm(description, tokenizer)
    _load(vlm, state, place)
    return vlm.eval().requires_grad_(False)


def _load(vlm: RegionVLM, state: dict[str, Tensor], place: str) -> None:
    try:
        vlm.load_state_dict(state)
    except RuntimeError as error:
        said = " ".join(str(error).split())[:300]
        raise ShardError(f"the weights of {place} are not those of its description ({said})") from error


def _newest(folder: Path) -> str:
    """What is said of the checkpoints in a job's folder, or in its `checkpoints`."""
    inside = folder if folder.name == CHECKPOINTS else folder / CHECKPOINTS
    found = checkpoint.newest(inside)
    return f"its newest whole checkpoint is {found[0]}" if found else "it has no whole checkpoint yet"


def metrics(trained: Trained) -> dict[str, Any]:
    """What `evaluate` measured of this very model, by split; empty where it did not, or of other weights."""
    if trained.run is None or trained.job is None or trained.step is not None:
        return {}
    try:
        results = json.loads((Path(trained.run) / "results.json").read_text(encoding="utf-8"))
        if results["weights"].get(trained.job) != models.load(trained.place).sha256:
            return {}
        return {split: found[trained.job] for split, found in results["splits"].items() if trained.job in found}
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        return {}
