"""CLIP's files as OpenAI and open_clip publish them: reading, naming, tokenizing, and refusing what would run code."""

from __future__ import annotations

import gzip
import html
import io
import json
import os
import pickle
import unicodedata
import warnings
import zipfile
from pathlib import Path
from typing import Any

import pytest
import regex
import tiny_clip as tiny
import torch
from safetensors.torch import save_file

from shards.errors import VillaError
from villa_dist import models
from villa_dist.config import ModelConfig
from villa_dist.encoders.openai import read_tensors
from villa_dist.encoders.tokenizer import byte_letters, clip_tokenizer
from villa_dist.vlm.model import RegionVLM


@pytest.fixture(scope="module")
def state() -> dict[str, torch.Tensor]:
    return tiny.state_dict()


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny.vocabulary(tmp_path_factory.mktemp("vocabulary"))


def config(weights: Path | str, vocabulary: str) -> ModelConfig:
    values = {"image": {"kind": "clip_rn50"}, "text": {"vocabulary": vocabulary}, "weights": str(weights)}
    return ModelConfig.model_validate(values)


def refusal(weights: Path, vocabulary: str) -> str:
    with pytest.raises(VillaError) as error:
        RegionVLM(config(weights, vocabulary))
    assert str(weights) in str(error.value)
    return str(error.value)


def torchscript(state: dict[str, torch.Tensor], path: Path) -> None:
    """As OpenAI makes them: traced, half precision, with sizes among the attributes."""
    module = tiny.module_of(state)
    module.register_buffer("input_resolution", torch.tensor(tiny.SIDE))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.trace(module, torch.zeros(1)).save(str(path))


@pytest.mark.parametrize("form", ["torchscript", "safetensors", "state_dict", "open_clip"])
def test_every_published_form_gives_the_same_model(
    state: dict[str, torch.Tensor], vocabulary: str, tmp_path: Path, form: str
) -> None:
    half = {n: t.half() if t.is_floating_point() else t for n, t in state.items()}
    path = tmp_path / ("m.safetensors" if form == "safetensors" else "m.pt")
    if form == "torchscript":
        torchscript(half, path)
        with pytest.raises(RuntimeError, match="TorchScript"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.load(path, weights_only=True)  # why there is a reader of our own
    elif form == "safetensors":
        save_file(half, path)
    elif form == "open_clip":
        text = ("token_embedding", "transformer", "ln_final", "text_projection", "positional_embedding")
        named = {f"module.{'text.' if n.startswith(text) else ''}{n}": t for n, t in half.items()}
        torch.save({"epoch": 3, "name": "x", "state_dict": named, "optimizer": {"lr": 1.0}}, path)
    else:
        torch.save(half, path)
    vlm = RegionVLM(config(path, vocabulary))
    for name, tensor in state.items():
        own = name.replace("visual.", "image.") if name.startswith("visual.") else f"text.{name}"
        found = vlm.log_scale[0] if name == "logit_scale" else vlm.state_dict()[own]
        assert found.dtype in (torch.float32, torch.int64)
        assert torch.allclose(found, tensor.half().to(found.dtype)), name


def test_a_finished_model_is_read_without_the_checkpoint(
    state: dict[str, torch.Tensor], vocabulary: str, tmp_path: Path
) -> None:
    torch.save(state, tmp_path / "m.pt")
    vlm = RegionVLM(config(tmp_path / "m.pt", vocabulary)).eval()
    models.write(str(tmp_path / "done"), vlm, "f")
    (tmp_path / "m.pt").unlink()
    again = models.load_vlm(str(tmp_path / "done"))
    pixels = torch.randint(0, 256, (1, 3, 80, 100), dtype=torch.uint8)
    with torch.no_grad():
        assert torch.equal(again.embed_whole(pixels), vlm.embed_whole(pixels))
        assert torch.equal(again.embed_texts(again.tokenize(["a cat"])), vlm.embed_texts(vlm.tokenize(["a cat"])))
    (tmp_path / "done" / "tokenizer.json").write_text("{}")
    with pytest.raises(VillaError, match=r"tokenizer\.json was changed"):
        models.load_vlm(str(tmp_path / "done"))


# ---- files that would run code


class Canary:
    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.place),)


def test_a_pickle_that_would_run_code_is_refused(vocabulary: str, tmp_path: Path) -> None:
    canary = tmp_path / "ran"
    torch.save({"state_dict": {"visual.conv1.weight": Canary(canary)}}, tmp_path / "m.pt")
    said = refusal(tmp_path / "m.pt", vocabulary)
    assert "nothing ran" in said and "mkdir" in said and "safetensors" in said
    (tmp_path / "m.bin").write_bytes(pickle.dumps({"a": Canary(canary)}, 2))
    assert "nothing ran" in refusal(tmp_path / "m.bin", vocabulary)
    assert not canary.exists()
    torch.load(tmp_path / "m.pt", weights_only=False)
    assert canary.exists(), "the canary would have sung"


def test_a_torchscript_archive_that_would_run_code_is_refused(
    state: dict[str, torch.Tensor], vocabulary: str, tmp_path: Path
) -> None:
    canary = tmp_path / "ran"
    torchscript({"conv.weight": torch.ones(2, 2)}, tmp_path / "good.pt")
    with zipfile.ZipFile(tmp_path / "good.pt") as good, zipfile.ZipFile(tmp_path / "bad.pt", "w") as bad:
        for name in good.namelist():
            data = good.read(name)
            bad.writestr(name, pickle.dumps(Canary(canary), 2) if name.endswith("data.pkl") else data)
    assert "nothing ran" in refusal(tmp_path / "bad.pt", vocabulary)
    assert not canary.exists()


def test_a_torchscript_tensor_cannot_reach_outside_its_storage(tmp_path: Path) -> None:
    torchscript({"conv.weight": torch.ones(2, 2)}, tmp_path / "good.pt")
    with zipfile.ZipFile(tmp_path / "good.pt") as good:
        files = {n: good.read(n) for n in good.namelist()}
    data = next(n for n in files if n.endswith("data.pkl"))
    assert b"(K\x02K\x02t" in files[data]
    files[data] = files[data].replace(b"(K\x02K\x02t", b"(K\x63K\x02t", 1)  # shape (99, 2)
    with zipfile.ZipFile(tmp_path / "bad.pt", "w") as bad:
        for name, content in files.items():
            bad.writestr(name, content)
    with pytest.raises(VillaError, match="outside its storage"):
        read_tensors(str(tmp_path / "bad.pt"))
    (tmp_path / "cut.pt").write_bytes((tmp_path / "good.pt").read_bytes()[:700])
    with pytest.raises(VillaError, match=r"cut\.pt"):
        read_tensors(str(tmp_path / "cut.pt"))


# ---- other mistakes


def test_wrong_files_are_named(state: dict[str, torch.Tensor], vocabulary: str, tmp_path: Path) -> None:
    assert "does not exist" in refusal(tmp_path / "none.pt", vocabulary)
    assert "is a folder" in refusal(tmp_path, vocabulary)
    (tmp_path / "text.pt").write_text("no checkpoint")
    assert "no whole checkpoint" in refusal(tmp_path / "text.pt", vocabulary)
    (tmp_path / "m.safetensors").write_bytes(b"\x08")
    assert "no whole safetensors" in refusal(tmp_path / "m.safetensors", vocabulary)

    def saved(changed: dict[str, Any]) -> str:
        torch.save(changed, tmp_path / "m.pt")
        return refusal(tmp_path / "m.pt", vocabulary)

    assert "visual.layer1.0.conv1.weight" in saved({"other": torch.ones(1)})
    assert "no tensors" in saved({"state_dict": {"n": 3}})
    assert "vision transformer" in saved({"visual.proj": torch.ones(1), "visual.class_embedding": torch.ones(1)})
    name = "visual.layer2.0.conv3.weight"
    cut = saved({**state, name: torch.ones(3, 3)})
    assert "image.layer2.0.conv3.weight has shape [3, 3]" in cut and "[64, 16, 1, 1]" in cut
    assert "lacks image.layer2.0.conv3.weight" in saved({n: t for n, t in state.items() if n != name})
    assert "unknown tensors extra.weight" in saved({**state, "extra.weight": torch.ones(1)})


def test_wrong_vocabularies_are_named(state: dict[str, torch.Tensor], tmp_path: Path) -> None:
    torch.save(state, tmp_path / "m.pt")

    def failure(path: Path) -> str:
        with pytest.raises(VillaError, match=r"model\.text\.vocabulary") as error:
            RegionVLM(config(tmp_path / "m.pt", str(path)))
        return str(error.value)

    assert "cannot be read" in failure(tmp_path / "none")
    short, broken = tmp_path / "short.txt", tmp_path / "broken.gz"
    short.write_text("#version\na b\n")
    assert "48894 merges" in failure(short)
    broken.write_bytes(gzip.compress(b"x" * 1000)[:-9])
    assert "cannot be read" in failure(broken)


# ---- the tokenizer


class Transcription:
    """OpenAI's SimpleTokenizer, without ftfy."""

    pattern = regex.compile(
        r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+", regex.IGNORECASE
    )

    def __init__(self, path: str) -> None:
        merges = gzip.decompress(Path(path).read_bytes()).decode().split("\n")[1 : 49_152 - 256 - 2 + 1]
        pairs = [tuple(m.split()) for m in merges]
        codes = list(range(33, 127)) + list(range(161, 173)) + list(range(174, 256))
        letters, extra = [chr(c) for c in codes], 0
        for byte in range(256):
            if byte not in codes:
                codes.append(byte)
                letters.append(chr(256 + extra))
                extra += 1
        self.letter = dict(zip(codes, letters, strict=True))
        words = letters + [v + "</w>" for v in letters] + ["".join(p) for p in pairs]
        self.ids = {w: i for i, w in enumerate([*words, "<|startoftext|>", "<|endoftext|>"])}
        self.rank = {p: i for i, p in enumerate(pairs)}

    def word(self, token: str) -> list[str]:
        parts = [*token[:-1], token[-1] + "</w>"]
        while len(parts) > 1:
            best = min(zip(parts, parts[1:], strict=False), key=lambda p: self.rank.get(p, float("inf")))
            if best not in self.rank:
                break
            merged, i = [], 0
            while i < len(parts):
                if i + 1 < len(parts) and (parts[i], parts[i + 1]) == best:
                    merged.append(parts[i] + parts[i + 1])
                    i += 2
                else:
                    merged.append(parts[i])
                    i += 1
            parts = merged
        return parts

    def __call__(self, text: str, length: int) -> list[int]:
        text = html.unescape(html.unescape(text)).strip()
        text = regex.sub(r"\s+", " ", unicodedata.normalize("NFC", text)).strip().lower()
        ids = []
        for token in self.pattern.findall(text):
            ids += [self.ids[p] for p in self.word("".join(self.letter[b] for b in token.encode()))]
        return [49_406, *ids[: length - 2], 49_407]


def test_byte_letters_are_all_and_distinct() -> None:
    assert len(set(byte_letters())) == 256 and byte_letters()[0] == "!"


def test_it_equals_openais_tokenizer_on_real_text(shared_data: Path) -> None:
    path = str(shared_data / "text" / "clip" / "bpe_simple_vocab_16e6.txt.gz")
    ours, theirs = clip_tokenizer(path, 77), Transcription(path)
    assert ours.ids(["a diagram", "a dog", "a cat"]) == [
        [49406, 320, 22697, 49407],
        [49406, 320, 1929, 49407],
        [49406, 320, 2368, 49407],
    ]
    captions = json.loads((shared_data / "text" / "coco_captions_val2017_without_heldout.json").read_text())
    rows = captions["annotations"] if isinstance(captions, dict) else captions
    texts = [r["caption"] if isinstance(r, dict) else str(r) for r in rows][:1500]
    texts += [
        "It's 3&amp;4 O'Clock!!",
        "Crème BRÛLÉE — 東京 🙂",
        "  tabs\tand\nlines ",
        "",
        "x" * 500,
        "1234 a1b2",
        "&lt;b&gt;",
    ]
    for text, found in zip(texts, ours.ids(texts), strict=True):
        assert found == theirs(text, 77), text


def test_lone_surrogates_do_not_stop_it(vocabulary: str) -> None:
    tokenizer = clip_tokenizer(vocabulary, 16)
    assert tokenizer.ids(["\ud83d cat"])[0][-2:] == tokenizer.ids(["cat"])[0][-2:]


def test_a_buffer_is_no_file(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    torch.save(torch.ones(2), buffer)
    (tmp_path / "one.pt").write_bytes(buffer.getvalue())
    with pytest.raises(VillaError, match="no tensors by name"):
        read_tensors(str(tmp_path / "one.pt"))
