"""`villa plan CONFIG`."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from cluster.result import emit
from cluster.work import pipeline
from villa_dist.config import Config
from villa_dist.config_file import load
from villa_dist.observe import LOG


def command(
    config: Annotated[str, typer.Argument(help="a YAML config, for example configs/quickstart.yaml")],
    set_: Annotated[list[str] | None, typer.Option("--set", help="KEY=VALUE; repeatable")] = None,
    shards: Annotated[
        int | None, typer.Option(help="small shards to measure; default: four a worker here", min=1)
    ] = None,
    images: Annotated[int, typer.Option(help="images of each of them", min=1)] = 48,
    workers: Annotated[
        int | None, typer.Option(help="workers of the job that is planned; default: those measured with", min=1)
    ] = None,
    price: Annotated[float | None, typer.Option(help="of one worker for an hour", min=0.0)] = None,
) -> None:
    """What the offline stages of a config will take: time, GPU-hours, bytes, storage, price, and what binds.

    A few small shards are cut from the data and put through the real stages, by the runner of the config, in RUN.plan,
    which is removed again. Training is not in the plan.
    """
    from villa_dist.planning.estimate import Means, lines, stage_estimate, total
    from villa_dist.planning.measure import loads, measure, small_config, trial

    loaded = load(config, set_)
    with pipeline(small_config(loaded, 1, images), False) as line:
        here, gpus = means_of(loaded)
        with trial(loaded, shards or 4 * here, images) as (small, source):
            LOG.info("plan: measuring with %d workers", here)
            measured = measure(loaded, small, line.runner, here)
    means = Means(workers or here, gpus, price)
    load_of = loads(loaded, source)
    stages = {name: stage_estimate(m, load_of[name], means) for name, m in measured.items()}
    whole = total(stages, means)
    for text in lines(stages, whole, means):
        print(text, file=sys.stderr)
    emit({"command": "plan", "workers": means.workers, "images": source.images, "stages": stages, "total": whole})


def means_of(config: Config) -> tuple[int, float]:
    """(workers, GPUs of each) that the config's runner has here."""
    if config.runner == "local":
        import torch

        return 1, float(torch.cuda.is_available())
    import ray

    from cluster.runner import pool_size

    return pool_size(config.ray, ray.cluster_resources(), on_device=True)
