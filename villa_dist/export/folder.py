"""Writing an exported folder: all of its files, and then the folder at once."""

from __future__ import annotations

import json
import math
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from shards.errors import VillaError, storage_errors
from shards.store import fsync_folder
from villa_dist import __version__, models
from villa_dist.encoders.hf_checkpoint import OWN
from villa_dist.encoders.published import Published
from villa_dist.export import card
from villa_dist.export.bundle import bundle
from villa_dist.names import TOKENIZER, WEIGHTS
from villa_dist.trained import Trained, find
from villa_dist.vlm.model import MAX_SCALE, RegionVLM

CODE = "modeling_villa.py"
LIBRARY_MODELS = {"clip": "CLIPModel", "siglip": "SiglipModel", "siglip2": "Siglip2Model"}
RESAMPLE = {"bilinear": 2, "bicubic": 3}


def export(place: str, out: str, *, force: bool = False) -> dict[str, Any]:
    """Write the model at `place` (`trained.find`) to the folder `out`; returns what was written, for a result line.

    force: replace an `out` that an earlier export wrote. Raises: VillaError when `out` exists, or there is no model.
    """
    if "://" in out:
        raise VillaError(f"{out}: an export is written to a local folder; copy it from there")
    target = Path(out)
    check_target(target, force=force)
    trained = find(place)
    content = files(trained)
    write(content, target)
    return {
        "checkpoint": trained.place,
        "out": str(target),
        "job": trained.job,
        "step": trained.step,
        "kind": trained.vlm.config.image.kind,
        "loads_with": loads_with(trained.vlm),
        "dim": trained.vlm.dim,
        "parameters": sum(p.numel() for p in trained.vlm.parameters()),
        "files": {name: len(data) for name, data in sorted(content.items())},
    }


def check_target(target: Path, *, force: bool) -> None:
    """Raises: VillaError when something is there that must not be replaced."""
    if not target.exists():
        return
    if not target.is_dir():
        raise VillaError(f"{target} is a file; name a folder that is not there yet")
    if not any(target.iterdir()):
        return
    if not force:
        raise VillaError(
            f"{target} exists; name another folder, or repeat with --force to replace what was exported there"
        )
    if not (target / CODE).is_file():
        raise VillaError(f"{target} exists and is no exported folder (it has no {CODE}); --force does not replace it")


def write(content: Mapping[str, bytes], target: Path) -> None:
    """All files into a folder beside `target`, which then takes its place: it is whole or not there."""
    target = target.absolute()
    with storage_errors(str(target)):
        target.parent.mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
        try:
            for name, data in content.items():
                with open(made / name, "wb") as f:
                    f.write(data)
                    f.flush()
                    os.fsync(f.fileno())
            made.chmod(0o755)
            old = made.with_name(f"{made.name}.old")
            if target.exists():
                os.replace(target, old)
            os.replace(made, target)
            fsync_folder(target.parent)
            shutil.rmtree(old, ignore_errors=True)
        finally:
            shutil.rmtree(made, ignore_errors=True)


def files(trained: Trained) -> dict[str, bytes]:
    """Every file of the folder by name."""
    vlm = trained.vlm
    kind, published = vlm.config.image.kind, vlm.published
    library = LIBRARY_MODELS.get(published.family) if published else None
    replace = {"CLIPModel": library} if library else {}
    found = {
        CODE: bundle(f"villa_dist.export.code.{kind}", replace).encode(),
        "config.json": _json(config(vlm)),
        WEIGHTS: save(weights(vlm), metadata={"format": "pt"}),
        "README.md": card.text(trained, loads_with(vlm)).encode(),
    }
    if published and published.tokenizer:
        found[TOKENIZER] = published.tokenizer.content.encode()
        if library:
            found |= library_tokenizer(published)
            found["preprocessor_config.json"] = _json(preprocessor(published))
    return found


def loads_with(vlm: RegionVLM) -> list[str]:
    """The classes of transformers that load the folder."""
    library = LIBRARY_MODELS.get(vlm.published.family) if vlm.published else None
    return [*([library] if library else []), "AutoModel (trust_remote_code=True)"]


def config(vlm: RegionVLM) -> dict[str, Any]:
    """config.json. Its part `villa` is the model's description, without the paths of the machine that trained it."""
    description = models.vlm_description(vlm)
    model = dict(description["model"])
    for section, name in ((model, "weights"), (model["text"], "vocabulary")):
        section[name] = os.path.basename(section[name]) if os.path.isabs(section[name] or "") else section[name]
    villa = {**description, "model": model, "version": __version__}
    shared = {"dtype": "float32", "villa": villa}
    if vlm.published and vlm.published.family in LIBRARY_MODELS:
        library = {
            k: v for k, v in vlm.published.architecture.items() if k not in ("_name_or_path", "transformers_version")
        }
        architectures = [LIBRARY_MODELS[vlm.published.family]]
        return {
            **library,
            **shared,
            "architectures": architectures,
            "auto_map": {"AutoModel": "modeling_villa.VillaModel"},
        }
    auto = {"AutoConfig": "modeling_villa.VillaConfig", "AutoModel": "modeling_villa.VillaModel"}
    return {"model_type": "villa", "architectures": ["VillaModel"], "auto_map": auto, "dim": vlm.dim, **shared}


def weights(vlm: RegionVLM) -> dict[str, Tensor]:
    """Tensors by the names that the exported classes give them: the library's own where they are its."""
    state = {n: t.detach().cpu().contiguous() for n, t in vlm.state_dict().items()}
    if vlm.published is None or vlm.published.family not in LIBRARY_MODELS:
        return state
    found: dict[str, Tensor] = {}
    for name, tensor in state.items():
        theirs, ours = next(((k, v) for k, v in OWN.items() if name.startswith(v)), ("", ""))
        found[theirs + name.removeprefix(ours)] = tensor
    scale = found.pop("log_scale").clamp(max=math.log(MAX_SCALE))
    if vlm.published.family == "clip":
        return {**found, "logit_scale": scale.reshape(())}
    return {**found, "logit_scale": scale, "logit_bias": torch.zeros(1)}


def library_tokenizer(published: Published) -> dict[str, bytes]:
    """tokenizer.json and tokenizer_config.json for AutoTokenizer, which knows nothing of a cleaning before the tokenizer."""
    from tokenizers import Regex, Tokenizer, normalizers
    from transformers import PreTrainedTokenizerFast

    settings = published.tokenizer
    assert settings is not None
    tokenizer = Tokenizer.from_str(settings.content)
    if settings.clean == "canonical":
        steps = [normalizers.Lowercase(), normalizers.Replace(Regex(r"[!-/:-@\[-`{-~]"), "")]
        steps += [normalizers.Replace(Regex(r"\s+"), " "), normalizers.Strip()]
        tokenizer.normalizer = normalizers.Sequence([*steps, *([tokenizer.normalizer] if tokenizer.normalizer else [])])
    tokenizer.no_padding()
    tokenizer.no_truncation()
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=settings.length,
        padding_side=settings.side,
        pad_token=tokenizer.id_to_token(settings.pad),
        clean_up_tokenization_spaces=False,
    )
    with tempfile.TemporaryDirectory() as folder:
        wrapped.save_pretrained(folder)
        return {n: (Path(folder) / n).read_bytes() for n in (TOKENIZER, "tokenizer_config.json")}


def preprocessor(published: Published) -> dict[str, Any]:
    """preprocessor_config.json: how the library prepares a whole image, as training did."""
    given = published.preprocess
    square = {"height": given.side, "width": given.side}
    shared = {
        "do_convert_rgb": True,
        "do_resize": True,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(given.mean),
        "image_std": list(given.std),
        "resample": RESAMPLE[given.filter],
    }
    if published.family == "siglip2":
        patch = published.architecture["vision_config"]["patch_size"]
        of_patches = {"patch_size": patch, "max_num_patches": given.max_patches}
        return {"image_processor_type": "Siglip2ImageProcessor", **shared, **of_patches}
    if published.family == "siglip":
        return {"image_processor_type": "SiglipImageProcessor", **shared, "size": square}
    if given.short is None:
        return {"image_processor_type": "CLIPImageProcessor", **shared, "size": square, "do_center_crop": False}
    crop = {"size": {"shortest_edge": given.short}, "do_center_crop": True, "crop_size": square}
    return {"image_processor_type": "CLIPImageProcessor", **shared, **crop}


def _json(values: Mapping[str, Any]) -> bytes:
    return (json.dumps(values, indent=2, sort_keys=True) + "\n").encode()
