"""The config: one file and `--set`, and errors that name key, file and the nearest name."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from villa_dist.config import Config
from villa_dist.config_base import ConfigError
from villa_dist.config_file import absolute, dump, key_names, load


@pytest.fixture
def write(tmp_path: Path):
    def make(text: str) -> str:
        path = tmp_path / "mine.yaml"
        path.write_text(text, encoding="utf-8")
        return str(path)

    return make


def failure(path: str | None, *overrides: str) -> str:
    with pytest.raises(ConfigError) as error:
        load(path, list(overrides))
    return str(error.value)


def keys_of(values: dict[str, Any], prefix: str = "") -> list[str]:
    names = []
    for key, value in values.items():
        names.append(prefix + key)
        if isinstance(value, dict):
            names += keys_of(value, f"{prefix}{key}.")
    return names


def test_every_key_is_named() -> None:
    assert sorted(key_names()) == sorted(keys_of(Config().model_dump()))
    assert {"run", "train.steps", "mapping.fit.steps", "docmnist.budget.train", "model.image.width"} <= set(key_names())


def test_nothing_given_is_the_defaults(write) -> None:
    assert load(None) == absolute(Config())
    for text in ("", "# only a comment\n", "---\n", "{}"):
        assert load(write(text)) == absolute(Config())


def test_a_file_overrides_defaults_and_set_overrides_the_file(write) -> None:
    path = write("run: runs/mine\ntrain: {steps: 7, batch_images: 8}\n")
    config = load(path, ["train.steps=9", "mapping.fit.clip=0.5"])
    assert (config.run, config.train.steps, config.train.batch_images, config.mapping.fit.clip) == (
        os.path.abspath("runs/mine"),
        9,
        8,
        0.5,
    )


def test_epochs_replace_steps_and_survive_saving(write) -> None:
    config = load(write("train: {epochs: 2.5, batch_images: 64}\n"))
    assert config.train.steps is None and config.pretrain.steps == 400
    assert config.train.steps_over(1000) == 40  # ceil(2.5 * 1000 / 64)
    assert config.train.steps_over(1) == 1 and config.pretrain.steps_over(1000) == 400
    assert load(write(dump(config))) == config


@pytest.mark.parametrize("both", ["{epochs: 2.0, steps: 5}", "{steps: null}"])
def test_a_job_has_steps_or_epochs(write, both: str) -> None:
    assert "steps or epochs" in failure(write(f"train: {both}\n"))


@pytest.mark.parametrize(
    ("override", "key", "expected"),
    [
        ("train.steps=800", "train.steps", 800),
        ("runner=local", "runner", "local"),
        ("run=s3://bucket/a=b", "run", "s3://bucket/a=b"),
        ("data.train=", "data.train", ""),
        ("data.train=null", "data.train", None),
        ("regions.grid=[4, 2]", "regions.grid", [4, 2]),
        ("evaluate={splits: [validation]}", "evaluate.splits", ["validation"]),
        ("evaluate.ground_truth=false", "evaluate.ground_truth", False),
        ("pairs.epsilon=1", "pairs.epsilon", 1.0),
        ("train.learning_rate=0.0005", "train.learning_rate", 5e-4),
        ("train.learning_rate=5e-4", "train.learning_rate", 5e-4),
        ("train.learning_rate=1e-3", "train.learning_rate", 1e-3),
        (" train.steps =5", "train.steps", 5),
        ("docmnist.images.train=100", "docmnist.images.train", 100),
    ],
)
def test_set_takes_yaml_values(override: str, key: str, expected: object) -> None:
    value: Any = load(None, [override])
    for part in key.split("."):
        value = getattr(value, part)
    assert value == expected
    assert type(value) is type(expected)


def test_scientific_notation_is_a_number_in_a_file(write) -> None:
    assert load(write("train:\n  learning_rate: 1e-3\n")).train.learning_rate == 1e-3


def test_later_overrides_win() -> None:
    assert load(None, ["seed=1", "seed=2"]).seed == 2


@pytest.mark.parametrize("override", ["train.steps", "=5", " =5", ""])
def test_set_without_key_or_value_shows_the_form(override: str) -> None:
    assert "KEY=VALUE" in failure(None, override)


@pytest.mark.parametrize("override", ["run.name=x", "seed.a.b=1", "train.steps.more=1"])
def test_set_below_a_value_is_refused(write, override: str) -> None:
    text = failure(write("run: runs/mine\nseed: 3\ntrain: {steps: 5}\n"), override)
    assert override in text
    assert "not a section" in text


@pytest.mark.parametrize(
    "override",
    [
        "run=2024-13-45",
        "run=2024-01-02",
        "run=12:99",
        "run=[",
        "run={a",
        "run=*x",
        "run=!!python/name:os.system",
        "seed=@",
    ],
)
def test_set_never_ends_in_another_error(override: str) -> None:
    try:
        load(None, [override])
    except ConfigError as error:
        assert override in str(error)


@given(text=st.text(max_size=30))
def test_no_text_in_a_file_or_in_set_ends_in_another_error(text: str, tmp_path: Path) -> None:
    path = tmp_path / "any.yaml"
    path.write_bytes(text.encode("utf-8", "replace"))
    for given_path, overrides in ((str(path), []), (None, [f"run={text}"]), (None, [text])):
        try:
            load(given_path, overrides)
        except ConfigError:
            pass


@pytest.mark.parametrize(
    ("text", "key", "nearest"),
    [
        ("trian: {}", "trian", "train"),
        ("train: {stepz: 5}", "train.stepz", "train.steps"),
        ("mapping: {fit: {learning_rte: 1.0}}", "mapping.fit.learning_rte", "mapping.fit.learning_rate"),
        ("epsilon: 0.2", "epsilon", "pairs.epsilon"),
        ("docmnist: {budgt: {train: 1}}", "docmnist.budgt", "docmnist.budget"),
    ],
)
def test_a_misspelt_key_is_named_with_file_and_nearest_name(write, text: str, key: str, nearest: str) -> None:
    path = write(text)
    found = failure(path)
    assert path in found
    assert f"unknown key '{key}'" in found
    assert f"did you mean '{nearest}'" in found


def test_a_misspelt_key_in_set_names_the_override() -> None:
    found = failure(None, "train.stepz=5")
    assert "--set train.stepz=5" in found
    assert "did you mean 'train.steps'" in found


def test_a_key_like_no_other_points_at_the_list() -> None:
    assert "villa keys" in failure(None, "zzzzqqqq=1")


@pytest.mark.parametrize(
    ("text", "key", "value"),
    [
        ("train: {steps: many}", "train.steps", "'many'"),
        ("train: {steps: '5'}", "train.steps", "'5'"),
        ("train: {steps: 5.0}", "train.steps", "5.0"),
        ("train: {steps: true}", "train.steps", "True"),
        ("train: {steps: 0}", "train.steps", "0"),
        ("seed: -1", "seed", "-1"),
        ("runner: spark", "runner", "'spark'"),
        ("evaluate: {splits: []}", "evaluate.splits", "[]"),
        ("evaluate: {splits: [train]}", "evaluate.splits.0", "'train'"),
        ("regions: {grid: [3]}", "regions.grid", "[3]"),
        ("data: {max_quarantine_fraction: 1.5}", "data.max_quarantine_fraction", "1.5"),
        ("train:", "train", "None"),
        ("train: 5", "train", "5"),
        ("train: []", "train", "[]"),
    ],
)
def test_a_wrong_value_is_named_with_key_and_file(write, text: str, key: str, value: str) -> None:
    path = write(text)
    found = failure(path)
    assert path in found
    assert f"{key} = {value}" in found


def test_all_mistakes_are_told_at_once(write) -> None:
    found = failure(write("train: {stepz: 5}\nseed: x\n"), "runner=spark")
    assert len(found.splitlines()) == 3


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["data.source=shards"], "data.train"),
        (["train.batch_images=7", "train.workers=2"], "train.batch_images=7 is not divisible by train.workers=2"),
        (["mapping.reference_denominator=true"], "contrastive"),
    ],
)
def test_values_that_contradict_each_other_are_told(overrides: list[str], says: str) -> None:
    assert says in failure(None, *overrides)


def test_a_missing_file_shows_what_there_is(tmp_path: Path) -> None:
    (tmp_path / "quickstart.yaml").write_text("seed: 1\n")
    near = failure(str(tmp_path / "quikstart.yaml"))
    assert "does not exist" in near
    assert f"did you mean {tmp_path / 'quickstart.yaml'}" in near
    assert "quickstart.yaml" in failure(str(tmp_path / "zzz.yaml"))
    assert "does not exist" in failure(str(tmp_path / "nowhere" / "a.yaml"))
    assert str(tmp_path) in failure(str(tmp_path)), "a folder is no file"


@pytest.mark.parametrize(
    "text",
    [
        "a: [",
        "a: b: c",
        "\tx: 1",
        "a: *nowhere",
        "!!python/object:os.system {}",
        "\x00",
        "run: 2024-13-45",
        "run: !!int x",
        "run: !!timestamp x",
        "run: " + "[" * 2000,
    ],
)
def test_what_is_no_yaml_names_the_file(write, text: str) -> None:
    path = write(text)
    assert path in failure(path)


@pytest.mark.parametrize("text", ["- a\n- b\n", "just text", "5", "1: {2: 3}", "train: {1: 2}"])
def test_yaml_that_is_no_config_names_the_file(write, text: str) -> None:
    path = write(text)
    assert path in failure(path)


def test_bytes_that_are_no_utf8_name_the_file(tmp_path: Path) -> None:
    path = tmp_path / "latin.yaml"
    path.write_bytes("run: grün".encode("latin-1"))
    assert str(path) in failure(str(path))


def test_the_resolved_config_is_a_config(tmp_path: Path) -> None:
    config = load(
        None, ["seed=5", "vocabulary.attributes=[{phrase: grün, prompts: [ein grünes]}]", "pairs.assign=relative"]
    )
    path = tmp_path / "resolved.yaml"
    path.write_text(dump(config), encoding="utf-8")
    assert load(str(path)) == config
    assert "grün" in dump(config)
    assert set(yaml.safe_load(dump(config))) == set(Config.model_fields)


def test_a_config_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Config().train.steps = 5  # type: ignore[misc]


def test_one_override_changes_one_key() -> None:
    """A section inside a section keeps its other defaults."""
    plain, changed = load(None, []).mapping.fit, load(None, ["mapping.fit.steps=7"]).mapping.fit
    assert changed == plain.model_copy(update={"steps": 7})


def test_local_paths_become_absolute_and_urls_stay() -> None:
    config = load(None, ["run=runs/x", "data.train=s3://bucket/train", "data.source=shards", "digits.mnist_dir=m"])
    assert config.run == os.path.abspath("runs/x") and config.digits.mnist_dir == os.path.abspath("m")
    assert config.data.train == "s3://bucket/train"


def test_objectness_and_calibrated_cuts_exclude_one_another() -> None:
    assert load(None, ["pairs.objectness=0.5"]).pairs.objectness == 0.5
    with pytest.raises(ConfigError, match=r"pairs\.objectness=0\.5 changes scores"):
        load(None, ["pairs.objectness=0.5", "pairs.assign=calibrated"])
