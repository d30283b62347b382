"""Packing what lists its images: COCO files and tables."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pack_samples import SHARED_DATA, coco, contents, image, origins, pack, refused, samples, write

from shards.errors import VillaError
from shards.sources.table import Columns

needs_data = pytest.mark.skipif(not (SHARED_DATA / "natural").is_dir(), reason="real data is not part of the project")


def listed(count: int = 4) -> list[dict[str, Any]]:
    return [{"id": 10 + i, "file_name": f"{i}.png", "license": 2, "width": 9, "height": 7} for i in range(count)]


def caption(image_id: int, text: str, number: int = 0) -> dict[str, Any]:
    return {"id": number, "image_id": image_id, "caption": text}


def images_in(folder: Path, count: int = 4) -> Path:
    return write(folder, {f"{i}.png": image(i) for i in range(count)})


def test_captions_and_boxes_are_joined_by_image_id(tmp_path: Path) -> None:
    images = images_in(tmp_path / "images")
    captions = [
        caption(10, "second\nof two", 7),
        caption(10, " first ", 3),
        *(caption(i, "one", i) for i in (11, 12, 13)),
    ]
    boxes = [
        {"image_id": 11, "category_id": 5, "bbox": [1, 2, 3.5, 4], "iscrowd": 0, "segmentation": [[1, 2]]},
        {"image_id": 11, "category_id": 9, "bbox": [0, 0, 2, 2], "iscrowd": 1},
        {"image_id": 12, "category_id": 5, "bbox": [0, 0, 0, 2]},
        {"image_id": 12, "category_id": 5, "bbox": [0, 0, float("nan"), 2]},
        {"image_id": 12, "category_id": 5, "bbox": "none"},
    ]
    extra = [*listed(), {"id": 99, "file_name": "only-boxes.png"}]
    write(tmp_path, {"captions.json": coco(listed(), captions)})
    write(tmp_path, {"instances.json": coco(extra, boxes, [{"id": 5, "name": "cat"}])})
    result = pack(
        tmp_path / "captions.json", tmp_path / "dst", images=str(images), coco=(str(tmp_path / "instances.json"),)
    )
    found = samples(tmp_path / "dst")
    assert result["samples"] == 4 and found["0"]["txt"] == b"first\nsecond of two"
    assert json.loads(found["1"]["json"]) == {
        "image_id": 11, "file_name": "1.png", "license": 2, "width": 9, "height": 7,
        "boxes": [[1.0, 2.0, 4.5, 6.0], [0.0, 0.0, 2.0, 2.0]], "categories": ["cat", "9"], "crowd": [0, 1],
    }  # fmt: skip
    assert json.loads(found["2"]["json"])["boxes"] == []
    assert found["3"]["png"] == (images / "3.png").read_bytes()
    assert origins(tmp_path / "dst")["1"] == ("captions.json", "1.png", 11)
    assert any("1 images are in no captions file" in w for w in result["warnings"])
    assert any("3 boxes" in w for w in result["warnings"])


BAD_ENTRIES = {
    "no_text": (listed(3), [caption(10, "a"), caption(11, "b"), caption(12, "  ")]),
    "unreadable_file": ([*listed(2), {"id": 12, "file_name": "gone.png"}], [caption(i, "a") for i in (10, 11, 12)]),
    "unsafe_path": ([*listed(2), {"id": 12, "file_name": "../secret.png"}], [caption(i, "a") for i in (10, 11, 12)]),
    "unsafe_path ": ([*listed(2), {"id": 12, "file_name": "\ud800"}], [caption(i, "a") for i in (10, 11, 12)]),
    "unsafe_path  ": ([*listed(2), {"id": 12}], [caption(i, "a") for i in (10, 11, 12)]),
    "duplicate_key": ([*listed(2), {"id": 10, "file_name": "2.png"}], [caption(i, "a") for i in (10, 11)]),
    "duplicate_key ": ([*listed(2), {"id": 12, "file_name": "1.png"}], [caption(i, "a") for i in (10, 11, 12)]),
}


@pytest.mark.parametrize("reason", BAD_ENTRIES)
def test_an_entry_that_cannot_be_used(tmp_path: Path, reason: str) -> None:
    write(tmp_path, {"secret.png": image(5), "captions.json": coco(*BAD_ENTRIES[reason])})
    src = images_in(tmp_path / "images")
    result = pack(src, tmp_path / "dst", coco=(str(tmp_path / "captions.json"),))
    assert result["refused"] == {reason.strip(): 1} and result["samples"] == 2 and result["conserved"]


BAD_COCO = {
    "not readable as JSON": "{",
    "it is no object": "[]",
    r"no list of annotations \(its keys are images, info\)": '{"images": [], "info": 1}',
    "no annotation has a caption": coco(listed(), [{"image_id": 10, "bbox": [0, 0, 1, 1]}]),
    "id is no whole number": coco([{"id": "x"}], [caption(1, "a")]),
    r"none of the 1 images .* \(such as gone.png\); point --images": coco(
        [{"id": 1, "file_name": "gone.png"}], [caption(1, "a")]
    ),
}


@pytest.mark.parametrize("message", BAD_COCO)
def test_a_file_that_is_not_coco_or_whose_images_are_elsewhere(tmp_path: Path, message: str) -> None:
    write(tmp_path, {"captions.json": BAD_COCO[message]})
    images_in(tmp_path / "images")
    with pytest.raises(VillaError, match=message):
        pack(tmp_path / "captions.json", tmp_path / "dst", images=str(tmp_path / "images"))
    assert not (tmp_path / "dst/plan/config.json").exists()


@needs_data
def test_real_coco_photos(tmp_path: Path) -> None:
    folder = SHARED_DATA / "natural"
    result = pack(
        folder / "captions.json", tmp_path / "dst", {"check": "header", "max_bytes": 20 << 20},
        images=str(folder / "images"), coco=(str(folder / "annotations.json"),),
    )  # fmt: skip
    assert result["samples"] == 313 and result["shards"] > 1 and result["refused"] == {}
    captions = json.loads((folder / "captions.json").read_text())
    wanted: dict[str, set[str]] = {}
    for a in captions["annotations"]:
        wanted.setdefault(f"{a['image_id']:012d}", set()).add(" ".join(a["caption"].split()))
    boxes = json.loads((folder / "annotations.json").read_text())["annotations"]
    found = samples(tmp_path / "dst")
    assert {k: set(m["txt"].decode().split("\n")) for k, m in found.items()} == wanted
    assert sum(len(json.loads(m["json"])["boxes"]) for m in found.values()) == sum(
        f"{b['image_id']:012d}" in wanted for b in boxes
    )
    for key, members in found.items():
        assert members["jpg"] == (folder / f"images/{key}.jpg").read_bytes()


def table(folder: Path, rows: list[dict[str, str]], name: str = "t.csv", **dialect: Any) -> Path:
    sink = io.StringIO()
    writer = csv.DictWriter(sink, list(rows[0]), **dialect)
    writer.writeheader()
    writer.writerows(rows)
    return write(folder, {name: sink.getvalue()}) / name


ROWS = [
    {"path": "images/0.png", "title": "a shirt", "colour": "red", "id": "s-0"},
    {"path": "images/1.png", "title": "a, quoted\nskirt", "colour": "", "id": "s.1"},
    {"path": "images/0.png", "title": "the same image", "colour": "blue", "id": "s-2"},
]


@pytest.mark.parametrize("form", ["csv", "tsv", "parquet", "bytes", "struct"])
def test_the_same_table_in_every_form(tmp_path: Path, form: str) -> None:
    images_in(tmp_path / "images")
    if form in ("csv", "tsv"):
        src = table(tmp_path, ROWS, f"t.{form}", delimiter="\t" if form == "tsv" else ",")
    else:
        src, columns = tmp_path / "t.parquet", pa.Table.from_pylist(ROWS)
        data = [(tmp_path / row["path"]).read_bytes() for row in ROWS]
        if form == "bytes":
            columns = columns.set_column(0, "path", pa.array(data))
        elif form == "struct":
            columns = columns.set_column(0, "path", pa.array([{"bytes": d, "path": "x"} for d in data]))
        pq.write_table(columns, src, row_group_size=2)
    chosen = Columns("path", ("title", "colour"), key="id", keep=("id", "colour"))
    result = pack(src, tmp_path / "dst", {"max_count": 2}, columns=chosen)
    found = samples(tmp_path / "dst")
    assert result["samples"] == 3 and result["shards"] == 2 and result["refused"] == {}
    other = next(k for k in found if k.startswith("s_1-"))
    assert sorted(found) == sorted(["s-0", "s-2", other])
    assert found["s-0"]["txt"] == b"a shirt . red" and found[other]["txt"] == b"a, quoted\nskirt"
    assert json.loads(found["s-2"]["json"]) == {"id": "s-2", "colour": "blue"}
    assert found[other]["png"] == image(1) and found["s-0"]["png"] == found["s-2"]["png"] == image(0)
    assert origins(tmp_path / "dst")["s-2"][0] == src.name and origins(tmp_path / "dst")["s-2"][2] == 2


def test_text_from_a_template(tmp_path: Path) -> None:
    images_in(tmp_path / "images")
    chosen = Columns("path", template="{title} in {colour}.")
    result = pack(table(tmp_path, [*ROWS, dict.fromkeys(ROWS[0], "")]), tmp_path / "dst", columns=chosen)
    assert samples(tmp_path / "dst")["t/0000000"]["txt"] == b"a shirt in red."
    assert result["refused"] == {"no_text": 1}


BAD_ROWS = {
    "unreadable_file": {"path": "images/9.png"},
    "unsafe_path": {"path": "/etc/passwd"},
    "unsafe_path ": {"path": "images/../../x.png"},
    "no_text": {"title": " "},
    "duplicate_key": {"id": "s-0"},
    "no_key": {"id": ""},
}


@pytest.mark.parametrize("reason", BAD_ROWS)
def test_a_row_that_cannot_be_used(tmp_path: Path, reason: str) -> None:
    images_in(tmp_path / "images")
    src = table(tmp_path, [*ROWS, {**ROWS[0], "id": "s-9", **BAD_ROWS[reason]}])
    result = pack(src, tmp_path / "dst", {"max_count": 1}, columns=Columns("path", ("title",), key="id"))
    assert result["refused"] == {reason.strip(): 1} and result["samples"] == 3 and result["conserved"]
    (found,) = refused(tmp_path / "dst").values()
    assert "row 3" in found[1], "the detail says which row"


def test_rows_of_another_length_and_bytes_that_are_no_text(tmp_path: Path) -> None:
    images_in(tmp_path / "images")
    body = b"path,title\nimages/0.png,good\nimages/1.png,too,many\nimages/2.png,caf\xe9\n\nimages/3.png,good\n"
    result = pack(write(tmp_path, {"t.csv": body}) / "t.csv", tmp_path / "dst", columns=Columns("path", ("title",)))
    assert result["refused"] == {"bad_row": 1, "not_utf8": 1} and result["samples"] == 2


BAD_TABLES = {
    r"no column 'titel' \(did you mean 'title'\?\); it has path, title": Columns("path", ("titel",)),
    "no column 'file'": Columns("file", ("title",)),
    "needs --image-column": Columns("", ("title",)),
    "needs --text-column": Columns("path"),
    "is not the plain name of a column": Columns("path", template="{title.__class__}"),
    "is not the plain name of a column ": Columns("path", template="{title!r}"),
    "--text-template '{title': ": Columns("path", template="{title"),
}


@pytest.mark.parametrize("message", BAD_TABLES)
@pytest.mark.parametrize("form", ["csv", "parquet"])
def test_a_question_that_the_table_cannot_answer(tmp_path: Path, message: str, form: str) -> None:
    images_in(tmp_path / "images")
    src = table(tmp_path, ROWS)
    if form == "parquet":
        src = tmp_path / "t.parquet"
        pq.write_table(pa.Table.from_pylist(ROWS), src)
    with pytest.raises(VillaError, match=message.strip() if "(" in message else None) as error:
        pack(src, tmp_path / "dst", columns=BAD_TABLES[message], kind="table")
    assert "(" in message or message.strip() in str(error.value)


def test_tables_that_are_none(tmp_path: Path) -> None:
    chosen = Columns("path", ("title",))
    cases = {
        "holds a URL": {"t.csv": "path,title\nhttps://x.org/a.jpg,t\n"},
        "not readable as Parquet": {"t.parquet": b"PAR1 not"},
        "no rows": {"t.csv": "path,title\n"},
        "it has $": {"t.csv": ""},
        "2 columns called 'title'": {"t.csv": "path,title,title\n"},
        "is in .* point --images": {"t.csv": "path,title\nnowhere.png,t\n"},
        "quote that is never closed": {"t.csv": 'path,title\nx.png,"' + "x" * (17 << 20)},
    }
    for at, (message, files) in enumerate(cases.items()):
        src = write(tmp_path / str(at), files) / next(iter(files))
        with pytest.raises(VillaError, match=message):
            pack(src, tmp_path / "dst", columns=chosen)
    numbers = tmp_path / "n.parquet"
    pq.write_table(pa.table({"path": [b"\xff"], "title": [b"bytes"]}), numbers)
    with pytest.raises(VillaError, match="'title' holds bytes, where text is needed"):
        pack(numbers, tmp_path / "dst", columns=chosen)


def test_bytes_in_parquet_are_read_a_part_at_a_time(tmp_path: Path) -> None:
    """Any cut into shards gives the samples of one shard, row groups and empty cells notwithstanding."""
    data = [image(i) if i % 7 else None for i in range(70)]
    src = tmp_path / "t.parquet"
    pq.write_table(pa.table({"image": data, "text": [f"text {i}" for i in range(70)]}), src, row_group_size=33)
    chosen = Columns("image", ("text",))
    whole = pack(src, tmp_path / "whole", columns=chosen)
    parts = pack(src, tmp_path / "parts", {"max_count": 8}, columns=chosen)
    assert whole["refused"] == parts["refused"] == {"no_image": 10} and parts["shards"] == 9
    assert samples(tmp_path / "whole") == samples(tmp_path / "parts")
    assert samples(tmp_path / "whole")["t/0000034"] == {"png": data[34], "txt": b"text 34"}


def test_several_tables_keep_their_rows_apart(tmp_path: Path) -> None:
    for name in ("x/t.csv", "y/t.csv", "u.csv"):
        table(tmp_path / "tables", ROWS, name)
    images_in(tmp_path / "images")
    result = pack(tmp_path / "tables", tmp_path / "dst", columns=Columns("path", ("title",)), images=str(tmp_path))
    assert result["samples"] == 9
    assert {o[0] for o in origins(tmp_path / "dst").values()} == {"tables/u.csv", "tables/x/t.csv", "tables/y/t.csv"}


@needs_data
def test_a_real_table(tmp_path: Path) -> None:
    src = SHARED_DATA / "fashion/styles.csv"
    chosen = Columns("file", template="{productDisplayName}. {baseColour}", keep=("season",))
    result = pack(src, tmp_path / "one", {"check": "header"}, columns=chosen)
    assert result["samples"] == 1000 and result["refused"] == {}
    parts = pack(src, tmp_path / "two", {"check": "header", "max_count": 300}, columns=chosen)
    assert parts["shards"] == 4 and samples(tmp_path / "one") == samples(tmp_path / "two")
    assert contents(tmp_path / "one") != contents(tmp_path / "two")
    assert samples(tmp_path / "one")["styles/0000001"]["txt"] == b"Nike Men Town Navy Blue T-Shirts. Navy Blue"
