"""A one-to-one VLM that starts from a VLM of another run."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from shards.errors import VillaError
from villa_dist import models
from villa_dist.config import Config
from villa_dist.config_base import ConfigError
from villa_dist.config_file import load
from villa_dist.train.jobs import TrainRequest, run_request
from villa_dist.train.start import first_vlm, start_digest
from villa_dist.vlm.model import RegionVLM

MODEL = {"image": {"width": 8}, "text": {"buckets": 64}, "dim": 12}


def config(folder: Path, start: Path | None, **model: object) -> Config:
    settings = {"steps": 0, "start": str(start)} if start else {"steps": 1}
    return Config.model_validate({"run": str(folder / "run"), "pretrain": settings, "model": {**MODEL, **model}})


@pytest.fixture(scope="module")
def earlier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("first") / "run/models/villa"
    torch.manual_seed(3)
    models.write(str(folder), RegionVLM(Config.model_validate({"model": MODEL}).model), "0")
    return folder


def test_its_weights_are_taken_and_learn(earlier: Path, tmp_path: Path) -> None:
    torch.manual_seed(4)
    vlm = first_vlm(config(tmp_path, earlier))
    theirs = models.load(str(earlier)).weights
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in vlm.state_dict().items())
    assert vlm.training and all(p.requires_grad for p in vlm.parameters())
    other = first_vlm(config(tmp_path, None)).state_dict()
    assert not all(torch.equal(tensor, theirs[name]) for name, tensor in other.items())


def test_with_no_steps_it_is_written_as_it_is(earlier: Path, tmp_path: Path) -> None:
    given = config(tmp_path, earlier)
    run_request(TrainRequest("one_to_one", given, "f"))
    written = models.load(f"{given.run}/models/one_to_one")
    assert written.sha256 == models.load(str(earlier)).sha256 == start_digest(given)


def test_what_is_no_vlm_of_this_architecture_is_refused(earlier: Path, tmp_path: Path) -> None:
    with pytest.raises(VillaError, match=r"pretrain.start: .*absent is not finished"):
        first_vlm(config(tmp_path, tmp_path / "absent"))
    with pytest.raises(VillaError, match=r"pretrain.start: .*tensor .* has shape"):
        first_vlm(config(tmp_path, earlier, image={"width": 16}))
    mapping = tmp_path / "mapping"
    models.commit(str(mapping), {"a": torch.zeros(1)}, {"kind": "mapping"}, {}, "0")
    with pytest.raises(VillaError, match="is no VLM"):
        first_vlm(config(tmp_path, mapping))
    cut = tmp_path / "cut"
    shutil.copytree(earlier, cut)
    (cut / "model.safetensors").write_bytes((cut / "model.safetensors").read_bytes()[:-1])
    with pytest.raises(VillaError, match="changed or cut"):
        first_vlm(config(tmp_path, cut))


def test_a_checkpoints_towers_are_no_conv_towers(earlier: Path, tmp_path: Path) -> None:
    published = {"image": {"kind": "hf"}, "weights": "org/name", "text": {}, "dim": None}
    with pytest.raises(VillaError, match=r"model\.image\.kind=conv and this config hf"):
        first_vlm(config(tmp_path, earlier, **published))


def test_a_run_does_not_build_on_itself(earlier: Path) -> None:
    given = Config.model_validate(
        {"run": str(earlier.parents[1]), "pretrain": {"steps": 0, "start": str(earlier)}, "model": MODEL}
    )
    with pytest.raises(VillaError, match="of this very run"):
        first_vlm(given)


def test_no_steps_need_something_to_take(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"pretrain\.start"):
        load(None, ["pretrain.steps=0"])
    monkeypatch.chdir(tmp_path)
    assert load(None, ["pretrain.start=first/models/villa"]).pretrain.start == f"{tmp_path}/first/models/villa"
