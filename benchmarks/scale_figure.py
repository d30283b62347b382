"""Efficiency against workers for several shard sizes: docs/img/scale.png, and the same as a table."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.scale_report import CPU, GPU, cluster, load_of, long, table

WORKERS = (30, 100, 300, 1000, 3000)
SIZES = (1_000, 3_000, 10_000, 30_000, 100_000)
COLOURS = ("#7f1d1d", "#d9730d", "#b8a100", "#2f855a", "#1f5fa8")
IMAGE = Path(__file__).parents[1] / "docs" / "img" / "scale.png"
PANELS = ((CPU, "243 ms an image, CPU (measured)"), (GPU, "1 ms an image, GPU (assumed)"))


def sweep(known: Mapping[str, Any]) -> None:
    """Without faults; eight prefixes, so that the limits of one do not stand before all others."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, len(PANELS), figsize=(9, 3.6), sharey=True, constrained_layout=True)
    for axis, (stage, title) in zip(axes, PANELS, strict=True):
        rows = []
        for size, colour in zip(SIZES, COLOURS, strict=True):
            found = [long(load_of(known, stage, size), *cluster(known, n, prefixes=8), whole=12_000) for n in WORKERS]
            share = [100 * f.efficiency for f in found]
            axis.plot(WORKERS, share, color=colour, marker="o", markersize=4, linewidth=1.6, label=f"{size:,}")
            rows.append([f"{size:,}", *(f"{f.efficiency:.1%}, {f.seconds / 3600:,.1f} h ({f.binds})" for f in found)])
        axis.set_xscale("log")
        axis.set_xticks(WORKERS, [f"{n:,}" for n in WORKERS])
        axis.minorticks_off()
        axis.set_ylim(0, 103)
        axis.grid(alpha=0.25)
        axis.set_title(title, fontsize=10)
        axis.set_xlabel("workers")
        axis.spines[["top", "right"]].set_visible(False)
        print(f"{stage}\n\n{table(['images a shard', *(f'{n:,} workers' for n in WORKERS)], rows)}\n", flush=True)
    axes[0].set_ylabel("efficiency, %")
    axes[0].legend(title="images a shard", fontsize=8, title_fontsize=8, frameon=False, loc="lower left")
    figure.suptitle("One pass over 10⁹ images on S3, simulated, without faults", fontsize=11)
    figure.savefig(IMAGE, dpi=130)
