"""`villa mine`: from shards to a list that a vocabulary takes."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import pytest
from runs import villa

from villa_dist.attributes.lists import read_list

TEXTS = [
    "A woman with a red umbrella stands by a fire hydrant.",
    "Two red umbrellas, and a fire hydrant on the street",
    "The fire hydrant is red; a teddy bear sits on it",
    *(f"thing{n} with nothing" for n in range(30)),
]


def tar_of(path: Path, texts: list[str], *, as_json: bool = False) -> None:
    with tarfile.open(path, "w") as tar:
        for n, text in enumerate(texts):
            data = json.dumps({"caption": text}).encode() if as_json else text.encode()
            info = tarfile.TarInfo(f"{n:04d}.{'json' if as_json else 'txt'}")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def test_the_command_writes_a_list_that_a_vocabulary_takes(tmp_path: Path) -> None:
    tar_of(tmp_path / "a.tar", TEXTS)
    tar_of(tmp_path / "b.tar", ["a fire hydrant", ""], as_json=True)
    out = tmp_path / "lists/mined.txt"
    ended = villa("mine", str(tmp_path), "--out", str(out), "--min-count", "2")
    assert ended.returncode == 0, ended.stderr
    line = json.loads(ended.stdout)
    assert (line["texts"], line["without_text"], line["shards"]) == (34, 1, 2)
    found = read_list(str(out))
    assert len(found.phrases) == line["phrases"]
    assert "fire hydrant" in [p.phrase for p in found.phrases]
    assert line["most_used"]["fire hydrant"] == 4


@pytest.mark.parametrize(
    ("arguments", "said_so"),
    [
        (["--out", "list.csv"], "name a .txt file"),
        (["--out", "list.txt", "--min-count", "99"], "lower --min-count"),
    ],
)
def test_mistakes_are_told(tmp_path: Path, arguments: list[str], said_so: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tar_of(tmp_path / "a.tar", TEXTS)
    monkeypatch.chdir(tmp_path)
    ended = villa("mine", str(tmp_path), *arguments)
    assert ended.returncode == 2 and said_so in ended.stderr and "Traceback" not in ended.stderr
    assert not (tmp_path / "list.txt").exists()
