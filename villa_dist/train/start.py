"""What the one-to-one VLM starts from: random weights, a published checkpoint, or a VLM that another run has trained."""

from __future__ import annotations

from shards.errors import ShardError, VillaError
from villa_dist import models
from villa_dist.config import Config
from villa_dist.encoders.published import load_weights
from villa_dist.vlm.model import RegionVLM


def first_vlm(config: Config) -> RegionVLM:
    """The VLM before its first step. Raises: VillaError when `pretrain.start` is no finished VLM of this architecture."""
    place = config.pretrain.start
    if place is None:
        return RegionVLM(config.model)
    start_digest(config)
    earlier = models.load_vlm(place)
    theirs, mine = earlier.config.image.kind, config.model.image.kind
    if theirs != mine:
        raise VillaError(
            f"pretrain.start: the VLM in {place} has model.image.kind={theirs} and this config {mine}; give the `model` "
            "section it was trained with"
        )
    vlm = RegionVLM(config.model, earlier.published)
    load_weights(vlm, earlier.state_dict(), f"pretrain.start: {place}")
    return vlm


def start_digest(config: Config) -> str:
    """Of the weights that `pretrain.start` names. Raises: VillaError when no finished VLM is there."""
    place = config.pretrain.start
    assert place is not None
    if f"{place}/".startswith(f"{config.run}/"):
        raise VillaError(f"pretrain.start: {place} is of this very run; give what follows from it a `run` of its own")
    try:
        saved = models.load(place)
    except ShardError as error:
        raise VillaError(f"pretrain.start: {error}; or give another folder RUN/models/villa") from error
    if saved.description.get("kind") != "region_vlm":
        raise VillaError(f"pretrain.start: {place} is no VLM; give a folder RUN/models/villa")
    return saved.sha256
