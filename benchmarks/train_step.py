"""Claim: the trainer costs next to nothing beyond the model: its step against a bare loop's, and two ranks against one.

    python -m benchmarks.train_step [--rounds 7] [--out runs/train-step]         on CPUs, one thread a rank
    python -m benchmarks.train_step --gpu [--images 32,128,512,1024]             on one GPU, bf16

CPU: the quickstart's region VLM on DocMNIST's true pairs, batches of 64, all in one process, in turn within a round: a bare
loop (forward, backward, clip, AdamW), and what `train.loop` does a step with ZeRO 0 and 1, each with a loader of its own.
Then a compute-bound step (a vision transformer, no batch statistics) by one process and by two, the same global batch, in
turn; beside each round, what two processes that only count get of this machine.

GPU: CLIP's RN50 and ViT-B/16 at 224 pixels, random weights, 4 regions an image, bf16; MFU is of the measured peak of
bf16 products. Without DeepSpeed only the bare loop runs, with the trainer's own autocast.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.encoders import HALF, tower
from villa_dist.config import Config, ModelConfig
from villa_dist.config_file import load
from villa_dist.config_train import OptimConfig, TrainConfig
from villa_dist.data.loader import Batches, PairBatch, Recipe
from villa_dist.encoders.hf_library import config_class
from villa_dist.encoders.preprocess import Preprocess
from villa_dist.encoders.published import Published
from villa_dist.encoders.tokenizer import bpe_tokenizer
from villa_dist.pipeline import Pipeline
from villa_dist.runner import LocalRunner
from villa_dist.train import jobs
from villa_dist.train.agree import agree
from villa_dist.train.groups import parameter_groups
from villa_dist.train.local import free_port, set_rank_environment
from villa_dist.train.metrics import Meter, peak_flops
from villa_dist.train.objective import RegionObjective
from villa_dist.train.precision import in_format, training_format
from villa_dist.train.pulse import Pulse
from villa_dist.vlm.model import RegionVLM

QUICKSTART = Path(__file__).parents[1] / "configs" / "quickstart.yaml"
REGIONS = 4
BATCHES = (32, 128)  # images a step of the transformer: what a step costs beside its products is shared by more of them
Step = Callable[[PairBatch], torch.Tensor]


def bare_step(module: nn.Module, config: OptimConfig, device: torch.device) -> Step:
    """A plain loop's step with the same optimizer, clipping and number format."""
    module.to(device).train()
    dtype = training_format(config.precision, device)
    forward = in_format(module.__call__, dtype, device)
    optimizer = torch.optim.AdamW([g.as_torch() for g in parameter_groups(module, config)], lr=config.learning_rate)
    trained = [p for p in module.parameters() if p.requires_grad]

    def step(batch: PairBatch) -> torch.Tensor:
        loss: torch.Tensor = forward(batch.to(device))
        loss.backward()
        nn.utils.clip_grad_norm_(trained, config.clip)
        optimizer.step()
        optimizer.zero_grad()
        return loss

    return step


def engine_step(module: nn.Module, config: OptimConfig) -> tuple[Step, Any]:
    from villa_dist.train.engine import Engine

    engine = Engine(module, config)
    engine.module.train()

    def step(batch: PairBatch) -> torch.Tensor:
        loss = engine(batch.to(engine.device))
        engine.step(loss, config.learning_rate)
        return loss

    return step, engine


def alone() -> None:
    """The process group of one rank."""
    from villa_dist.train.engine import init_process_group

    set_rank_environment(0, 1, "127.0.0.1", free_port())
    init_process_group()


# ---- one process against a bare loop


@dataclass
class Turn:
    """A way to train, with what it took of each round. waited: seconds for data so far."""

    name: str
    batches: Iterator[tuple[int, PairBatch]]
    one: Callable[[int, PairBatch], None]
    waited: Callable[[], float]
    steps: int
    cpu: list[float] = field(default_factory=list)
    clock: list[float] = field(default_factory=list)
    waits: list[float] = field(default_factory=list)

    def run(self) -> None:
        waited, cpu, clock = self.waited(), time.process_time(), time.perf_counter()
        for _ in range(self.steps):
            self.one(*next(self.batches))
        self.cpu.append((time.process_time() - cpu) / self.steps)
        self.clock.append((time.perf_counter() - clock) / self.steps)
        self.waits.append((self.waited() - waited) / self.steps)


def overhead(out: Path, rounds: int) -> list[dict[str, Any]]:
    torch.set_num_threads(1)
    alone()
    sets = [f"run={out / 'data'}", "train.workers=1", "train.track=none", "evaluate.splits=[test]"]
    config = load(str(QUICKSTART), sets)
    Pipeline(config, LocalRunner()).run(("ingest", "vocabulary"))
    print(
        "\n| model | loop | CPU ms a step | clock ms | CPU, of bare | clock, of bare | waits for data |\n"
        + "|---" * 7
        + "|"
    )
    rows = []
    for model in ("quickstart", *(f"transformer, {n} images" for n in BATCHES)):
        turns = [turn(config, model, loop, out, rounds) for loop in ("bare", "ZeRO 0", "ZeRO 1")]
        for _ in range(rounds + 1):  # the first warms up
            for each in turns:
                each.run()
        for each in turns:
            found = compared(each, turns[0])
            rows.append({"model": model, "loop": each.name, **found})
            shown = f"{1000 * found['cpu']:.1f} | {1000 * found['clock']:.1f} | {found['cpu_ratio']:.3f}"
            shown += f" | {found['clock_ratio']:.3f} | {100 * found['waits']:.2f} %"
            print(f"| {model} | {each.name} | {shown} |", flush=True)
    return rows


def compared(one: Turn, bare: Turn) -> dict[str, float]:
    """Medians over rounds, of seconds a step and of ratios within a round."""
    cpu, clock, waits = one.cpu[1:], one.clock[1:], one.waits[1:]
    return {
        "cpu": statistics.median(cpu),
        "clock": statistics.median(clock),
        "cpu_ratio": statistics.median(a / b for a, b in zip(cpu, bare.cpu[1:], strict=True)),
        "clock_ratio": statistics.median(a / b for a, b in zip(clock, bare.clock[1:], strict=True)),
        "waits": sum(waits) / sum(clock),
    }


def turn(config: Config, model: str, name: str, out: Path, rounds: int) -> Turn:
    """The same model, data and optimizer; `bare` has nothing but the step, the others all that `train.loop` does in one."""
    torch.manual_seed(0)
    if model == "quickstart":
        steps, optim = 12, config.train
    else:
        count = int(model.split()[1])
        steps, optim = max(1, 96 // count), OptimConfig(batch_images=count, workers=1)
    total = steps * (rounds + 1)
    batches: Any
    waited: Callable[[], float] = float
    module: nn.Module
    if model == "quickstart":
        parts = jobs.region_vlm(config, "truth")
        shift = Recipe(shift_pixels=optim.shift_pixels)
        place = {"seed": 0, "window": optim.window, "rank": 0, "world": 1, "start": 0, "stop": total}
        batches = loader = Batches(parts.samples, batch_images=optim.batch_images, recipe=shift, **place)
        module, waited = parts.objective, lambda: loader.waited
    else:
        fixed = images(optim.batch_images, 64)
        batches, module = ((number, fixed) for number in range(total)), wide_objective()
    if name == "bare":
        plain = bare_step(module, optim, torch.device("cpu"))

        def just_step(number: int, batch: PairBatch) -> None:
            plain(batch)

        return Turn(name, iter(batches), just_step, waited, steps)
    optim = optim.model_copy(update={"zero_stage": int(name[-1]), "track": "none"})
    step, engine = engine_step(module, optim)
    folder = out / f"{model}-{name}".replace(" ", "")
    meter = Meter(engine, engine.module.vlm, optim, folder, stage="truth", start=0, steps=total)
    pulse = Pulse(folder, 0, 0)
    pulse.__enter__()

    def one(number: int, batch: PairBatch) -> None:
        torch.manual_seed(number)
        with meter.counting(number):
            loss = step(batch)
        agree(loss, engine.grad_norm, stop=False, save=False)
        meter.after(number, loss, optim.learning_rate, batch, waited())

    return Turn(name, iter(pulse.each(batches)), one, waited, steps)


# ---- two ranks against one


def wide_objective() -> RegionObjective:
    """A vision transformer of 6 layers of 256 over 64 patches: most of a step is matrix products."""
    sizes = {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 6, "num_attention_heads": 4}
    small = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 1}
    library = config_class("siglip")(
        text_config={**small, "vocab_size": 600, "projection_size": 256},
        vision_config={**sizes, "patch_size": 8, "image_size": 64},
    )
    made = Published("siglip", library.to_dict(), Preprocess(64, HALF, HALF), 256, 2.6, bpe_tokenizer([], 16))
    torch.manual_seed(0)
    return objective(RegionVLM(ModelConfig.model_validate({"image": {"kind": "hf"}, "weights": "random"}), made))


def objective(vlm: RegionVLM) -> RegionObjective:
    return RegionObjective(vlm, [["a"], ["b c"], ["d"]] * 7, TrainConfig(near_duplicates=None))


def images(count: int, side: int) -> PairBatch:
    make = torch.Generator().manual_seed(0)
    low = torch.rand(count * REGIONS, 2, generator=make) * side / 2
    return PairBatch(
        pixels=torch.randint(0, 256, (count, 3, side, side), dtype=torch.uint8, generator=make),
        texts=[],
        boxes=torch.cat([low, low + side / 8 + torch.rand(count * REGIONS, 2, generator=make) * side / 3], 1),
        image_of=torch.arange(count).repeat_interleave(REGIONS),
        region=torch.arange(count * REGIONS),
        attribute=torch.randint(0, 21, (count * REGIONS,), generator=make),
        feature=None,
        images=count,
    )


def serve(rank: int, world: int, port: int, pipe: Any, batch_images: int) -> None:
    """A rank that steps, or counts, when it is told to, and says how long that took."""
    from villa_dist.train.engine import init_process_group

    torch.set_num_threads(1)
    set_rank_environment(rank, world, "127.0.0.1", port)
    init_process_group()
    config = OptimConfig(batch_images=batch_images, workers=world, zero_stage=1)
    step, engine = engine_step(wide_objective(), config)
    batch = images(batch_images // world, 64)
    while (what := pipe.recv()) is not None:
        start, cpu = time.perf_counter(), time.process_time()
        if what == "count":
            sum(range(8_000_000))
        else:
            agree(step(batch), engine.grad_norm, stop=False, save=False)
        pipe.send((time.perf_counter() - start, time.process_time() - cpu))
    engine.close()


class Group:
    def __init__(self, world: int, batch_images: int) -> None:
        context, port = get_context("spawn"), free_port()
        self.pipes = []
        for rank in range(world):
            ours, theirs = context.Pipe()
            context.Process(target=serve, args=(rank, world, port, theirs, batch_images), daemon=True).start()
            self.pipes.append(ours)

    def all(self, what: str | None) -> tuple[float, float]:
        """The slowest rank's clock, and the CPU seconds of all."""
        for pipe in self.pipes:
            pipe.send(what)
        said = [pipe.recv() for pipe in self.pipes] if what else [(0.0, 0.0)]
        return max(s[0] for s in said), sum(s[1] for s in said)


def scaling(rounds: int, batch_images: int) -> dict[str, float]:
    one, two = Group(1, batch_images), Group(2, batch_images)
    one.all("step"), two.all("step")
    found: dict[str, list[float]] = {k: [] for k in ("steps", "counts", "counts_cpu", "cpu", "one", "two")}
    for _ in range(rounds):
        alone_s, alone_cpu = one.all("step")
        both_s, both_cpu = two.all("step")
        found["steps"].append(alone_s / both_s)
        found["cpu"].append(both_cpu / alone_cpu)
        (count_s, count_cpu), (counts_s, counts_cpu) = one.all("count"), two.all("count")
        found["counts"].append(2 * count_s / counts_s)
        found["counts_cpu"].append(counts_cpu / count_cpu / 2)
        found["one"].append(alone_s)
        found["two"].append(both_s)
    one.all(None), two.all(None)
    middle = {k: statistics.median(v) for k, v in found.items()}
    middle["best"] = min(found["one"]) / min(found["two"])
    heads = (
        "images",
        "one rank, s a step",
        "two ranks",
        "speed-up",
        "by the fastest steps",
        "two that count",
        "CPU of two, of one",
    )
    heads = (*heads, "CPU of two that count, of one")
    if batch_images == BATCHES[0]:
        print("| " + " | ".join(heads) + " |\n" + "|---" * len(heads) + "|")
    shown = [middle[k] for k in ("one", "two", "steps", "best", "counts", "cpu", "counts_cpu")]
    print(f"| {batch_images} | " + " | ".join(f"{v:.2f}" for v in shown) + " |", flush=True)
    return middle


# ---- GPUs


def device_rows(counts: list[int], steps: int, device: torch.device) -> list[dict[str, Any]]:
    """Images a second and MFU of the trainer and of the bare loop, at each number of images."""
    ours = importlib.util.find_spec("deepspeed") is not None
    if ours:
        alone()
    peak = peak_flops(device.type, torch.get_num_threads(), torch.bfloat16)
    what = "found" if ours else "missing: bare loop only"
    print(f"{device}: measured peak of bf16 products {peak / 1e12:.1f} TFLOP/s; DeepSpeed {what}")
    print("| tower | images | loop | images/s | regions/s | MFU | peak GB | of bare |\n" + "|---" * 8 + "|")
    rows = []
    for name in ("clip_rn50", "clip_vit_b16"):
        for count in counts:
            bare = 0.0
            for loop in ("bare", "trainer") if ours else ("bare",):
                row = device_row(name, count, loop, steps, device, peak)
                rate = row.get("images_per_second", 0.0)
                bare = rate if loop == "bare" else bare
                shown = row.get("error", "")
                if not shown:
                    of_bare = rate / max(bare, 1e-9)
                    shown = f"{rate:.1f} | {REGIONS * rate:.1f} | {row['mfu']:.3f} | {row['gb']:.1f} | {of_bare:.3f}"
                print(f"| {name} | {count} | {loop} | {shown} |", flush=True)
                rows.append({"tower": name, "images": count, "loop": loop, **row})
    return rows


def device_row(name: str, count: int, loop: str, steps: int, device: torch.device, peak: float) -> dict[str, Any]:
    torch.manual_seed(0)
    config = OptimConfig(batch_images=count, workers=1, precision="bf16")
    batch, engine = images(count, 224).to(device), None
    cuda = device.type == "cuda"
    try:
        module = objective(tower(name, "dense"))
        if loop == "bare":
            step = bare_step(module, config, device)
        else:
            step, engine = engine_step(module, config)
        if cuda:
            torch.cuda.reset_peak_memory_stats()
        with FlopCounterMode(display=False) as counter:
            step(batch)
        step(batch).item()
        seconds = []
        for _ in range(steps):
            begun = time.perf_counter()
            step(batch).item()
            seconds.append(time.perf_counter() - begun)
        took = statistics.median(seconds)
        gb = torch.cuda.max_memory_allocated() / 1e9 if cuda else 0.0
        return {"images_per_second": count / took, "mfu": counter.get_total_flops() / took / peak, "gb": gb}
    except torch.OutOfMemoryError:
        return {"error": "out of memory"}
    finally:
        if engine is not None:
            engine.close()
        step = module = engine = None  # type: ignore[assignment]
        if cuda:
            torch.cuda.empty_cache()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path, default=Path("runs/train-step"))
    parser.add_argument("--gpu", action="store_true", help="the GPU's part (on a CPU where there is none, to try it)")
    parser.add_argument("--images", default="32,128,512,1024")
    parser.add_argument("--steps", type=int, default=10)
    given = parser.parse_args()
    if given.gpu:
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        print(json.dumps(device_rows([int(n) for n in given.images.split(",")], given.steps, device)))
        return
    scaled = {count: scaling(given.rounds, count) for count in BATCHES}
    print(json.dumps({"overhead": overhead(given.out.absolute(), given.rounds), "scaling": scaled}))


if __name__ == "__main__":
    main()
