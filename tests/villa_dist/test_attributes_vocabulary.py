"""Which phrases become attributes, the vocabulary's file and fingerprint, counting over shards."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from shards import sidecar
from shards.commit import StageFolder
from shards.errors import ShardError, VillaError
from shards.reader import read_sidecar
from shards.store import Store
from villa_dist import config_file as config
from villa_dist.attributes import vocabulary
from villa_dist.attributes.phrases import Phrase
from villa_dist.attributes.vocabulary import Choice, Counts
from villa_dist.pipeline import Pipeline
from villa_dist.runner import LocalRunner

GIVEN = [Phrase("red", "colour", ("the color is red",)), Phrase("rare"), Phrase("ear", synonyms=("lug",))]


def counts(*said: int, texts: int = 10) -> Counts:
    return Counts(np.asarray(said), np.zeros(len(said), np.int64), texts)


def test_a_vocabulary_keeps_what_occurs_often_enough() -> None:
    made = vocabulary.build(GIVEN, counts(5, 1, 2), Choice(min_count=2))
    assert (made.phrases, made.groups, made.counts) == (("red", "ear"), ("colour", "all"), (5, 2))
    assert made.prompts == (("the color is red",), ("ear",)) and made.synonyms == ((), ("lug",))
    with pytest.raises(VillaError, match=r"none of the 3 phrases .* 9 or more texts.*'red' in 5.*min_count"):
        vocabulary.build(GIVEN, counts(5, 0, 0), Choice(min_count=9))
    with pytest.raises(VillaError, match=r"no text mentions any"):
        vocabulary.build(GIVEN, counts(0, 0, 0), Choice())
    with pytest.raises(VillaError, match=r"at most 0.2 of all \(1 occur in more\).*max_count_fraction"):
        vocabulary.build(GIVEN, counts(5, 0, 0), Choice(max_fraction=0.2))


def test_frequent_phrases_the_number_of_phrases_and_their_order() -> None:
    names = [Phrase(n) for n in "abcdef"]
    found = counts(3, 9, 4, 4, 1, 10)

    def chosen(**choice: object) -> str:
        return "".join(vocabulary.build(names, found, Choice(**choice)).phrases)  # type: ignore[arg-type]

    assert chosen() == "abcdef"
    assert chosen(max_fraction=0.9) == "abcde"
    assert chosen(max_phrases=3) == "bcf"
    assert chosen(max_phrases=2, max_fraction=0.4) == "cd"
    assert chosen(order="count") == "fbcdae"
    assert chosen(order="count", max_phrases=3, min_count=4) == "fbc"


def test_a_vocabulary_survives_its_file(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    with pytest.raises(ShardError, match=r"vocabulary\.parquet does not exist"):
        vocabulary.read(store)
    made = vocabulary.build(GIVEN, counts(5, 1, 2), Choice())
    vocabulary.write(store, made, {"vocabulary.min_count": 1})
    assert vocabulary.choice(store) == {"vocabulary.min_count": 1}
    assert vocabulary.read(store) == made
    assert len(made) == 3


def test_a_file_without_synonyms_is_read(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    made = vocabulary.build(GIVEN[:2], counts(5, 1), Choice())
    vocabulary.write(store, made, {})
    path = tmp_path / vocabulary.NAME
    pq.write_table(pq.read_table(path).drop_columns(["synonyms", "negated"]), path)
    old = vocabulary.read(store)
    assert (old.phrases, old.fingerprint) == (made.phrases, made.fingerprint)
    assert old.matcher("none").find("rare red") == [1, 0]


def test_its_fingerprint_names_ids_phrases_prompts_and_synonyms() -> None:
    made = vocabulary.build(GIVEN, counts(5, 1, 2), Choice())
    recounted = vocabulary.build(GIVEN, counts(7, 9, 2), Choice())
    assert recounted.fingerprint == made.fingerprint
    others = [
        vocabulary.build(GIVEN[::-1], counts(1, 1, 1), Choice()),
        vocabulary.build(GIVEN, counts(5, 0, 2), Choice()),
        vocabulary.build([Phrase("red", "colour", ("red",)), *GIVEN[1:]], counts(5, 1, 2), Choice()),
        vocabulary.build([*GIVEN[:2], Phrase("ear")], counts(5, 1, 2), Choice()),
    ]
    assert len({v.fingerprint for v in [made, *others]}) == 5


TEXTS = [
    "There is a large effusion.",
    "No effusion. The heart is normal.",
    "No pneumothorax or pleural fluid.",
    "The pneumothorax is stable. No effusion.",
    "No effusion in the film; small effusions later.",
    "Pleural  fluid at the base, no pneumothorax.",
    "The lungs are clear without effusion or pneumothorax.",
    "No pneumothorax of the right side.",
    "The effusion has resolved. No pneumothorax.",
    "No pneumothorax. The end.",
]


def finished(folder: Path, *overrides: str) -> config.Config:
    """The regions of a run over three shards of ten reports each."""
    (folder / "data").mkdir()
    for shard in "abc":
        with tarfile.open(folder / f"data/{shard}.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
            for number, text in enumerate(TEXTS):
                image = io.BytesIO()
                Image.new("RGB", (32, 32), (number, 0, ord(shard))).save(image, "PNG")
                for suffix, data in (("png", image.getvalue()), ("txt", text.encode())):
                    info = tarfile.TarInfo(f"{shard}{number}.{suffix}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
    source = ["data.source=shards", f"data.train={folder}/data", "regions.proposals=grid"]
    made = config.load(None, [f"run={folder}/run", "runner=local", *source, *overrides])
    Pipeline(made, LocalRunner()).run(["ingest", "vocabulary", "regions"])
    return made


def test_counts_and_spans_over_shards(tmp_path: Path) -> None:
    listed = tmp_path / "findings.csv"
    listed.write_text("phrase,synonyms\neffusion,pleural fluid\npneumothorax,\nthe,\nunicorn,\n", encoding="utf-8")
    made = finished(
        tmp_path,
        f"vocabulary.lists=[{listed}]",
        "vocabulary.negation=reports",
        "vocabulary.max_count_fraction=0.4",
        'vocabulary.templates={all: ["a radiograph with a {phrase}"]}',
    )
    words = vocabulary.read(Store(made.run))
    assert words.phrases == ("effusion", "pneumothorax"), "the is in half of the texts, unicorn in none"
    assert words.counts == (9, 3) and words.negated == (15, 18)
    assert words.prompts[0] == ("a radiograph with an effusion",)
    folder = StageFolder(f"{made.run}/train", "regions")
    for shard in folder.shards_done():
        rows = read_sidecar(folder, shard, sidecar.REGIONS_WRITTEN).to_pylist()
        for row in rows:
            text = TEXTS[int(row["key"][1:])]
            spoken = [text[a:b].lower() for a, b in zip(row["span_start"], row["span_stop"], strict=True)]
            assert len(spoken) == len(row["attributes"])
            expected = {0: {"effusion", "effusions", "pleural  fluid"}, 1: {"pneumothorax"}}
            assert all(s in expected[a] for s, a in zip(spoken, row["attributes"], strict=True))


def test_a_changed_list_is_refused_and_changed_prompts_need_no_counting(tmp_path: Path) -> None:
    listed = tmp_path / "a.txt"
    listed.write_text("effusion\n", encoding="utf-8")
    made = finished(tmp_path, f"vocabulary.lists=[{listed}]")
    counted = tmp_path / "run/train/vocabulary/manifest.parquet"
    before = counted.stat().st_mtime_ns
    prompted = made.model_copy(
        update={"vocabulary": made.vocabulary.model_copy(update={"templates": {"a": ["my {phrase}"]}})}
    )
    with pytest.raises(VillaError, match="groups and prompts"):
        Pipeline(prompted, LocalRunner()).run(["regions"])
    Pipeline(prompted, LocalRunner()).run(["vocabulary"])
    assert counted.stat().st_mtime_ns == before
    assert vocabulary.read(Store(made.run)).prompts == (("my effusion",),)
    listed.write_text("effusion\npneumothorax\n", encoding="utf-8")
    with pytest.raises(VillaError, match="phrases:"):
        Pipeline(made, LocalRunner()).run(["vocabulary"])
    listed.unlink()
    with pytest.raises(VillaError, match=r"a\.txt does not exist"):
        Pipeline(made, LocalRunner()).run(["vocabulary"])
    Pipeline(made, LocalRunner()).run(["ingest"])
