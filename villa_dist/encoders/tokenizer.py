"""Tokenizers of published text towers, as data: a `tokenizers` JSON and how its texts are padded. No code is loaded."""

from __future__ import annotations

import gzip
import html
import os
import string
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors

from shards.errors import VillaError

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # ranks and actors are the parallelism here
CLIP_MERGES = 49_152 - 256 - 2  # lines of the vocabulary file that CLIP uses
CLIP_PATTERN = r"""<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"""
START, END = "<|startoftext|>", "<|endoftext|>"


def resolve_entities(text: str) -> str:
    """HTML entities, twice, as CLIP's own tokenizer does."""
    return html.unescape(html.unescape(text))


def canonical(text: str) -> str:
    """Lower case, no ASCII punctuation, single spaces: what SigLIP's own tokenizer does first."""
    return " ".join(text.lower().translate(NO_PUNCTUATION).split())


NO_PUNCTUATION = str.maketrans("", "", string.punctuation)
CLEAN: dict[str, Callable[[str], str]] = {"none": str, "html": resolve_entities, "canonical": canonical}


@dataclass(frozen=True)
class TextTokenizer:
    """content: the JSON of a `tokenizers` tokenizer. length: most tokens of a text, special ones included.

    pad_to: "longest" of a batch where what follows the end of a text cannot matter (CLIP's causal towers), else always
    "length" (SigLIP attends to its padding and pools the last place).
    """

    content: str
    length: int
    pad: int
    pad_to: Literal["longest", "length"] = "longest"
    side: Literal["right", "left"] = "right"
    clean: Literal["none", "html", "canonical"] = "none"  # before tokenizing; see CLEAN

    def as_json(self) -> dict[str, Any]:
        """All but `content`, which is a file of its own."""
        names = ("length", "pad", "pad_to", "side", "clean")
        return {name: getattr(self, name) for name in names}

    @cached_property
    def _tokenizer(self) -> Tokenizer:
        try:
            tokenizer = Tokenizer.from_str(self.content)
        except Exception as error:  # the library raises plain Exception
            raise VillaError(f"the tokenizer cannot be read ({error}); restore its tokenizer.json") from error
        tokenizer.no_padding()
        tokenizer.enable_truncation(self.length)
        return tokenizer

    def ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text, special tokens included, cut to `length`; not padded, never empty."""
        clean = [CLEAN[self.clean](t.encode("utf-8", "replace").decode()) for t in texts]  # no lone surrogates
        return [e.ids or [self.pad] for e in self._tokenizer.encode_batch(clean, add_special_tokens=True)]

    @property
    def size(self) -> int:
        """Ids there are, added tokens aside, which checkpoints may have without using them."""
        return int(self._tokenizer.get_vocab_size(with_added_tokens=False))


def clip_tokenizer(path: str, length: int) -> TextTokenizer:
    """CLIP's byte-pair encoding from its vocabulary file, bpe_simple_vocab_16e6.txt.gz (or unzipped).

    Case is folded, HTML entities are resolved, spaces are joined. OpenAI also mends broken encodings with `ftfy`, which this
    leaves out. Raises: VillaError when the file is not that vocabulary.
    """
    try:
        with open(path, "rb") as file:
            data = file.read()
        lines = (gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data).decode("utf-8").split("\n")
    except (OSError, EOFError, gzip.BadGzipFile, UnicodeDecodeError, ValueError) as error:
        raise VillaError(
            f"model.text.vocabulary: {path} cannot be read ({error}); give CLIP's bpe_simple_vocab_16e6.txt.gz"
        ) from error
    pairs = [tuple(line.split()) for line in lines[1 : CLIP_MERGES + 1]]
    if len(pairs) < CLIP_MERGES or any(len(p) != 2 for p in pairs):
        raise VillaError(
            f"model.text.vocabulary: {path} is not CLIP's vocabulary of {CLIP_MERGES} merges, one pair a line after the "
            "first; give bpe_simple_vocab_16e6.txt.gz"
        )
    try:
        return bpe_tokenizer([(a, b) for a, b in pairs], length)
    except Exception as error:  # the library raises plain Exception, for a merge of unknown parts
        raise VillaError(
            f"model.text.vocabulary: {path} is damaged ({error}); give CLIP's bpe_simple_vocab_16e6.txt.gz"
        ) from error


def bpe_tokenizer(pairs: Sequence[tuple[str, str]], length: int) -> TextTokenizer:
    """CLIP's tokenizer with these merges: ids are the bytes, the bytes that end a word, the merges, start and end."""
    letters = byte_letters()
    words = [*letters, *(v + "</w>" for v in letters), *("".join(p) for p in pairs), START, END]
    vocabulary = {word: index for index, word in enumerate(words)}
    bpe = models.BPE(
        vocab=vocabulary,
        merges=list(pairs),
        continuing_subword_prefix="",
        end_of_word_suffix="</w>",
        unk_token=END,
        fuse_unk=False,
    )
    tokenizer = Tokenizer(bpe)
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Strip(), normalizers.Lowercase()]
    )
    split = pre_tokenizers.Split(Regex(CLIP_PATTERN), behavior="removed", invert=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    end, start = vocabulary[END], vocabulary[START]
    tokenizer.post_processor = processors.RobertaProcessing((END, end), (START, start), False, False)
    return TextTokenizer(tokenizer.to_str(), length, pad=0, clean="html")


def byte_letters() -> list[str]:
    """The 256 printable letters that stand for bytes, in the order of CLIP's (and GPT-2's) ids."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in printable]
    return [chr(b) for b in printable] + [chr(256 + i) for i in range(len(others))]
