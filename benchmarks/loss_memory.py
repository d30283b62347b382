"""Claim: the tiled losses need an eighth of the memory of one matrix of logits, at its time, for the same gradient; and a
step encodes a fifth of the texts that it has pairs, or fewer.

python -m benchmarks.loss_memory [--rounds 5] [--losses multi_positive,sigmoid] [--tile N]

Forward and backward over 16,384 regions x 4,096 texts of width 512, four positives a region, on one thread; every figure
from a process of its own, medians over rounds. Memory is the peak resident set beyond what embeddings and libraries
take, so the gradients of the embeddings are in it. The plain forms hold one matrix and are differentiated by autograd.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from villa_dist.docmnist.digits import load
from villa_dist.docmnist.generate import ShardPlan, generate
from villa_dist.docmnist.words import PROMPTS
from villa_dist.losses import Pairs, infonce, multi_positive, sigmoid

REGIONS, TEXTS, DIM, POSITIVES = 16_384, 4_096, 512, 4
SCALE, BIAS = 1 / 0.07, -10.0
Inputs = tuple[Tensor, Tensor, Tensor, Tensor, Pairs]


def inputs() -> Inputs:
    """Unit embeddings with some structure, so that gradients are not those of noise alone."""
    torch.manual_seed(0)
    v = F.normalize(torch.randn(TEXTS, DIM), dim=-1)
    text = torch.stack([torch.randperm(TEXTS)[:POSITIVES] for _ in range(REGIONS)])
    u = torch.empty(REGIONS, DIM)
    for at in range(0, REGIONS, 1024):  # no large temporary, which would count as the peak
        u[at : at + 1024] = F.normalize(v[text[at : at + 1024]].sum(1) + 0.05 * torch.randn(1024, DIM), dim=-1)
    pairs = Pairs(torch.arange(REGIONS).repeat_interleave(POSITIVES), text.flatten())
    leaves = (u, v, torch.tensor(SCALE), torch.tensor(BIAS))
    return (*(x.requires_grad_() for x in leaves), pairs)  # type: ignore[return-value]


# ---- plain forms, as short of memory as one matrix allows


def plain_multi_positive(u: Tensor, v: Tensor, scale: Tensor, bias: Tensor, pairs: Pairs) -> Tensor:
    logits = scale * (u @ v.T)
    positive = logits[pairs.region, pairs.text]
    halves = []
    for direction, index in enumerate(pairs):
        counts = torch.bincount(index, minlength=logits.shape[direction])
        mean = torch.zeros(len(counts)).index_add(0, index, positive) / counts.clamp(min=1)
        halves.append((logits.logsumexp(1 - direction) - mean)[counts > 0].mean())
    return 0.5 * (halves[0] + halves[1])


def plain_sigmoid(u: Tensor, v: Tensor, scale: Tensor, bias: Tensor, pairs: Pairs) -> Tensor:
    logits = scale * (u @ v.T) + bias
    return (F.softplus(logits).sum() - logits[pairs.region, pairs.text].sum()) / len(pairs.region)


def plain_infonce(u: Tensor, v: Tensor, scale: Tensor, bias: Tensor, pairs: Pairs) -> Tensor:
    total = torch.zeros(len(u), v.shape[1]).index_add(0, pairs.region, v[pairs.text])
    logits = scale * (u @ F.normalize(total, dim=-1).T)
    here = torch.arange(len(u))
    return 0.5 * (F.cross_entropy(logits, here) + F.cross_entropy(logits.T, here))


FORMS: dict[str, dict[str, Callable[..., Tensor]]] = {
    "multi_positive": {"plain": plain_multi_positive, "tiled": lambda u, v, s, b, p, t: multi_positive(u, v, s, p, t)},
    "sigmoid": {"plain": plain_sigmoid, "tiled": lambda u, v, s, b, p, t: sigmoid(u, v, s, b, p, t)},
    "infonce": {"plain": plain_infonce, "tiled": lambda u, v, s, b, p, t: infonce(u, v, s, p, t)},
}


# ---- one process


def measure(loss: str, form: str, tile: int | None, keep: str | None) -> dict[str, float]:
    torch.set_num_threads(1)
    made = inputs()
    (torch.randn(64, 64) @ torch.randn(64, 64)).exp().sum()  # libraries load what they need
    ctypes.CDLL(None).malloc_trim(0)  # else what making the inputs left free would be used unseen
    Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten
    before = peak_mib()
    wall, cpu = time.perf_counter(), time.process_time()
    value = FORMS[loss][form](*made) if form == "plain" else FORMS[loss][form](*made, tile)
    value.backward()
    found = {
        "mib": peak_mib() - before,
        "cpu": time.process_time() - cpu,
        "seconds": time.perf_counter() - wall,
        "loss": value.item(),
    }
    if keep:
        torch.save([x.grad for x in made[:3]], keep)
    return found


def peak_mib() -> float:
    status = Path("/proc/self/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) / 1024


def in_a_process(*arguments: str) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.loss_memory", "--one", *arguments]
    found: dict[str, float] = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    return found


# ---- tables


def losses(names: list[str], rounds: int, tile: str) -> list[dict[str, Any]]:
    print("| loss | form | peak MiB | CPU s | clock s | x memory | x CPU | gradient cosine |\n" + "|---" * 8 + "|")
    rows = []
    for name in names:
        with tempfile.TemporaryDirectory() as folder:
            each: dict[str, list[dict[str, float]]] = {"plain": [], "tiled": []}
            for number in range(rounds):  # in turn, so that both see the same machine
                for form, kept in each.items():
                    kept.append(in_a_process(name, form, tile, f"{folder}/{form}.pt" if number == 0 else ""))
            grads = [torch.load(f"{folder}/{form}.pt") for form in each]
        cosine = min(
            F.cosine_similarity(a.flatten().double(), b.flatten().double(), dim=0).item()
            for a, b in zip(*grads, strict=True)
        )
        middle = {f: {k: statistics.median(m[k] for m in kept) for k in kept[0]} for f, kept in each.items()}
        for form, m in middle.items():
            ratio = {k: m[k] / middle["plain"][k] for k in ("mib", "cpu")}
            shown = f"{m['mib']:,.0f} | {m['cpu']:.2f} | {m['seconds']:.2f} | {ratio['mib']:.3f} | {ratio['cpu']:.2f}"
            print(f"| {name} | {form} | {shown} | {f'{cosine:.9f}' if form == 'tiled' else '1'} |", flush=True)
            rows.append({"loss": name, "form": form, **m, "cosine": cosine, "rounds": rounds})
    return rows


def texts(target: int, images: int = 64, batches: int = 50) -> dict[str, float]:
    """Pairs and distinct texts of DocMNIST batches of the study's size."""
    shard = generate(target, 0, "train", ShardPlan(0, images * batches), images * batches, load("train", None))
    pairs = [shard.attributes[shard.image_of // images == b] for b in range(batches)]
    said = statistics.fmean(int(p.sum()) for p in pairs)
    distinct = statistics.fmean(int(p.any(0).sum()) for p in pairs)
    prompts = statistics.fmean(sum(len(PROMPTS[a]) for a in p.any(0).nonzero()[0]) for p in pairs)
    found = {"target": target, "c": said / images, "pairs": said, "texts": distinct, "prompts": prompts}
    print(
        f"| {target} | {said / images:.1f} | {said:,.0f} | {distinct:.0f} | {said / distinct:.1f} | {prompts:.0f} | "
        f"{said / prompts:.1f} |"
    )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--losses", default="multi_positive,sigmoid")
    parser.add_argument("--tile", default="", help="rows at once; left out: as in training")
    parser.add_argument("--one", nargs=4, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        loss, form, tile, keep = given.one
        print(json.dumps(measure(loss, form, int(tile) if tile else None, keep)))
        return
    rows = losses(given.losses.split(","), given.rounds, given.tile)
    print(
        "\n| DocMNIST, 64 images a step, target | pairs an image | pairs | texts | pairs a text | prompts | pairs a prompt |"
    )
    print("|---" * 7 + "|")
    counts = [texts(target) for target in (6, 16, 33)]
    print(json.dumps({"losses": rows, "texts": counts}))


if __name__ == "__main__":
    main()
