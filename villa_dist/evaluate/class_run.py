"""Images that have one class each, as a part of a run: zero-shot accuracy, and retrieval of a class (CheXpert 5x200).

Letters: N labelled images, C classes, D embedding.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from jaxtyping import Float, Int

from villa_dist.config import Config
from villa_dist.config_evaluate import ClassTextsConfig
from villa_dist.evaluate.bootstrap import per_image
from villa_dist.evaluate.errors import EvaluationError, NothingHereError
from villa_dist.evaluate.figures import Figures, Mean, together
from villa_dist.evaluate.fine_grained import Labels, macro, precision_at, read_labels
from villa_dist.evaluate.image_names import ImageNames
from villa_dist.evaluate.models_measured import put_vectors, read_class_vectors, rows
from villa_dist.evaluate.retrieval import similarity
from villa_dist.evaluate.whole import Whole, read_whole
from villa_dist.evaluate.zero_shot import top_k

NONE = -1  # no class
CHUNK = 4096  # images


def class_prompts(wanted: ClassTextsConfig) -> dict[str, list[str]]:
    """By class; one without prompts is said by its name. Raises: EvaluationError naming file and class."""
    given: Any = wanted.prompts
    place = "evaluate.classes.prompts"
    if isinstance(given, str):
        place = given
        try:
            given = yaml.safe_load(Path(given).read_text(encoding="utf-8"))
        except OSError as error:
            raise EvaluationError(f"evaluate.classes.prompts: {place} cannot be read: {error.strerror}") from error
        except (UnicodeDecodeError, yaml.YAMLError) as error:
            raise EvaluationError(f"evaluate.classes.prompts: {place} is no JSON or YAML: {error}") from None
    if not isinstance(given, Mapping) or len(given) < 2:
        raise EvaluationError(f"{place}: prompts must be a mapping of two or more classes, each to a list of prompts")
    found = {}
    for name, said in given.items():
        if not isinstance(name, str | int) or isinstance(name, bool):
            raise EvaluationError(f"{place}: a class is called {name!r}; YAML reads some words so, quote them")
        prompts = [said] if isinstance(said, str) else said
        if not isinstance(prompts, list) or not all(isinstance(p, str) and p.strip() for p in prompts):
            raise EvaluationError(f"{place}: prompts of {name!r} are {str(said)[:80]}; a list of texts is needed")
        found[str(name).strip()] = prompts or [str(name)]
    if len(found) < len(given) or "" in found:
        raise EvaluationError(f"{place}: a class has no name, or two have the same")
    return found


def labelled(wanted: ClassTextsConfig) -> Labels | None:
    """The labels file, where classes are told by one. Raises: EvaluationError naming file, line, column, class."""
    if wanted.labels is None:
        return None
    found = read_labels(wanted.labels, key=wanted.key, classes=list(class_prompts(wanted)))
    if not found.keys:
        raise EvaluationError(f"{wanted.labels}: no row in it; a row has an image's name and one class that is 1")
    return found


def classes(config: Config, split: str) -> dict[str, Any]:
    """Of every model, from the sidecars of `whole`. Raises: VillaError."""
    wanted = config.evaluate.classes
    assert wanted is not None
    prompts, labels = class_prompts(wanted), labelled(wanted)
    found: dict[str, Figures] = {}
    label, ks = np.zeros(0, np.int64), list(wanted.precision_at)
    warnings: list[str] = []
    for row in rows(config):
        whole = read_whole(config, split, row.name)
        if not found:
            label, warnings = label_of(whole, list(prompts), labels, wanted, split)
            ks = sorted({k for k in ks if k <= (label != NONE).sum()})
            if len(ks) < len(set(wanted.precision_at)):
                warnings.append(f"precision beyond {(label != NONE).sum()} images is left out")
        vectors = read_class_vectors(config.run, put_vectors(config, row, list(prompts.values())))
        found[row.name] = figures(whole, vectors, label, ks)
    counts = np.bincount(label[label != NONE], minlength=len(prompts))
    return {
        "images": int(counts.sum()),
        "classes": dict(zip(prompts, counts.tolist(), strict=True)),
        "warnings": warnings,
        **together(found, config.evaluate.bootstrap),
    }


def label_of(
    whole: Whole, names: Sequence[str], labels: Labels | None, wanted: ClassTextsConfig, split: str
) -> tuple[Int[np.ndarray, " N"], list[str]]:
    """(of each image the class, or NONE; what is said of those that do not count).

    Raises: EvaluationError when no image has a class, or two samples are the same image of the labels.
    """
    number = {name: n for n, name in enumerate(names)}
    if labels is None:
        label = np.array([number.get(c, NONE) for c in whole.classes], np.int64)
        warnings = _unlisted(whole.classes, names, str(wanted.field))
        where = f"no sample's .json has one of {', '.join(names)} in its field {wanted.field!r}"
    else:
        label, missing = _by_key(whole.keys, labels, str(wanted.labels))
        warnings = [f"{missing} of {len(labels.keys)} rows of {wanted.labels} have no sample here and do not count"]
        warnings = warnings if missing else []
        where = (
            f"none of {len(labels.keys)} rows of {wanted.labels} is of a sample; the first is of {labels.keys[0]!r}, and "
            f"the split's first key is {whole.keys[0]!r}: one must end as the other does"
        )
    if (label == NONE).all():
        raise NothingHereError(f"evaluate.classes: no image of {split} has a class: {where}")
    left_out = int((label == NONE).sum())
    if left_out:
        warnings.append(f"{left_out} of {len(label)} images have none of the classes and do not count")
    absent = [names[n] for n in np.setdiff1d(np.arange(len(names)), label)]
    if absent:
        said = ", ".join(map(repr, absent))
        warnings.append(f"{len(absent)} of {len(names)} classes have no image ({said}); no precision counts them")
    return label, warnings


def _unlisted(found: Sequence[str], names: Sequence[str], field: str) -> list[str]:
    """A class that no image has, beside one very like it that images have, is a slip."""
    there = sorted(set(found) - set(names) - {""})
    warnings = []
    for name in sorted(set(names) - set(found)):
        near = difflib.get_close_matches(name, there, 1)
        warnings += [f"no image's {field!r} is {name!r}, and some have {near[0]!r}: is that the class?"] if near else []
    return warnings


def _by_key(keys: Sequence[str], labels: Labels, place: str) -> tuple[Int[np.ndarray, " N"], int]:
    """(the class of each key, how many rows of the labels no key is of)."""
    names, sample = ImageNames(labels.keys), dict[int, int]()
    label = np.full(len(keys), NONE, np.int64)
    for n, key in enumerate(keys):
        at = names.find(key)
        if at is None:
            continue
        if at in sample:
            raise EvaluationError(
                f"samples {keys[sample[at]]!r} and {key!r} are both {labels.keys[at]!r} of {place}; give its rows more "
                "folders of the path, or leave one sample out"
            )
        sample[at], label[n] = n, labels.label[at]
    return label, len(labels.keys) - len(sample)


def figures(
    whole: Whole, vectors: Float[np.ndarray, "C D"], label: Int[np.ndarray, " n"], ks: Sequence[int]
) -> Figures:
    """top1: accuracy, and `balanced`, its mean over classes. class_to_image@k: share of a class's k best images that have
    it, mean over classes. image_to_text@k: share of an image's k best texts whose image has its class (GLoRIA).

    Raises: EvaluationError when an embedding is not finite.
    """
    at = np.flatnonzero(label != NONE)
    mine, image = label[at], whole.image[at]
    parts = [
        top_k(similarity(image[i : i + CHUNK], vectors), mine[i : i + CHUNK], (1,)) for i in range(0, len(at), CHUNK)
    ]
    right = np.concatenate(parts)[:, 0]
    made: dict[str, Mean | float] = {"top1": Mean(per_image(right, np.arange(len(at)), len(at)))}
    made["balanced"] = macro(right, mine)
    if ks:
        there = np.unique(mine)
        of_classes = precision_at(vectors[there], image, there, mine, ks=ks)
        of_texts = precision_at(image, whole.text[whole.text_of[at]], mine, mine, ks=ks)
        made |= {f"class_to_image@{k}": float(of_classes[:, n].mean()) for n, k in enumerate(ks)}
        made |= {f"image_to_text@{k}": macro(of_texts[:, n], mine) for n, k in enumerate(ks)}
    return made
