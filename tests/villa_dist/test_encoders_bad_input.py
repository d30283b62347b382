"""Mistakes with published checkpoints: each is an error that names the value, the place and the remedy."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

os.environ.setdefault("DS_ACCELERATOR", "cpu")

import pytest
import tiny_checkpoints
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from safetensors.torch import load_file, save_file

from shards.errors import ShardError, VillaError
from villa_dist import models
from villa_dist.config import Config, ModelConfig
from villa_dist.config_base import ConfigError
from villa_dist.config_file import load
from villa_dist.encoders import hf_library, published
from villa_dist.encoders.precision import number_format
from villa_dist.vlm.model import RegionVLM


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sound")
    tiny_checkpoints.write("clip", folder)
    return folder


@pytest.fixture
def folder(sound: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sound, tmp_path / "model"))


def config(weights: Path | str, **values: Any) -> ModelConfig:
    return ModelConfig.model_validate({"image": {"kind": "hf"}, "weights": str(weights), **values})


def refusal(weights: Path | str, **values: Any) -> str:
    with pytest.raises(VillaError) as error:
        RegionVLM(config(weights, **values))
    return str(error.value)


def edit(path: Path, **values: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    assert "none does not exist" in refusal(tmp_path / "none") and "hub id" in refusal(tmp_path / "none")
    (tmp_path / "file.bin").write_bytes(b"x")
    assert "is a file" in refusal(tmp_path / "file.bin")
    (tmp_path / "empty").mkdir()
    assert "has no config.json" in refusal(tmp_path / "empty")


def test_another_architecture_is_named(folder: Path) -> None:
    edit(folder / "config.json", model_type="bert", architectures=["BertModel"])
    assert "BertModel" in refusal(folder) and "'bert'" in refusal(folder) and "siglip2" in refusal(folder)
    edit(folder / "config.json", model_type=["clip"])
    assert "['clip']" in refusal(folder)
    edit(folder / "config.json", model_type="clip", vision_config={"hidden_size": "wide"})
    assert "config.json is no clip config" in refusal(folder)
    edit(folder / "config.json", vision_config={"num_attention_heads": 5})
    assert "attention heads (5)" in refusal(folder)
    edit(folder / "config.json", vision_config={"num_hidden_layers": 0})
    assert "vision tower of 0 layers" in refusal(folder)
    (folder / "config.json").write_text("{")
    assert "config.json is damaged" in refusal(folder)


def test_code_in_a_checkpoint_is_never_run(folder: Path, tmp_path: Path) -> None:
    canary = tmp_path / "ran"
    (folder / "modeling.py").write_text(f"open({str(canary)!r}, 'w')\n")
    code = {"AutoConfig": "modeling.C", "AutoModel": "modeling.M", "AutoTokenizer": ["modeling.T", "modeling.T"]}
    edit(folder / "config.json", auto_map=code)
    edit(folder / "tokenizer_config.json", auto_map=code)
    RegionVLM(config(folder))  # its own family: the library's classes
    edit(folder / "config.json", model_type="mine")
    assert "never done" in refusal(folder)
    assert not canary.exists()


class Canary:
    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.place),)


def test_a_pickle_that_would_run_code_is_refused(folder: Path, tmp_path: Path) -> None:
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(state, folder / "pytorch_model.bin")
    RegionVLM(config(folder))  # tensors alone are read
    canary = tmp_path / "ran"
    torch.save({**state, "x": Canary(canary)}, folder / "pytorch_model.bin")
    assert "nothing ran" in refusal(folder) and "mkdir" in refusal(folder)
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Canary(canary), 2))
    assert "nothing ran" in refusal(folder)
    assert not canary.exists()


def test_wrong_weights_are_named(folder: Path) -> None:
    state = load_file(folder / "model.safetensors")

    def saved(changed: dict[str, torch.Tensor]) -> str:
        save_file(changed, folder / "model.safetensors")
        return refusal(folder)

    name = "vision_model.encoder.layers.1.mlp.fc1.weight"
    assert "image.model.encoder.layers.1.mlp.fc1.weight has shape [3]" in saved({**state, name: torch.ones(3)})
    assert "lacks image.model.encoder.layers.1.mlp.fc1.weight" in saved({k: v for k, v in state.items() if k != name})
    assert "unknown tensors lora.a" in saved({**state, "lora.a": torch.ones(2)})
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:-100])
    assert "no whole safetensors" in refusal(folder)
    (folder / "model.safetensors").unlink()
    assert "has no weights" in refusal(folder)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "../../one.safetensors"}}))
    assert "names one.safetensors, which is not there" in refusal(folder)


def test_a_sharded_checkpoint_is_the_same(sound: Path, folder: Path) -> None:
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(state)
    for n in range(2):
        save_file({k: state[k] for k in names[n::2]}, folder / f"part-{n}.safetensors")
    where = {k: f"part-{i % 2}.safetensors" for i, k in enumerate(names)}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    one, two = (RegionVLM(config(place)).state_dict() for place in (sound, folder))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_missing_or_foreign_tokenizers_are_named(folder: Path) -> None:
    text = (folder / "tokenizer.json").read_text()
    values = json.loads(text)
    values["model"]["vocab"] |= {f"word{n}": 56 + n for n in range(9)}
    (folder / "tokenizer.json").write_text(json.dumps(values))
    assert "text tower knows 56" in refusal(folder)
    (folder / "tokenizer.json").write_text("{")
    assert "tokenizer cannot be read" in refusal(folder)
    (folder / "tokenizer.json").unlink()
    assert "has no tokenizer files" in refusal(folder) and "tokenizer.json" in refusal(folder)
    (folder / "spiece.model").write_bytes(b"x")
    edit(folder / "tokenizer_config.json", tokenizer_class="SiglipTokenizer")
    assert "sentencepiece" in refusal(folder)


def test_siglips_sentencepiece_class_is_read_through_its_json(tmp_path: Path) -> None:
    tiny_checkpoints.write("siglip", tmp_path)
    plain = RegionVLM(config(tmp_path))
    edit(tmp_path / "tokenizer_config.json", tokenizer_class="SiglipTokenizer")
    cleaned = RegionVLM(config(tmp_path))
    wanted = plain.tokenize(["red dog a cat"])
    assert torch.equal(cleaned.tokenize(["Red,  dog: a CAT!"]).words, wanted.words)
    assert not torch.equal(plain.tokenize(["Red,  dog: a CAT!"]).words, wanted.words)


def test_a_hub_id_without_a_network_is_a_clear_error_in_bounded_time(tmp_path: Path) -> None:
    """In a process of its own, against a server that takes connections and never answers."""
    code = (
        "import socket, os\n"
        "s = socket.socket(); s.bind(('127.0.0.1', 0)); s.listen(50)\n"
        "os.environ['HF_ENDPOINT'] = f'http://127.0.0.1:{s.getsockname()[1]}'\n"
        "from villa_dist.encoders import hf_checkpoint\n"
        "hf_checkpoint.HUB_SECONDS = 1.0\n"
        "try:\n    hf_checkpoint.local_folder('some/model', 'v2')\n"
        "except Exception as error:\n    print(type(error).__name__, error)\n"
    )
    env = {**os.environ, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "0"}
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, env=env)
    assert ended.stdout.startswith("VillaError model.weights: some/model is no folder here"), ended.stderr[-1000:]
    assert "revision v2" in ended.stdout and "hf download some/model --local-dir" in ended.stdout


def test_a_siglip_without_its_pooling_is_named(tmp_path: Path) -> None:
    tiny_checkpoints.write("siglip", tmp_path)
    values = json.loads((tmp_path / "config.json").read_text())["vision_config"]
    edit(tmp_path / "config.json", vision_config={**values, "vision_use_head": False})
    assert "without its pooling head" in refusal(tmp_path)


def test_dimensions_that_differ_are_named(sound: Path) -> None:
    assert "model.dim=99" in refusal(sound, dim=99) and "24 dimensions" in refusal(sound, dim=99)
    assert RegionVLM(config(sound, dim=24)).dim == 24


def test_attention_that_is_not_there_is_named(sound: Path) -> None:
    assert "model.attention=flash_attention_2" in refusal(sound, attention="flash_attention_2")
    assert "xformers is not installed" in refusal(sound, attention="xformers")


def test_xformers_gets_the_library_layout(sound: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in with xformers' contract (N L heads d, additive bias) gives what SDPA gives."""
    operators: Any = types.ModuleType("xformers.ops")

    class LowerTriangularMask:
        pass

    def attention(q: Any, k: Any, v: Any, attn_bias: Any = None, p: float = 0.0, scale: Any = None) -> Any:
        causal = isinstance(attn_bias, LowerTriangularMask)
        mask = None if causal else attn_bias
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))
        found = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal, scale=scale)
        return found.transpose(1, 2)

    operators.LowerTriangularMask, operators.memory_efficient_attention = LowerTriangularMask, attention
    monkeypatch.setitem(sys.modules, "xformers", types.ModuleType("xformers"))
    monkeypatch.setitem(sys.modules, "xformers.ops", operators)
    one, two = RegionVLM(config(sound)).eval(), RegionVLM(config(sound, attention="xformers")).eval()
    pixels = torch.randint(0, 256, (2, 3, 60, 90), dtype=torch.uint8)
    sizes = torch.tensor([[60, 40], [30, 90]])
    boxes, image_of = torch.tensor([[0.0, 0.0, 30.0, 50.0], [5.0, 5.0, 80.0, 28.0]]), torch.tensor([0, 1])
    with torch.no_grad():
        found = two.embed_regions(pixels, boxes, image_of, sizes)
        assert (found - one.embed_regions(pixels, boxes, image_of, sizes)).abs().max() < 1e-5
        texts = one.tokenize(["a cat", "b"])
        assert (two.embed_texts(texts) - one.embed_texts(texts)).abs().max() < 1e-5

    def not_here(*_: Any, **__: Any) -> Any:
        raise NotImplementedError("No operator found")

    operators.memory_efficient_attention = not_here
    with pytest.raises(VillaError, match="does not run on this cpu"):
        hf_library.register_xformers()


def test_number_formats() -> None:
    cpu = torch.device("cpu")
    assert number_format("auto", cpu) == torch.float32 and number_format("bf16", cpu) == torch.bfloat16
    with pytest.raises(VillaError, match="fp16"):
        number_format("fp16", cpu)


# ---- the config


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"image": {"kind": "hf"}}, "needs weights"),
        ({"image": {"kind": "clip_rn50"}, "weights": "m.pt"}, "bpe_simple_vocab"),
        ({"weights": "m"}, "image.kind=conv starts from none"),
        ({"image": {"kind": "hf"}, "text": {"kind": "words"}, "weights": "m"}, "goes with text.kind=hf"),
        ({"image": {"kind": "clip_rn50", "size": 100}, "weights": "m", "text": {"vocabulary": "v"}}, "multiple of 32"),
    ],
)
def test_parts_that_do_not_belong_together(values: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said.replace(".", r"\.")):
        ModelConfig.model_validate(values)


def test_no_pretraining_needs_a_checkpoint() -> None:
    with pytest.raises(ConfigError, match=r"name a checkpoint in model\.weights"):
        load(None, ["pretrain.steps=0"])
    with pytest.raises(ConfigError, match=r"train\.steps"):
        load(None, ["train.steps=0"])
    made = load(None, ["pretrain.steps=0", "model.image.kind=hf", "model.weights=org/name"])
    assert made.pretrain.steps_over(100) == 0 and made.model.weights == "org/name" and made.model.text.kind == "hf"
    assert Config.model_validate(made.model_dump()) == made


def test_local_weights_become_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "org" / "name").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    for given, wanted in (("org/name", str(tmp_path / "org/name")), ("./m", str(tmp_path / "m")), ("a/b", "a/b")):
        assert load(None, ["model.image.kind=hf", f"model.weights={given}"]).model.weights == wanted


def test_ranks_cannot_wait_for_each_other() -> None:
    sets = ["model.image.kind=clip_rn50", "model.weights=m.pt", "model.text.vocabulary=v", "train.zero_stage=3"]
    with pytest.raises(ConfigError, match="shape=square"):
        load(None, sets)
    load(None, [*sets, "model.image.shape=square"])
    load(None, [*sets, "train.workers=1"])


def test_a_changed_checkpoint_is_another_digest(folder: Path) -> None:
    before = published.digest(config(folder))
    assert published.digest(config(folder)) == before
    edit(folder / "preprocessor_config.json", image_mean=[0.1, 0.2, 0.3])
    changed = published.digest(config(folder))
    assert changed != before
    (folder / "README.md").write_text("said nothing")
    assert published.digest(config(folder)) == changed


def test_a_model_of_another_version_is_named(sound: Path, tmp_path: Path) -> None:
    models.write(str(tmp_path), RegionVLM(config(sound)), "f")
    values = json.loads((tmp_path / "model.json").read_text())
    values["model"]["image"]["name"] = "conv"
    (tmp_path / "model.json").write_text(json.dumps(values))
    with pytest.raises(ShardError, match=r"model\.json was changed after training"):
        models.load_vlm(str(tmp_path))
    marker = json.loads((tmp_path / "done.json").read_text())
    del marker["files"]["model.json"]  # as earlier versions left it
    (tmp_path / "done.json").write_text(json.dumps(marker))
    with pytest.raises(ShardError, match="this version"):
        models.load_vlm(str(tmp_path))
    for text in ("[]", "null", "{"):
        (tmp_path / "model.json").write_text(text)
        with pytest.raises(ShardError, match=r"model\.json is damaged"):
            models.load_vlm(str(tmp_path))
