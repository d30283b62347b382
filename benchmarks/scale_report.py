"""The figures of docs/scale.md: what large runs would take, by `scale_sim` and `scale_costs.yaml`.

    python -m benchmarks.scale_report predict [--shard-images 10000] [--workers 1000]     every stage, with faults or without
    python -m benchmarks.scale_report limits          where each part breaks, and what then
    python -m benchmarks.scale_report sweep           efficiency by workers and shard size; docs/img/scale.png
    python -m benchmarks.scale_report validate        benchmarks/scale_runs.yaml: simulated against measured
    python -m benchmarks.scale_report training        arithmetic of the training data rate

Prints Markdown tables. Deterministic; the sweep takes about two minutes of one core.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from benchmarks.scale_sim import Driver, Faults, Load, Outcome, Pool, Storage, simulate

HERE = Path(__file__).parent
SIMULATED, ROUNDS = 100_000, 6  # shards of a run that is simulated whole; above, the rate of the middle is drawn out
CPU, GPU, SEGMENTS = "pairs, ViT-B/16 on a CPU core", "pairs, a grid and a GPU", "pairs, segments and a GPU"


def values(found: Any) -> Any:
    """The numbers without where they are from."""
    if isinstance(found, dict):
        return {name: values(value) for name, value in found.items()}
    return found[0] if isinstance(found, list) else found


def costs() -> dict[str, Any]:
    return values(yaml.safe_load((HERE / "scale_costs.yaml").read_text(encoding="utf-8")))


def load_of(known: Mapping[str, Any], stage: str, shard_images: int) -> Load:
    asked, made = known["requests"], known["stages"][stage]
    bytes_in = shard_images * known["image_bytes"]
    bytes_out = shard_images * made["writes"] + known["marker_bytes"]
    puts = asked["puts"]
    for part, whole in ((asked["part"], 2 * asked["part"]), (asked["copy_part"], asked["copy_part"])):
        puts += math.ceil(bytes_out / part) + 1 if bytes_out > whole else 0  # begun, the parts, ended; instead of one
    return Load(
        shards=math.ceil(known["images"] / shard_images),
        work=shard_images * made["seconds"],
        bytes_in=bytes_in,
        bytes_out=bytes_out,
        gets=asked["gets"] + max(math.ceil(bytes_in / asked["block"]) - 1, 0),
        puts=puts,
        spread=known["pool"]["spread"],
    )


def cluster(known: Mapping[str, Any], workers: int, **store: Any) -> tuple[Pool, Storage, Driver]:
    pool, says = known["pool"], known["store"]
    driver = known["driver"]
    cpu = driver["loop"] + driver["progress"] + driver["request"]
    return (
        Pool(workers, pool["per_node"], pool["start"], pool["timeout"]),
        replace(Storage(round_trips=known["requests"]["round_trips"], **says), **store),
        Driver(cpu, max(says["latency"] / driver["readers"] - cpu, 0.0)),
    )


def faults_of(known: Mapping[str, Any], workers: int) -> Faults:
    says = known["faults"]
    slow = round(says["slow_share"] * workers / known["pool"]["per_node"])
    return Faults(says["deaths"], says["losses"], back=says["back"], slow_nodes=slow, slow_factor=says["slow_factor"])


def long(
    load: Load, pool: Pool, storage: Storage, driver: Driver, faults: Faults = Faults(), whole: int = SIMULATED
) -> Outcome:
    """The same as `simulate`; of more shards than `whole` the first are simulated, and the rate of the later half of those
    is taken for the rest."""
    seed, some = 0, max(whole, ROUNDS * pool.workers)
    if load.shards <= some:
        return simulate(load, pool, storage, driver, faults, seed)
    half, first = (simulate(replace(load, shards=n), pool, storage, driver, faults, seed) for n in (some // 2, some))
    more = (load.shards - some) / (some - some // 2)

    def on(name: str) -> float:
        before, then = getattr(half, name), getattr(first, name)
        return then + (then - before) * more

    fastest = first.seconds + (on("useful") - first.useful) / pool.workers  # all of them at work all the time
    seconds = max(on("seconds"), fastest)
    names = ("committed", "given_up", "retried", "copies", "useful", "worked", "gets", "puts", "bytes_in", "bytes_out")
    drawn: dict[str, Any] = {name: type(getattr(first, name))(on(name)) for name in names}
    shares = {
        k: (v * first.seconds + (v * first.seconds - half.shares[k] * half.seconds) * more) / seconds
        for k, v in first.shares.items()
    }
    return replace(first, seconds=seconds, shares=shares, **drawn)


def around(known: Mapping[str, Any], shards: int) -> dict[str, float]:
    """What the driver does alone on an object store: listings of a stage that is resumed whole, markers for its manifest."""
    asked, latency = known["requests"], known["store"]["latency"]
    pages = asked["listings"] * math.ceil(2 * shards / asked["page"])
    each = max(latency / asked["parallel"], known["driver"]["request"])
    return {
        "listing_s": pages * latency,
        "list_requests": pages,
        "manifest_s": shards * each,
        "memory_MB": shards * known["driver"]["memory_a_shard"] / 1e6,
    }


def span(seconds: float) -> str:
    return f"{seconds / 3600:,.1f} h" if seconds >= 5400 else f"{seconds / 60:,.1f} min"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def row(name: str, found: Outcome) -> list[str]:
    return [
        name,
        span(found.seconds),
        f"{found.worker_hours:,.0f}",
        f"{found.efficiency:.1%}",
        f"{found.gets / found.seconds:,.0f} ({found.shares['GET limit']:.0%})",
        f"{found.puts / found.seconds:,.1f} ({found.shares['PUT limit']:.1%})",
        f"{found.bytes_in / found.seconds / 1e9:,.2f}",
        f"{found.shares['driver']:.1%}",
        span(found.tail),
        f"{found.retried} / {found.copies}",
        found.binds,
    ]


HEAD = ["stage", "time", "worker-hours", "efficiency", "GET/s (of limit)", "PUT/s (of limit)", "GB/s read"]
HEAD += ["driver busy", "tail", "retried / repeated", "binds"]


def predict(known: Mapping[str, Any], workers: int, shard_images: int) -> None:
    rows = []
    for stage in known["stages"]:
        load = load_of(known, stage, shard_images)
        for faulty in (False, True):
            faults = faults_of(known, workers) if faulty else Faults()
            rows.append(row(stage + (", faults" if faulty else ""), long(load, *cluster(known, workers), faults)))
    print(
        f"{workers:,} workers, shards of {shard_images:,} images ({load.bytes_in / 1e9:.2f} GB, {load.shards:,} shards)\n"
    )
    print(table(HEAD, rows))
    rows = []
    for size in (1_000, 10_000, 100_000):
        alone = around(known, math.ceil(known["images"] / size))
        one = [
            f"{size:,}",
            f"{known['images'] / size:,.0f}",
            f"{alone['memory_MB']:,.0f}",
            f"{alone['list_requests']:,.0f}",
        ]
        rows.append([*one, span(alone["listing_s"]), span(alone["manifest_s"])])
    head = ["images a shard", "shards", "driver MB for names and queue", "LISTs of a resumption", "their time"]
    print("\n" + table([*head, "markers for the manifest"], rows))


def limits(known: Mapping[str, Any], workers: int) -> None:
    """The fastest stage, changed by one thing after another."""
    rows = []
    latency = known["store"]["latency"]
    for name, images, marker, store in (
        ("one marker read after another, shards of 10,000 images", 10_000, latency, {}),
        ("as it is, shards of 1,000", 1_000, None, {}),
        ("shards of 10,000", 10_000, None, {}),
        ("shards of 30,000", 30_000, None, {}),
        ("shards of 10,000 under 4 prefixes", 10_000, None, {"prefixes": 4}),
        ("shards of 30,000 under 4 prefixes", 30_000, None, {"prefixes": 4}),
        ("shards of 10,000 under 4 prefixes, markers handed over by Ray", 10_000, 0.0, {"prefixes": 4}),
    ):
        pool, storage, driver = cluster(known, workers, **store)
        driver = driver if marker is None else replace(driver, marker=marker)
        rows.append(row(name, long(load_of(known, GPU, images), pool, storage, driver)))
    print(table(HEAD, rows))
    rows = []
    load = load_of(known, CPU, 10_000)
    for name, faults, slow in (
        ("none", Faults(), 2.0),
        ("8 of 1,000 workers at half speed", Faults(slow_nodes=1, slow_factor=2.0), 2.0),
        ("8 at a fifth", Faults(slow_nodes=1, slow_factor=5.0), 2.0),
        ("8 at a fifth, nothing repeated", Faults(slow_nodes=1, slow_factor=5.0), math.inf),
        ("a node lost in 100 hours of each", Faults(losses=0.01, back=180), 2.0),
        ("in 10 hours", Faults(losses=0.1, back=180), 2.0),
        ("in 2 hours", Faults(losses=0.5, back=180), 2.0),
        ("in 2 hours, shards of 1,000", Faults(losses=0.5, back=180), 2.0),
    ):
        pool, storage, driver = cluster(known, workers)
        given = load_of(known, CPU, 1_000) if name[-5:] == "1,000" else load
        found = long(given, replace(pool, slow=slow), storage, driver, faults)
        lost = abs(1 - found.useful / found.worked)
        told = [span(found.seconds), f"{found.efficiency:.1%}", f"{lost:.1%}", span(found.tail)]
        rows.append([name, *told, f"{found.retried} / {found.copies}", f"{found.given_up}"])
    print(
        "\n"
        + table(["faults", "time", "efficiency", "work done in vain", "tail", "retried / repeated", "given up"], rows)
    )


def training(known: Mapping[str, Any]) -> None:
    says, photo, latency = known["training"], known["image_bytes"], known["store"]["latency"]
    each, decode = says["regions_a_second"], says["decode"]
    images = says["devices"] * each
    prefixes = images / known["store"]["gets_a_second"]
    rows = [
        ["images a second", f"{says['devices']} x {each:,} = {images:,}"],
        ["bytes a second read", f"{images * photo / 1e9:.1f} GB/s, {each * photo / 1e6:,.0f} MB/s a device"],
        ["cores that read and decode", f"{images * decode:,.0f}, {each * decode:.1f} a device"],
        ["range requests, one a sample", f"{images:,} GET/s, the published rate of {prefixes:.0f} prefixes"],
        ["a loader thread decodes", f"{1 / decode:,.0f} images/s"],
        ["threads of a rank, from local disks", f"{math.ceil(each * decode)}"],
        ["a loader thread gets and decodes, by requests", f"{1 / (latency + decode):.1f} images/s at {latency} s each"],
        ["threads of a rank, by requests", f"{math.ceil(each * (latency + decode))}"],
        ["an epoch of the images", span(known["images"] / images)],
    ]
    print(table(["what", "64 H100, arithmetic"], rows))


def validate() -> None:
    """Each run predicted from what single-worker runs took: overhead of a shard, and start of a worker."""
    found = yaml.safe_load((HERE / "scale_runs.yaml").read_text(encoding="utf-8"))
    rows = []
    for run in found["runs"]:
        units, dies = run["units"], run.get("dies", 0)
        every = units // (dies + 1)
        faults = Faults(
            dies=frozenset(every * (n + 1) for n in range(dies)),
            slow_nodes=1 if "slow" in run else 0,
            slow_factor=run.get("slow", 1.0),
        )
        store = Storage(found["overhead"]["seconds"], round_trips=1)
        made = Load(units, run["unit_s"])
        pool = replace(Pool(run["workers"], start=found["start"]["seconds"]))
        cold = simulate(made, pool, store, faults=faults).seconds
        predicted = cold - (0.0 if run.get("cold") else pool.start)  # measured from a pool that is up
        off = predicted / run["measured"] - 1
        what = ", ".join(f"{k} {run[k]}" for k in ("dies", "slow") if k in run) or "none"
        cells = [run["where"], str(run["workers"]), f"{units} x {run['unit_s']} s", what]
        rows.append([*cells, f"{predicted:.1f}", f"{run['measured']:.1f}", f"{off:+.1%}"])
    print(table(["where", "workers", "units", "faults", "predicted s", "measured s", "off"], rows))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["predict", "limits", "sweep", "validate", "training"])
    parser.add_argument("--workers", type=int)
    parser.add_argument("--shard-images", type=int)
    given = parser.parse_args()
    known = costs()
    workers = given.workers or known["workers"]
    if given.what == "predict":
        predict(known, workers, given.shard_images or known["shard_images"])
    elif given.what == "limits":
        limits(known, workers)
    elif given.what == "training":
        training(known)
    elif given.what == "validate":
        validate()
    else:
        from benchmarks.scale_figure import sweep

        sweep(known)


if __name__ == "__main__":
    main()
