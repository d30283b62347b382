"""Lists of phrases in the formats people have them: plain text, YAML, CSV, JSON of categories, WordNet's index files.

Every reader gives phrases in the file's order. docs/vocabulary.md describes the formats.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from shards.errors import VillaError
from villa_dist.attributes.phrases import Phrase, check, check_template

BUILT_IN = Path(__file__).parent / "lists"
WORDNET = {"adj": "adjective", "adv": "adverb", "noun": "noun", "verb": "verb"}
QUALIFIER = re.compile(r"[_ ]*\([^()]*\)")  # of a name, as in "bow_(weapon)"
KEYS = ("phrase", "group", "synonyms", "prompts")
FORMATS = ".txt (one phrase a line), .yaml, .csv, .tsv, .json, or WordNet's index.adj, index.noun and the like"


@dataclass(frozen=True)
class PhraseList:
    """A list as read. templates: prompts by group, from the file itself."""

    name: str
    phrases: tuple[Phrase, ...]
    templates: dict[str, list[str]] = field(default_factory=dict)


def built_in() -> dict[str, Path]:
    return {path.stem: path for path in sorted(BUILT_IN.glob("*.yaml"))}


def read_list(name: str) -> PhraseList:
    """A built-in list, or the file `name`. Raises: VillaError that names file, place and remedy."""
    path = built_in().get(name) or Path(name)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        known = ", ".join(built_in())
        raise VillaError(f"vocabulary.lists: {name} does not exist; give a file, or a built-in list: {known}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise VillaError(f"vocabulary.lists: {name} cannot be read: {error}; give a file in UTF-8") from None
    read = READERS.get(path.suffix.lower())
    if path.stem in ("index", "data") and path.suffix[1:] in WORDNET:
        read = _wordnet
    if read is None:
        raise VillaError(f"vocabulary.lists: {name} is of no known format; known are {FORMATS}")
    found = read(text, path)
    if not found.phrases:
        raise VillaError(f"vocabulary.lists: {name} holds no phrase; fill it, or take it out of vocabulary.lists")
    return found


def _text(text: str, path: Path) -> PhraseList:
    lines = ((f"{path} line {n}", line.strip()) for n, line in enumerate(text.splitlines(), 1))
    found = (Phrase(check(line, place), path.stem) for place, line in lines if line and not line.startswith("#"))
    return PhraseList(path.stem, tuple(found))


def _wordnet(text: str, path: Path) -> PhraseList:
    """Lemmas of an index file, or words of a data file's synsets."""
    group = WORDNET[path.suffix[1:]]
    lines = (line.split() for line in text.splitlines() if not line.startswith("  "))
    of_line = _index_words if path.stem == "index" else _synset_words
    said = dict.fromkeys(plain_name(word) for parts in lines for word in of_line(parts, path))
    return PhraseList(path.name, tuple(Phrase(s, group) for s in said if any(c.isalnum() for c in s)))


def _index_words(parts: list[str], path: Path) -> list[str]:
    return parts[:1]


def _synset_words(parts: list[str], path: Path) -> list[str]:
    try:
        return parts[4 : 4 + 2 * int(parts[3], 16) : 2]
    except (IndexError, ValueError):
        raise VillaError(f"{path}: {' '.join(parts)[:60]!r} is not a line of a WordNet data file") from None


def _json(text: str, path: Path) -> PhraseList:
    """A list of names, or of categories with `name` and, where known, `synonyms` and `supercategory`."""
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise VillaError(f"vocabulary.lists: {path} is not JSON: {error}") from None
    if isinstance(values, dict):
        values = values.get("categories")
    if not isinstance(values, list):
        raise VillaError(f"vocabulary.lists: {path} must hold a list of names or categories, or one under 'categories'")
    return PhraseList(path.stem, tuple(_category(v, f"{path} entry {i}", path.stem) for i, v in enumerate(values)))


def _category(value: Any, place: str, group: str) -> Phrase:
    if isinstance(value, str):
        return Phrase(check(plain_name(value), place), group)
    name = value.get("name") if isinstance(value, dict) else None
    if not isinstance(name, str):
        raise VillaError(f"{place} is {_short(value)}, expected a string, or an object with the string 'name'")
    phrase = check(plain_name(name), place)
    others = _strings(value.get("synonyms"), f"{place}, synonyms")
    synonyms = tuple(s for s in (check(plain_name(o), place) for o in others) if s != phrase)
    kind = value.get("supercategory")
    return Phrase(phrase, kind if isinstance(kind, str) and kind else group, (), synonyms)


def _yaml(text: str, path: Path) -> PhraseList:
    """A list of phrases, or a mapping with `phrases` and, where wanted, `group` and `templates`."""
    try:
        values = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise VillaError(f"vocabulary.lists: {path} is not valid YAML: {' '.join(str(error).split())}") from None
    given = values if isinstance(values, dict) else {"phrases": values or []}
    unknown = sorted(set(map(str, given)) - {"phrases", "group", "templates"})
    if unknown:
        raise VillaError(f"{path}: unknown keys {', '.join(unknown)}; expected phrases, group and templates")
    group = given.get("group", path.stem)
    if not isinstance(group, str) or not isinstance(given.get("phrases"), list):
        raise VillaError(f"{path}: `phrases` must be a list and `group` a string")
    phrases = tuple(_entry(v, f"{path} phrase {i}", group) for i, v in enumerate(given["phrases"]))
    return PhraseList(path.stem, phrases, _templates(given.get("templates") or {}, path, group))


def _templates(given: Any, path: Path, group: str) -> dict[str, list[str]]:
    groups = given if isinstance(given, dict) else {group: given}
    return {
        str(g): [check_template(t, f"{path} templates") for t in _strings(ts, f"{path} templates of {g}")]
        for g, ts in groups.items()
    }


def _entry(value: Any, place: str, group: str) -> Phrase:
    if not isinstance(value, dict):
        value = {"phrase": value}
    unknown = sorted(set(map(str, value)) - set(KEYS))
    if unknown:
        raise VillaError(f"{place}: unknown keys {', '.join(unknown)}; expected {', '.join(KEYS)}")
    phrase = value.get("phrase")
    if not isinstance(phrase, str):
        remedy = "put it in quotes" if isinstance(phrase, bool | int | float) else "expected a string"
        raise VillaError(f"{place} is {_short(phrase)}, not a phrase; {remedy}")
    return Phrase(
        check(phrase, place),
        str(value.get("group") or group),
        tuple(_strings(value.get("prompts"), f"{place}, prompts")),
        tuple(check(s, f"{place}, synonyms") for s in _strings(value.get("synonyms"), f"{place}, synonyms")),
    )


def _csv(text: str, path: Path) -> PhraseList:
    """A header with `phrase` and, where wanted, `group`, `synonyms` and `prompts`, these two parted by `|`."""
    try:
        rows = list(csv.reader(io.StringIO(text), delimiter="\t" if path.suffix == ".tsv" else ",", strict=True))
    except csv.Error as error:
        raise VillaError(f"vocabulary.lists: {path} is not CSV: {error}") from None
    header = [name.strip().casefold() for name in rows[0]] if rows else []
    if rows and "phrase" not in header:
        raise VillaError(
            f"{path}: the first line is {', '.join(header)[:80]!r}, expected column names, `phrase` among them"
        )
    return PhraseList(path.stem, tuple(_rows(rows[1:], header, path)))


def _rows(rows: Iterable[list[str]], header: list[str], path: Path) -> Iterator[Phrase]:
    for number, row in enumerate(rows, 2):
        value: dict[str, Any] = {k: v.strip() for k, v in zip(header, row, strict=False) if k in KEYS}
        if not any(value.values()):
            continue
        for many in ("synonyms", "prompts"):
            value[many] = [part.strip() for part in value.get(many, "").split("|") if part.strip()]
        yield _entry(value, f"{path} row {number}", path.stem)


def _strings(value: Any, place: str) -> list[str]:
    values = [] if value is None else value
    if not isinstance(values, list) or not all(isinstance(v, str) and v.strip() for v in values):
        raise VillaError(f"{place}: {_short(value)} is not a list of strings")
    return values


def plain_name(name: str) -> str:
    """ "bow_(weapon)" -> "bow", "air_conditioner" -> "air conditioner"."""
    plain = QUALIFIER.sub("", name).replace("_", " ").strip()
    return plain or name


def _short(value: Any) -> str:
    said = repr(value)
    return said if len(said) <= 60 else f"{said[:60]}…"


READERS: dict[str, Callable[[str, Path], PhraseList]] = {
    ".txt": _text,
    ".json": _json,
    ".yaml": _yaml,
    ".yml": _yaml,
    ".csv": _csv,
    ".tsv": _csv,
}
