"""What can be known of a submission before anything is sent: mistakes in the config, paths, the upload."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from shards.errors import VillaError
from shards.store import Store
from villa_dist.config import Config
from villa_dist.config_base import HUB_ID

LIMIT = 100 << 20  # of an upload to Ray's head, as a zip
EXCLUDED = (
    *(".git", ".venv", "venv", "runs", "node_modules", "build", "dist", "*.egg-info"),
    *("__pycache__", ".*_cache", ".hypothesis", "*.tar", "*.ckpt", "*.safetensors", "*.pt"),
)
PACKAGES = ("shards", "villa_dist", "cluster")
SHOWN = 5


@dataclass(frozen=True)
class Upload:
    """A working folder as Ray would send it. folders: bytes by top-level name, the largest first."""

    bytes: int
    files: int
    folders: tuple[tuple[str, int], ...]
    package: bool  # villa_dist itself is in it


def look_at(folder: Path, excludes: Sequence[str]) -> Upload:
    """What of `folder` would be sent: .gitignore, .rayignore and `excludes` count as Ray counts them."""
    sizes: dict[str, int] = {}
    files = 0
    for path in _sent(folder, excludes):
        top = path.relative_to(folder).parts[0]
        try:
            sizes[top] = sizes.get(top, 0) + path.stat().st_size
        except OSError:  # a link to nowhere
            continue
        files += 1
    ordered = sorted(sizes.items(), key=lambda item: (-item[1], item[0]))
    package = all((folder / name / "__init__.py").is_file() for name in PACKAGES)
    return Upload(sum(sizes.values()), files, tuple(ordered), package)


def _sent(folder: Path, excludes: Sequence[str]) -> Iterator[Path]:
    from ray._private.runtime_env.packaging import _dir_travel, _get_excludes

    found: list[Path] = []
    gitignore = os.environ.get("RAY_RUNTIME_ENV_IGNORE_GITIGNORE", "0") != "1"
    _dir_travel(folder, [_get_excludes(folder, list(excludes))], found.append, include_gitignore=gitignore)
    return (path for path in found if path.is_file())


def check_upload(upload: Upload, folder: Path, excludes: Sequence[str]) -> None:
    """Raises: VillaError naming the largest folders when it is over Ray's limit."""
    if upload.bytes <= LIMIT:
        return
    largest = ", ".join(f"{name} {size / 2**20:,.0f} MiB" for name, size in upload.folders[:SHOWN])
    raise VillaError(
        f"the working folder {folder} has {upload.bytes / 2**20:,.0f} MiB to send, over Ray's limit of {LIMIT >> 20} "
        "MiB; the "
        f"largest: {largest}. Leave out what the job does not need by --exclude NAME or a .rayignore file (left out "
        f"already: {', '.join(excludes)}, and what .gitignore names), and put data on storage the cluster reads"
    )


def config_in(path: str, folder: Path) -> str:
    """The config's path as the job will find it in its working folder. Raises: VillaError when it is outside."""
    try:
        return str(Path(path).resolve().relative_to(folder.resolve()))
    except ValueError:
        raise VillaError(
            f"config {path} is outside of the working folder {folder}, which is all that is sent; move it into it, "
            "or submit "
            "from a folder that holds it"
        ) from None


def check_paths(given: Config, folder: Path, excludes: Sequence[str]) -> None:
    """given: the config with its paths as written. Small files that the driver reads may be in the folder that is sent.

    Raises: VillaError for paths that mean nothing on the cluster.
    """
    if not Store(given.run).local:
        raise VillaError(
            f"run={given.run}: training keeps checkpoints, which need a file system that all nodes share; set run to "
            "a folder "
            "on one (data.train and the others may stay on s3://)"
        )
    hub = _hub_names(given)
    for key, path in {**_places(given), **hub}.items():
        if not path or "://" in path or os.path.isabs(path):
            continue
        if key in hub and HUB_ID.fullmatch(path) and not (folder / path).exists():
            continue
        raise VillaError(
            f"{key}={path} is relative: on the cluster it would lie in the job's own temporary folder, which no "
            "other node "
            f"sees and which is removed; --set {key}= an absolute path on storage that all nodes share, or "
            "s3://bucket/prefix"
        )
    files = {key: path for key, path in _files(given).items() if "://" not in path and not os.path.isabs(path)}
    sent = {os.path.normpath(path) for path in _sent(folder, excludes)} if files else set()
    for key, path in files.items():
        if os.path.normpath(folder / path) in sent:
            continue
        why = (
            "is left out of what is sent (by an exclusion, .gitignore or .rayignore), or outside of it"
            if (folder / os.path.expanduser(path)).exists()
            else "does not exist"
        )
        raise VillaError(
            f"{key}={path} {why}, so the job would not find it; give a file in {folder} that is sent along, or an absolute "
            "path on storage that all nodes share"
        )


def _places(given: Config) -> dict[str, str | None]:
    """What nodes other than the driver's read or write."""
    return {
        "run": given.run,
        **{f"data.{split}": getattr(given.data, split) for split in ("train", "validation", "test")},
        **{f"data.mix[{n}].train": other.train for n, other in enumerate(given.data.mix)},
        "digits.mnist_dir": given.digits.mnist_dir,
        "pretrain.start": given.pretrain.start,
        "model.text.vocabulary": given.model.text.vocabulary,
    }


def _hub_names(given: Config) -> dict[str, str | None]:
    """The same, where a name may be one of the hub instead."""
    return {
        "model.weights": given.model.weights,
        "regions.hf.model": given.regions.hf.model,
        **{f"evaluate.baselines[{n}].weights": b.weights for n, b in enumerate(given.evaluate.baselines)},
    }


def _files(given: Config) -> dict[str, str]:
    """Files that only the driver reads."""
    lists = {
        f"vocabulary.lists[{n}]": name for n, name in enumerate(given.vocabulary.lists) if "." in name or "/" in name
    }
    return lists | {f"evaluate.{key}": path for key, path in given.evaluate.files.items()}


def training_workers(config: Config) -> int:
    """The ranks of the widest training job."""
    return max(config.pretrain.workers, config.train.workers, config.mapping.fit.workers)
