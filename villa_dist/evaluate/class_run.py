"""Images that have one class each, as a part of a run: zero-shot accuracy, and retrieval of a class (CheXpert 5x200).

Letters: N images, C classes, D embedding.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from villa_dist.config import Config
from villa_dist.config_evaluate import ClassTextsConfig
from villa_dist.config_file import YAML_TROUBLE, parse_yaml
from villa_dist.evaluate.bootstrap import per_image
from villa_dist.evaluate.errors import EvaluationError, NothingHereError
from villa_dist.evaluate.figures import Figures, Mean, rounded, together
from villa_dist.evaluate.fine_grained import Labels, macro, precision_at, read_labels
from villa_dist.evaluate.image_names import ImageNames
from villa_dist.evaluate.json_files import is_text, said
from villa_dist.evaluate.models_measured import put_vectors, read_class_vectors, rows
from villa_dist.evaluate.retrieval import similarity
from villa_dist.evaluate.whole import Whole, drawn, drawn_warning, names_of, read_whole
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
            given = parse_yaml(Path(given).read_text(encoding="utf-8"))
        except OSError as error:
            raise EvaluationError(f"evaluate.classes.prompts: {place} cannot be read: {error.strerror}") from error
        except YAML_TROUBLE as error:  # a text that is not UTF-8 is a ValueError
            raise EvaluationError(f"evaluate.classes.prompts: {place} is no JSON or YAML: {error}") from None
    if not isinstance(given, Mapping) or len(given) < 2:
        raise EvaluationError(f"{place}: prompts must be a mapping of two or more classes, each to a list of prompts")
    found = {}
    for name, texts in given.items():
        if not is_text(name) and (not isinstance(name, int) or isinstance(name, bool)):
            raise EvaluationError(f"{place}: a class is called {said(name)}; YAML reads some words so, quote them")
        prompts = [texts] if isinstance(texts, str) else texts
        if not isinstance(prompts, list) or not all(is_text(p) and p.strip() for p in prompts):
            raise EvaluationError(f"{place}: prompts of {name!r} are {said(texts)}; a list of texts is needed")
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
    wanted, most = config.evaluate.classes, config.evaluate.recall_images
    assert wanted is not None
    prompts, models = class_prompts(wanted), rows(config)
    names = names_of(config, split, models[0].name)
    label, warnings = label_of(names, list(prompts), labelled(wanted), wanted, split)
    known = np.flatnonzero(label != NONE)
    chosen = known[drawn(len(known), most)]
    warnings += drawn_warning(len(known), most, "images with a class", "precision at a k is lower")
    label = label[chosen]
    ks = sorted({k for k in wanted.precision_at if k <= len(label)})
    if len(ks) < len(set(wanted.precision_at)):
        warnings.append(f"precision beyond {len(label)} images is left out")
    found: dict[str, Figures] = {}
    for row in models:
        vectors = read_class_vectors(config.run, put_vectors(config, row, list(prompts.values())))
        found[row.name] = figures(read_whole(config, split, row.name, chosen), vectors, label, ks)
    counts = np.bincount(label, minlength=len(prompts))
    return {
        "images": int(counts.sum()),
        "classes": dict(zip(prompts, counts.tolist(), strict=True)),
        "warnings": warnings,
        "chance": chance(counts, ks),
        **together(found, config.evaluate.bootstrap),
    }


def chance(counts: Int[np.ndarray, " C"], ks: Sequence[int]) -> dict[str, float | None]:
    """What random scores reach on average, in percent, by the names of `figures`. counts: images by class."""
    one_of_all = rounded(1 / len(counts))
    share = rounded(float((counts[counts > 0] / counts.sum()).mean()))  # of a class among the images, or their texts
    of_ranks = {f"{way}@{k}": share for way in ("class_to_image", "image_to_text") for k in ks}
    return {"top1": one_of_all, "balanced": one_of_all, **of_ranks}


def label_of(
    split_names: Iterable[tuple[list[str], list[str]]],
    names: Sequence[str],
    labels: Labels | None,
    wanted: ClassTextsConfig,
    split: str,
) -> tuple[Int[np.ndarray, " N"], list[str]]:
    """(of each image of the split the class, or NONE; what is said of those that do not count). split_names: keys and
    classes, shard by shard; of them no more is held than the labels, or the distinct classes.

    Raises: EvaluationError when no image has a class, or two samples are the same image of the labels.
    """
    number = {name: n for n, name in enumerate(names)}
    parts, there, first = [np.zeros(0, np.int64)], set[str](), ""
    by_key = None if labels is None else _ByKey(labels, str(wanted.labels))
    for keys, found in split_names:
        first = first or next(iter(keys), "")
        there |= set(found)
        parts.append(by_key.of(keys) if by_key else np.array([number.get(c, NONE) for c in found], np.int64))
    label = np.concatenate(parts)
    if by_key is None:
        warnings = _unlisted(there, names, str(wanted.field))
        where = f"no sample's .json has one of {', '.join(names)} in its field {wanted.field!r}"
    else:
        count, missing = len(by_key.labels.keys), len(by_key.labels.keys) - len(by_key.sample)
        warnings = [f"{missing} of {count} rows of {wanted.labels} have no sample here and do not count"]
        warnings = warnings if missing else []
        where = (
            f"none of {count} rows of {wanted.labels} is of a sample; the first is of {by_key.labels.keys[0]!r}, and "
            f"the split's first key is {first!r}: one must end as the other does"
        )
    if (label == NONE).all():
        raise NothingHereError(f"evaluate.classes: no image of {split} has a class: {where}")
    left_out = int((label == NONE).sum())
    if left_out:
        warnings.append(f"{left_out} of {len(label)} images have none of the classes and do not count")
    absent = [names[n] for n in np.setdiff1d(np.arange(len(names)), label)]
    if absent:
        quoted = ", ".join(map(repr, absent))
        warnings.append(f"{len(absent)} of {len(names)} classes have no image ({quoted}); no precision counts them")
    return label, warnings


def _unlisted(found: set[str], names: Sequence[str], field: str) -> list[str]:
    """A class that no image has, beside one very like it that images have, is a slip."""
    there = sorted(found - set(names) - {""})
    warnings = []
    for name in sorted(set(names) - found):
        near = difflib.get_close_matches(name, there, 1)
        warnings += [f"no image's {field!r} is {name!r}, and some have {near[0]!r}: is that the class?"] if near else []
    return warnings


class _ByKey:
    """sample: by row of the labels, the key of its sample."""

    def __init__(self, labels: Labels, place: str) -> None:
        self.labels, self.place = labels, place
        self.names, self.sample = ImageNames(labels.keys), dict[int, str]()

    def of(self, keys: Sequence[str]) -> Int[np.ndarray, " N"]:
        """The class of each key, or NONE. Raises: EvaluationError when two samples are the same image of the labels."""
        label = np.full(len(keys), NONE, np.int64)
        for n, key in enumerate(keys):
            at = self.names.find(key)
            if at is None:
                continue
            if at in self.sample:
                raise EvaluationError(
                    f"samples {self.sample[at]!r} and {key!r} are both {self.labels.keys[at]!r} of {self.place}; give its "
                    "rows more folders of the path, or leave one sample out"
                )
            self.sample[at], label[n] = key, self.labels.label[at]
        return label


def figures(
    whole: Whole, vectors: Float[np.ndarray, "C D"], label: Int[np.ndarray, " N"], ks: Sequence[int]
) -> Figures:
    """top1: accuracy, and `balanced`, its mean over classes. class_to_image@k: share of a class's k best images that have
    it, mean over classes. image_to_text@k: share of an image's k best texts whose image has its class (GLoRIA).

    Raises: EvaluationError when an embedding is not finite.
    """
    image, count = whole.image, len(label)
    parts = [
        top_k(similarity(image[i : i + CHUNK], vectors), label[i : i + CHUNK], (1,)) for i in range(0, count, CHUNK)
    ]
    right = np.concatenate(parts)[:, 0]
    made: dict[str, Mean | float] = {"top1": Mean(per_image(right, np.arange(count), count))}
    made["balanced"] = macro(right, label)
    if ks:
        there = np.unique(label)
        of_classes = precision_at(vectors[there], image, there, label, ks=ks)
        of_texts = precision_at(image, whole.text[whole.text_of], label, label, ks=ks)
        made |= {f"class_to_image@{k}": float(of_classes[:, n].mean()) for n, k in enumerate(ks)}
        made |= {f"image_to_text@{k}": macro(of_texts[:, n], label) for n, k in enumerate(ks)}
    return made
