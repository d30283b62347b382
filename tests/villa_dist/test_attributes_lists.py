"""Lists of phrases: formats, what is refused and how, merging, prompts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shards.errors import VillaError
from villa_dist.attributes.extract import PhraseMatcher
from villa_dist.attributes.lists import built_in, read_list
from villa_dist.attributes.phrases import Phrase, fill, key, merge, prompts_of, without_phrase
from villa_dist.config import PhraseConfig, VocabularyConfig
from villa_dist.stages.vocabulary import phrases

YAML = """
group: device
templates: {device: ["a radiograph with a {phrase}"], all: ["{phrase}"]}
phrases:
  - pacemaker
  - {phrase: central line, synonyms: [PICC line, port], prompts: [a line, central line]}
  - {phrase: effusion, group: finding}
"""
CSV = """Phrase,Group,Synonyms,Prompts,Note
pacemaker,device,pacer|cardiac pacemaker,,seen often
"clip, surgical",device,,a clip|clips,

effusion,,,,
"""
INDEX = """  1 This software and database is provided
  2 by a university
able a 4 5 ! & + = ^ 4 3 00001740 00306663
black-and-white a 2 1 & 2 0 00393683 00372880
.22_caliber a 1 1 \\ 1 0 03157978
"""
DATA = """  1 This software and database is provided
00001740 00 a 02 able 0 fit(p) 0 005 = 05207437 n 0000 | having the means
00002312 00 a 01 good_looking 0 002 ;c 06047178 n 0000 | pleasing
"""


def written(folder: Path, name: str, text: str | bytes) -> str:
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return str(path)


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("nouns.txt", "# names\ndog\n\n  traffic light \n", [("dog", "nouns"), ("traffic light", "nouns")]),
        ("nouns.txt", b"\xef\xbb\xbfdog\r\ncat\r\n", [("dog", "nouns"), ("cat", "nouns")]),
        ("a.json", '["dog", "traffic_light"]', [("dog", "a"), ("traffic light", "a")]),
        ("a.json", '[{"name": "bow_(weapon)", "id": 1}]', [("bow", "a")]),
        ("a.json", '{"categories": [{"name": "car", "supercategory": "vehicle"}]}', [("car", "vehicle")]),
        ("a.yaml", "[dog, cat]", [("dog", "a"), ("cat", "a")]),
        ("a.yml", YAML, [("pacemaker", "device"), ("central line", "device"), ("effusion", "finding")]),
        ("a.csv", CSV, [("pacemaker", "device"), ("clip, surgical", "device"), ("effusion", "a")]),
        ("a.tsv", "phrase\tgroup\ndog\tanimal\n", [("dog", "animal")]),
        ("index.adj", INDEX, [("able", "adjective"), ("black-and-white", "adjective"), (".22 caliber", "adjective")]),
        ("data.adj", DATA, [("able", "adjective"), ("fit", "adjective"), ("good looking", "adjective")]),
    ],
)  # fmt: skip
def test_formats(tmp_path: Path, name: str, text: str | bytes, expected: list[tuple[str, str]]) -> None:
    read = read_list(written(tmp_path, name, text))
    assert [(p.phrase, p.group) for p in read.phrases] == expected


def test_synonyms_prompts_and_templates_are_read(tmp_path: Path) -> None:
    read = read_list(written(tmp_path, "a.yaml", YAML))
    assert read.phrases[1] == Phrase("central line", "device", ("a line", "central line"), ("PICC line", "port"))
    assert read.templates == {"device": ["a radiograph with a {phrase}"], "all": ["{phrase}"]}
    rows = read_list(written(tmp_path, "a.csv", CSV)).phrases
    assert rows[0].synonyms == ("pacer", "cardiac pacemaker") and rows[1].prompts == ("a clip", "clips")
    lvis = read_list(written(tmp_path, "l.json", '[{"name": "aerosol_can", "synonyms": ["aerosol_can", "spray_can"]}]'))
    assert lvis.phrases[0].synonyms == ("spray can",)


@pytest.mark.parametrize(
    ("name", "text", "parts"),
    [
        ("none.txt", None, ["none.txt does not exist", "chest_xray"]),
        ("a.json", "[", ["a.json is not JSON"]),
        ("a.json", "[" * 100_000, ["a.json is not JSON"]),
        ("a.json", '{"names": []}', ["a.json must hold a list", "categories"]),
        ("a.json", "[1]", ["a.json entry 0 is 1", "name"]),
        ("a.json", '["dog", {"id": 3}]', ["a.json entry 1", "name"]),
        ("a.json", '["dog", "🔥"]', ["a.json entry 1", "holds no word"]),
        ("a.json", '[{"name": "dog", "synonyms": "hound"}]', ["synonyms", "'hound'", "list of strings"]),
        ("a.json", "[]", ["holds no phrase"]),
        ("a.txt", "", ["holds no phrase"]),
        ("a.txt", "dog\n...\n", ["a.txt line 2", "'...'", "holds no word"]),
        ("a.txt", "dog " * 250_000, ["a.txt line 1", "999,999 characters", "limit of 200"]),
        ("a.txt", b"caf\xe9", ["a.txt cannot be read", "UTF-8"]),
        ("a.yaml", "phrases: [a: b: c", ["not valid YAML"]),
        ("a.yaml", "names: [dog]", ["unknown keys names", "phrases"]),
        ("a.yaml", "phrases: dog", ["`phrases` must be a list"]),
        ("a.yaml", "[dog, no]", ["phrase 1 is False", "quotes"]),
        ("a.yaml", "[{phrase: dog, prompt: a dog}]", ["phrase 0", "unknown keys prompt", "prompts"]),
        ("a.yaml", "[{phrase: dog, prompts: [3]}]", ["phrase 0, prompts", "[3]"]),
        ("a.yaml", "{phrases: [dog], templates: [a photo]}", ["'a photo'", "must hold {phrase}"]),
        ("a.csv", "dog\ncat\n", ["first line is 'dog'", "`phrase`"]),
        ("a.csv", "phrase,group\n,animal\n", ["row 2", "holds no word"]),
        ("a.csv", 'phrase\n"dog\n', ["a.csv is not CSV"]),
        ("a.xlsx", "dog", ["no known format", ".yaml", "index.adj"]),
        ("data.adj", "not a line of this file", ["not a line of a WordNet data file"]),
    ],
)
def test_what_cannot_be_used_is_named(tmp_path: Path, name: str, text: str | bytes | None, parts: list[str]) -> None:
    path = str(tmp_path / name) if text is None else written(tmp_path, name, text)
    with pytest.raises(VillaError) as refused:
        read_list(path)
    message = str(refused.value)
    assert all(part in message for part in parts), message
    assert len(message) < 500


@pytest.mark.parametrize("name", built_in())
def test_built_in_lists_are_sound(name: str) -> None:
    read = read_list(name)
    merged = merge([read.phrases])
    assert merged.repeated == () and merged.synonyms_dropped == ()
    matcher = PhraseMatcher([p.phrase for p in read.phrases], [p.synonyms for p in read.phrases])
    for index, phrase in enumerate(read.phrases):
        assert all(matcher.find(said) == [index] for said in (phrase.phrase, *phrase.synonyms)), phrase
        assert len(prompts_of(phrase, read.templates)) == 2 and not without_phrase([phrase])


def test_of_equal_phrases_the_first_stands_and_takes_the_others_groups_and_synonyms() -> None:
    merged = merge(
        [
            [Phrase("Traffic-Light", "first", ("a traffic light",), ("stop light",)), Phrase("glass")],
            [Phrase("traffic light", "second", ("other",), ("glass", "semaphore")), Phrase("glasses")],
            [Phrase("TRAFFIC LIGHT", "first")],
        ]
    )
    assert merged.phrases == (
        Phrase("Traffic-Light", "first+second", ("a traffic light",), ("stop light", "semaphore")),
        Phrase("glass"),
        Phrase("glasses"),
    )
    assert merged.repeated == ("traffic light", "TRAFFIC LIGHT") and merged.synonyms_dropped == ("glass",)


@given(st.lists(st.sampled_from(["a", "A.", "b", "a b", "a-b", "c"]), max_size=12))
def test_merged_phrases_differ_and_keep_their_order(names: list[str]) -> None:
    merged = merge([[Phrase(n) for n in names]])
    keys = [key(p.phrase) for p in merged.phrases]
    assert keys == list(dict.fromkeys(map(key, names)))
    assert len(merged.phrases) + len(merged.repeated) == len(names)


@pytest.mark.parametrize(
    ("phrase", "expected"),
    [
        ("dog", "a dog"),
        ("apple", "an apple"),
        ("Elephant", "an Elephant"),
        ("hourglass", "an hourglass"),
        ("university", "a university"),
        ("unidentified object", "an unidentified object"),
        ("umbrella", "an umbrella"),
        ("one-way sign", "a one-way sign"),
        ("used car", "a used car"),
        ("European", "a European"),
        ("x-ray", "an x-ray"),
        ("MRI scan", "an MRI scan"),
        ("UFO", "a UFO"),
        ("8-ball", "an 8-ball"),
        ("jeans", "jeans"),
        ("traffic lights", "traffic lights"),
        ("glass", "a glass"),
        ("bus", "a bus"),
    ],
)
def test_articles(phrase: str, expected: str) -> None:
    assert fill("a photo of a {phrase}.", phrase) == f"a photo of {expected}."
    assert fill("a {}", phrase) == expected
    assert fill("the {phrase}, pizza {phrase}", phrase) == f"the {phrase}, pizza {phrase}"


def test_prompts_come_from_the_phrase_else_its_groups_else_all() -> None:
    templates = {"animal": ["a {phrase} outdoors"], "all": ["a {phrase}"]}
    assert prompts_of(Phrase("dog", "animal", ("my dog",)), templates) == ("my dog",)
    assert prompts_of(Phrase("ox", "animal"), templates) == ("an ox outdoors",)
    assert prompts_of(Phrase("ox", "beast+animal"), templates) == ("an ox outdoors",)
    assert prompts_of(Phrase("ox", "beast"), templates) == ("an ox",)
    assert prompts_of(Phrase("ox"), {}) == ("ox",)


def test_prompts_that_do_not_name_their_phrase() -> None:
    given = [
        Phrase("dog", prompts=("two dogs", "a hound", "a hot-dog"), synonyms=("hounds",)),
        Phrase("ear", prompts=("early",)),
    ]
    assert without_phrase(given) == ["early"]


def test_the_configs_phrases_come_first(tmp_path: Path) -> None:
    path = written(tmp_path, "a.txt", "cat\ndog\n")
    config = VocabularyConfig(
        attributes=[PhraseConfig(phrase="Dog", group="pet")], lists=[path, "sizes"], templates={"a": ["one {phrase}"]}
    )
    found = phrases(config)
    assert [p.phrase for p in found[:3]] == ["Dog", "cat", "tiny"]
    assert (found[0].group, found[0].prompts, found[1].prompts) == ("pet+a", ("one Dog",), ("one cat",))
    assert len(phrases(VocabularyConfig())) == 20


@pytest.mark.parametrize(
    ("given", "parts"),
    [
        (["red", "Red."], ["'red', 'Red.'", "keep one"]),
        (["red", "!!"], ["vocabulary.attributes", "'!!'", "no word"]),
        (["a " * 500_000], ["1,000,000 characters"]),
    ],
)
def test_phrases_of_the_config_that_cannot_be_used(given: list[str], parts: list[str]) -> None:
    with pytest.raises(VillaError) as refused:
        phrases(VocabularyConfig(attributes=[PhraseConfig(phrase=p) for p in given]))
    assert all(part in str(refused.value) for part in parts), refused.value


def test_lists_people_have(shared_data: Path) -> None:
    text = shared_data / "text"
    sizes = {
        "lvis_22k_categories.json": 22_047,
        "openimages_categories.json": 500,
        "coco_categories.json": 80,
        "imagenet_classnames.json": 1_000,
        "wordnet31/index.adj": 21_499,
        "wordnet31/index.verb": 11_540,
    }
    read = [read_list(str(text / name)) for name in sizes]
    assert [len(each.phrases) for each in read] == list(sizes.values())
    merged = merge([each.phrases for each in read])
    assert len(merged.phrases) + len(merged.repeated) == sum(sizes.values())
    assert json.loads((text / "simple_imagenet_templates.json").read_text())[0].count("{}") == 1
