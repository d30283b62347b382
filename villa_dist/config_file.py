"""Configs from YAML files and `--set`: read, checked, made absolute, written; mistakes with file, key and nearest name."""

from __future__ import annotations

import difflib
import os
import re
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from villa_dist.config import Config, StudyConfig
from villa_dist.config_base import HUB_ID, ConfigError, Section


def load(path: str | None, overrides: list[str] | None = None) -> Config:
    """The config of a YAML file with `--set` overrides. Raises: ConfigError naming file, key and remedy."""
    return absolute(_load(Config, path, overrides or []))


def as_given(path: str | None, overrides: list[str] | None = None) -> Config:
    """The same with its paths as they are written. Raises: ConfigError."""
    return _load(Config, path, overrides or [])


def absolute(config: Config) -> Config:
    """The config with its local paths made absolute, since workers run in other folders."""

    def fix(path: str | None) -> str | None:
        return os.path.abspath(os.path.expanduser(path)) if path and "://" not in path else path

    data = config.data.model_copy(update={s: fix(getattr(config.data, s)) for s in ("train", "validation", "test")})
    digits = config.digits.model_copy(update={"mnist_dir": fix(config.digits.mnist_dir)})
    text = config.model.text.model_copy(update={"vocabulary": fix(config.model.text.vocabulary)})
    model = config.model.model_copy(update={"text": text, "weights": local_weights(config.model.weights)})
    lists = [fix(name) if "." in name or "/" in name else name for name in config.vocabulary.lists]  # else built-in
    words = config.vocabulary.model_copy(update={"lists": lists})
    pretrain = config.pretrain.model_copy(update={"start": fix(config.pretrain.start)})
    detector = config.regions.hf.model_copy(update={"model": local_weights(config.regions.hf.model)})
    regions = config.regions.model_copy(update={"hf": detector})
    evaluate = config.evaluate
    baselines = [b.model_copy(update={"weights": local_weights(b.weights)}) for b in evaluate.baselines]
    if found := evaluate.detection:
        found = found.model_copy(update={"truth": fix(found.truth), "templates": fix(found.templates)})
    if phrases := evaluate.fine_grained:
        given = phrases.annotations
        files = {name: fix(p) for name, p in given.items()} if isinstance(given, dict) else fix(given)
        phrases = phrases.model_copy(update={"annotations": files})
    if classes := evaluate.classes:
        prompts = fix(classes.prompts) if isinstance(classes.prompts, str) else classes.prompts
        classes = classes.model_copy(update={"prompts": prompts, "labels": fix(classes.labels)})
    parts = {"detection": found, "fine_grained": phrases, "classes": classes}
    evaluate = evaluate.model_copy(update={"baselines": baselines, **parts})
    sections = {
        "data": data, "digits": digits, "model": model, "pretrain": pretrain, "regions": regions, "vocabulary": words,
        "evaluate": evaluate,
    }  # fmt: skip
    return config.model_copy(update={"run": fix(config.run), **sections})


def local_weights(weights: str | None) -> str | None:
    """A path made absolute; a hub id (org/name that is no path here) as it is."""
    if not weights or (HUB_ID.fullmatch(weights) and not os.path.exists(weights)):
        return weights
    return os.path.abspath(os.path.expanduser(weights))


def load_study(path: str, overrides: list[str] | None = None) -> StudyConfig:
    """A study's config; its `base` section is a run's config. Raises: ConfigError."""
    return _load(StudyConfig, path, overrides or [])


SectionType = TypeVar("SectionType", bound=Section)


def _load(kind: type[SectionType], path: str | None, overrides: list[str]) -> SectionType:
    values: dict[str, Any] = _read(Path(path)) if path else {}
    for override in overrides:
        _apply(values, override)
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise ConfigError(_explain(error, path or "the built-in defaults", overrides, kind)) from None


class _Loader(yaml.SafeLoader):
    """safe_load with YAML 1.2's numbers: `1e-3` is one, which YAML 1.1 takes for a word."""


def _mapping(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    """A mapping in which each key stands once; safe_load lets the last win in silence."""
    keys = [loader.construct_object(key) for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]  # type: ignore[no-untyped-call]
    twice = next((k for i, k in enumerate(keys) if k in keys[:i]), None)
    if twice is not None:
        raise yaml.constructor.ConstructorError(None, None, f"the key {twice!r} stands twice", node.start_mark)
    return yaml.SafeLoader.construct_mapping(loader, node, deep=True)


_Loader.add_constructor("tag:yaml.org,2002:map", _mapping)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)
# The constructors of safe_load raise more than YAMLError for values such as 2024-13-45.
YAML_TROUBLE = (yaml.YAMLError, ValueError, TypeError, AttributeError, RecursionError)


def parse_yaml(text: str) -> Any:
    """Raises: one of YAML_TROUBLE."""
    return yaml.load(text, _Loader)


def _read(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        near = sorted(str(p) for p in path.parent.glob("*.y*ml")) if path.parent.is_dir() else []
        close = difflib.get_close_matches(str(path), near, 1)
        hint = f"; did you mean {close[0]}?" if close else f"; configs here: {', '.join(near) or 'none'}"
        raise ConfigError(f"config file {path} does not exist{hint}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"config file {path} cannot be read: {error}; give a YAML file in UTF-8") from None
    try:
        values = parse_yaml(text)
    except YAML_TROUBLE as error:
        raise ConfigError(f"config file {path} is not valid YAML: {' '.join(str(error).split())}") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"config file {path} holds a {type(values).__name__}, expected sections such as `data:`")
    return values


def _apply(values: dict[str, Any], override: str) -> None:
    name, equals, text = override.partition("=")
    if not equals or not name.strip():
        raise ConfigError(f"--set {override!r} is not KEY=VALUE, for example --set train.steps=800")
    *parents, last = name.strip().split(".")
    place = values
    for part in parents:
        child = place.setdefault(part, {})
        if not isinstance(child, dict):
            raise ConfigError(f"--set {override!r}: {part!r} is a value, not a section")
        place = child
    try:
        place[last] = parse_yaml(text) if text else ""
    except YAML_TROUBLE:
        place[last] = text


def _explain(error: ValidationError, place: str, overrides: list[str], kind: type[BaseModel]) -> str:
    lines = []
    for item in error.errors():
        key = ".".join(str(part) for part in item["loc"]) or "(whole file)"
        mine = [o for o in overrides if not item["loc"] or f"{o.split('=', 1)[0].strip()}.".startswith(f"{key}.")]
        source = f"--set {mine[0]}" if mine else place
        if isinstance(item["input"], dict):  # a rule over several keys may be broken by any of them
            source = f"{place} with --set {' --set '.join(mine)}" if mine else place
        if item["type"] == "extra_forbidden":
            lines.append(f"{source}: unknown key {key!r}{_nearest(key, kind)}")
        else:
            shown = f" = {item['input']!r}" if not isinstance(item["input"], dict) else ""
            message = item["msg"].removeprefix("Value error, ")
            if " or instance of " in message:
                message = "expected a section, such as {key: value}"
            lines.append(f"{source}: {key}{shown}: {message}" if item["loc"] else f"{source}: {message}")
    return "\n".join(lines)


def _nearest(key: str, kind: type[BaseModel]) -> str:
    names = [*dict.fromkeys([*key_names(kind), *keys(kind)])]
    close = difflib.get_close_matches(key, names, 1, 0.5) or difflib.get_close_matches(
        key.rsplit(".", 1)[-1], [n.rsplit(".", 1)[-1] for n in names], 1, 0.6
    )
    return f"; did you mean {close[0]!r}?" if close else "; `villa keys` lists all keys"


def key_names(model: type[BaseModel] = Config, prefix: str = "") -> list[str]:
    """Every dotted key of the config, sections included."""
    names: list[str] = []
    for name, field in model.model_fields.items():
        names.append(prefix + name)
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            names += key_names(field.annotation, f"{prefix}{name}.")
    return names


def keys(model: type[BaseModel] = Config, prefix: str = "") -> dict[str, Any]:
    """Every dotted key that takes a value -> its default; "required" where it has none."""
    found: dict[str, Any] = {}
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            found |= keys(field.annotation, f"{prefix}{name}.")
        else:
            default = field.get_default(call_default_factory=True)
            found[prefix + name] = "required" if field.is_required() else default
            union = get_origin(field.annotation) in (Union, UnionType)  # of a section that may be left out
            for section in get_args(field.annotation) if union else ():
                if isinstance(section, type) and issubclass(section, BaseModel):
                    found |= keys(section, f"{prefix}{name}.")
    return found


def dump(config: Config) -> str:
    """The resolved config as YAML."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
