"""Options of a training job that do not go together, or have no effect on its model."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from villa_dist.config import ModelConfig
    from villa_dist.config_train import OptimConfig


def refuse_engine_options(name: str, job: OptimConfig, model: ModelConfig) -> None:
    """name: the job's section. Raises: ValueError naming option, value and remedy."""
    if job.offload == "optimizer" and job.zero_stage == 0:
        raise ValueError(f"{name}.offload=optimizer needs ZeRO; set {name}.zero_stage to 1, 2 or 3")
    if job.activation_checkpointing and model.image.kind == "conv":
        raise ValueError(
            f"{name}.activation_checkpointing: the conv tower normalises by the statistics of its batch, which a second "
            "pass would count twice; leave it out, or take model.image.kind: hf or clip_rn50"
        )
    if job.text_learning_rate != 1.0 and (name == "mapping.fit" or model.text.frozen):
        why = "model.text.frozen says that it does not learn" if name != "mapping.fit" else "a mapping trains none"
        raise ValueError(
            f"{name}.text_learning_rate={job.text_learning_rate} is of the text tower, and {why}; leave it out"
        )
