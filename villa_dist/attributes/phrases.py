"""Candidate phrases of a vocabulary: what a list says of each, lists merged into one, prompts made from templates."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from shards.errors import VillaError
from villa_dist.attributes.lemma import lemma
from villa_dist.attributes.words import BREAK, STOP, words

MAX_LENGTH = 200
EVERY_GROUP = "all"
JOINED = "+"  # between the groups of a phrase that several lists name
SLOT = re.compile(r"(\ba )?\{(?:phrase)?\}")
ALWAYS_PLURAL = frozenset(
    {"jeans", "pants", "trousers", "shorts", "scissors", "pliers", "tweezers", "clothes", "goods"}
)
SOUNDS_LIKE_YOU = re.compile(r"(?:uni(?![nmd])|us[eua]|eu|ewe|one\b|once|ubi|ut[ei]|u\b|uk\b)")
SILENT_H = re.compile(r"(?:hour|honest|honou?r|heir)")
SPELLED_WITH_A_VOWEL = frozenset("AEFHILMNORSX")  # an X-ray, an MRI scan


@dataclass(frozen=True, slots=True)
class Phrase:
    """One attribute before it is counted. group: "" where no list names one. prompts: none for its group's templates."""

    phrase: str
    group: str = ""
    prompts: tuple[str, ...] = ()
    synonyms: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Merged:
    """repeated: phrases that were named again, first few; synonyms_dropped: those that are phrases themselves."""

    phrases: tuple[Phrase, ...]
    repeated: tuple[str, ...]
    synonyms_dropped: tuple[str, ...]


def check(phrase: str, place: str) -> str:
    """The phrase without surrounding spaces. Raises: VillaError for one without a word, or over MAX_LENGTH."""
    if len(phrase) > MAX_LENGTH:
        raise VillaError(
            f"{place}: the phrase {phrase[:40]!r}… has {len(phrase):,} characters, over the limit of {MAX_LENGTH}; is this "
            "a list of phrases, one a line?"
        )
    if not words(phrase):
        raise VillaError(f"{place}: the phrase {phrase!r} holds no word (letters or digits); take it out")
    return phrase.strip()


def key(phrase: str) -> tuple[str, ...]:
    """Phrases with the same key are one: case, hyphens, accents' forms and punctuation do not count; number does."""
    return tuple(w for w in words(phrase) if w not in (STOP, BREAK))


def merge(lists: Sequence[Sequence[Phrase]]) -> Merged:
    """The phrases of all lists in order. Of equal ones the first stays, and takes on the others' groups and synonyms."""
    kept: dict[tuple[str, ...], Phrase] = {}
    repeated: list[str] = []
    for phrase in (p for each in lists for p in each):
        name = key(phrase.phrase)
        first = kept.get(name)
        if first is None:
            kept[name] = phrase
            continue
        repeated.append(phrase.phrase)
        groups = dict.fromkeys(g for p in (first, phrase) for g in p.group.split(JOINED) if g)
        synonyms = tuple(dict.fromkeys((*first.synonyms, *phrase.synonyms)))
        kept[name] = replace(first, group=JOINED.join(groups), synonyms=synonyms)
    taken, dropped, phrases = set(kept), [], []
    for name, phrase in kept.items():
        own: dict[tuple[str, ...], str] = {}
        for synonym in phrase.synonyms:
            said = key(synonym)
            if said in taken:
                dropped.extend([synonym] if said != name else [])
                continue
            taken.add(said)
            own[said] = synonym
        phrases.append(replace(phrase, synonyms=tuple(own.values())))
    return Merged(tuple(phrases), tuple(repeated), tuple(dropped))


def check_template(template: str, place: str) -> str:
    """Raises: VillaError for a template without a place for the phrase, or with another."""
    if not SLOT.search(template) or "{" in SLOT.sub("", template):
        raise VillaError(
            f"{place}: the template {template!r} must hold {{phrase}}, where the phrase goes, and no other braces; for "
            "example 'a photo of a {phrase}'"
        )
    return template


def prompts_of(phrase: Phrase, templates: Mapping[str, Sequence[str]]) -> tuple[str, ...]:
    """Its own prompts, else its groups' templates filled in, else those of EVERY_GROUP, else the phrase itself."""
    if phrase.prompts:
        return phrase.prompts
    groups = [g for g in phrase.group.split(JOINED) if templates.get(g)] or [EVERY_GROUP]
    filled = [fill(t, phrase.phrase) for group in groups for t in templates.get(group, ())]
    return tuple(dict.fromkeys(filled)) or (phrase.phrase,)


def fill(template: str, phrase: str) -> str:
    """The template with the phrase in it; "a" before it becomes "an" before a vowel's sound and goes before a plural."""

    def put(found: re.Match[str]) -> str:
        return (article(phrase) if found.group(1) else "") + phrase

    return SLOT.sub(put, template)


def article(phrase: str) -> str:
    """ "a ", "an ", or nothing before a plural."""
    said = words(phrase)
    last = said[-1] if said else ""
    if last in ALWAYS_PLURAL or (last.endswith("s") and lemma(last) != last):
        return ""
    first = re.split(r"[\s-]", phrase.strip(), maxsplit=1)[0]
    if first[0].isdigit():
        vowel = first.startswith("8") or first in ("11", "18")
    elif len(first) == 1 or (first.isupper() and len(first) <= 4):
        vowel = first[0].upper() in SPELLED_WITH_A_VOWEL
    else:
        small = first.casefold()
        vowel = bool(SILENT_H.match(small)) or (small[0] in "aeiou" and not SOUNDS_LIKE_YOU.match(small))
    return "an " if vowel else "a "


def without_phrase(phrases: Sequence[Phrase]) -> list[str]:
    """Prompts given by hand that name neither their phrase nor one of its synonyms."""

    def names(prompt: str, phrase: Phrase) -> bool:
        said = " ".join(map(lemma, key(prompt)))
        return any(f" {' '.join(map(lemma, key(p)))} " in f" {said} " for p in (phrase.phrase, *phrase.synonyms))

    return [prompt for phrase in phrases for prompt in phrase.prompts if not names(prompt, phrase)]
