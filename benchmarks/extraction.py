"""Claim: 66,000 captions a second on a core at 100,000 phrases, ids and places alike.

    python -m benchmarks.extraction DATA [PHRASES]

DATA holds text/ (COCO captions, web alt-texts, category lists, WordNet) and, for the sanity figures, natural/. The
phrases are the lists' own, made up to PHRASES with pairs of an adjective and a noun. CPU seconds, median of five runs
over all texts after one that fills the caches. The baselines see the same phrases and lemmas:

    trie      a dict of dicts over words, longest match, as FlashText does over characters
    n-grams   every run of up to five words looked up in a set
    regex     one alternation of all phrases, longest first, over the folded text (on a few captions only)
"""

from __future__ import annotations

import json
import random
import re
import resource
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from villa_dist.attributes.extract import PhraseMatcher
from villa_dist.attributes.lemma import lemma
from villa_dist.attributes.lists import read_list
from villa_dist.attributes.phrases import Phrase, key, merge
from villa_dist.attributes.words import pattern, word

LISTS = ("lvis_22k_categories.json", "openimages_categories.json", "imagenet_classnames.json")
WORDNET = ("wordnet31/index.adj", "wordnet31/index.adv", "wordnet31/index.verb")
LONGEST, RUNS, REGEX_TEXTS = 5, 5, 40


def phrases(text: Path, count: int) -> list[str]:
    lists = [read_list(str(text / name)).phrases for name in (*LISTS, *WORDNET)]
    listed = list(merge(lists).phrases)
    adjectives = [p.phrase for p in listed if p.group == "adjective" and len(key(p.phrase)) == 1]
    nouns = [p.phrase for p in listed if p.group.startswith("lvis") and len(key(p.phrase)) == 1]
    rng = random.Random(0)
    while len(listed) < count:
        made = [Phrase(f"{rng.choice(adjectives)} {rng.choice(nouns)}") for _ in range(count - len(listed))]
        listed = list(merge([listed, made]).phrases)
    return [p.phrase for p in listed[:count]]


def cpu_seconds(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def rate(texts: Sequence[str], find: Callable[[str], object], runs: int = RUNS) -> float:
    """Texts a CPU-second."""

    def over_all() -> None:
        for text in texts:
            find(text)

    over_all()
    return len(texts) / statistics.median(cpu_seconds(over_all) for _ in range(runs))


class Lemmas(dict[str, str]):
    def __missing__(self, token: str) -> str:
        self[token] = made = lemma(word(token))
        return made


def trie_finder(names: Sequence[str]) -> Callable[[str], list[int]]:
    root: dict[str, Any] = {}
    for index, name in enumerate(names):
        node = root
        for said in map(lemma, key(name)):
            node = node.setdefault(said, {})
        node.setdefault("", index)
    lemmas = Lemmas()

    def find(text: str) -> list[int]:
        folded = text.lower()
        said = [lemmas[t] for t in pattern(folded).findall(folded)]
        found, at = [], 0
        while at < len(said):
            node, best, after = root, None, at + 1
            for end in range(at, len(said)):
                node = node.get(said[end])
                if node is None:
                    break
                if "" in node:
                    best, after = node[""], end + 1
            if best is not None:
                found.append(best)
            at = after
        return found

    return find


def ngram_finder(names: Sequence[str]) -> Callable[[str], list[int]]:
    ids: dict[str, int] = {}
    for index, name in enumerate(names):
        ids.setdefault(" ".join(map(lemma, key(name))), index)
    lemmas = Lemmas()

    def find(text: str) -> list[int]:
        folded = text.lower()
        said = [lemmas[t] for t in pattern(folded).findall(folded)]
        found, at = [], 0
        while at < len(said):
            for size in range(min(LONGEST, len(said) - at), 0, -1):
                index = ids.get(" ".join(said[at : at + size]))
                if index is not None:
                    found.append(index)
                    break
            else:
                size = 1
            at += size
        return found

    return find


def regex_finder(names: Sequence[str]) -> Callable[[str], list[str]]:
    longest_first = sorted({" ".join(key(n)) for n in names}, key=len, reverse=True)
    found = re.compile(rf"\b(?:{'|'.join(map(re.escape, longest_first))})\b")
    return lambda text: found.findall(text.lower())


def sanity(data: Path) -> dict[str, Any]:
    """Of the kinds of things boxed in photos, the share that one of the photo's captions names, by three ways to look."""
    instances = json.loads((data / "natural/annotations.json").read_text())
    captions = json.loads((data / "natural/captions.json").read_text())["annotations"]
    names = {c["id"]: c["name"] for c in instances["categories"]}
    boxed: dict[int, set[str]] = {}
    for box in instances["annotations"]:
        boxed.setdefault(box["image_id"], set()).add(names[box["category_id"]])
    said: dict[int, list[str]] = {}
    for caption in captions:
        said.setdefault(caption["image_id"], []).append(caption["caption"])
    order = list(names.values())
    matcher = PhraseMatcher(order)
    spelled = {n: re.compile(rf"\b{re.escape(n)}\b") for n in order}
    ways: dict[str, Callable[[str], set[str]]] = {
        "matcher": lambda t: {order[i] for i in matcher.find(t)},
        "exact_words": lambda t: {n for n in order if spelled[n].search(t.lower())},
        "substring": lambda t: {n for n in order if n in t.lower()},
    }
    result = {}
    for way, look in ways.items():
        right = found = there = 0
        for image, texts in said.items():
            named, boxes = set().union(*map(look, texts)), boxed.get(image, set())
            right, found, there = right + len(named & boxes), found + len(named), there + len(boxes)
        result[way] = {"precision": round(100 * right / found, 1), "recall": round(100 * right / there, 1)}
    return result


def main() -> None:
    data, count = Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 100_000
    text = data / "text"
    captions = [
        a["caption"]
        for a in json.loads((text / "coco_captions_val2017_without_heldout.json").read_text())["annotations"]
    ]
    alts = [t for t in pq.read_table(text / "web_alt_text/test_10000.parquet")["TEXT"].to_pylist() if t]
    names = phrases(text, count)
    lemma("warm up")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.process_time()
    matcher = PhraseMatcher(names)
    built = time.process_time() - start
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    reports = PhraseMatcher(names, negation="reports")
    result: dict[str, Any] = {
        "phrases": len(names),
        "build_cpu_s": round(built, 2),
        "build_peak_mb": round((after - before) / 1024),
        "mentions_a_caption": round(sum(len(matcher.find(c)) for c in captions) / len(captions), 2),
    }
    for name, texts in (("coco", captions), ("alt_text", alts)):
        result[f"{name}_texts_a_cpu_s"] = {
            "ids": round(rate(texts, matcher.find)),
            "spans": round(rate(texts, matcher.mentions)),
            "attributes": round(rate(texts, matcher.attributes)),
            "spans, reports": round(rate(texts, reports.mentions)),
            "trie": round(rate(texts, trie_finder(names))),
            "n-grams": round(rate(texts, ngram_finder(names))),
            "regex": round(rate(texts[:REGEX_TEXTS], regex_finder(names), 1), 1),
        }
    trie = trie_finder(names)
    result["captions_where_the_trie_differs"] = sum(matcher.find(c) != trie(c) for c in captions)
    if (data / "natural").is_dir():
        result["named_things"] = sanity(data)
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
