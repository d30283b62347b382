"""A connection to Ray: the cluster that is named, or a local one made for this run and gone with it.

A local Ray gets its own temporary folder, its own token and no dashboard, so that it neither meets nor leaves anything
on the machine: a token file in the home folder would silently change how later clusters start.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import secrets
import shutil
import socket
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil

from cluster.auth import INSECURE, require_token
from shards.errors import VillaError
from villa_dist.config import RayConfig
from villa_dist.observe import LOG

# A dead node is noticed after about a minute instead of five.
KEEPALIVE = {"RAY_grpc_client_keepalive_time_ms": "10000", "RAY_grpc_client_keepalive_timeout_ms": "10000"}
QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TRAIN_V2_ENABLED": "1",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_DEDUP_LOGS": "1",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # Ray Train would run ranks in a folder of its own
}
PREFIX, OWNER = "villa-ray-", "owner"
CONNECT_SECONDS, END_SECONDS = 10.0, 5.0
TOLD = 160  # characters of what Ray says by itself
JOINED: list[str] = []  # the cluster this process has connected to before (`cluster.probe`)
DRIVER_SLACK = 1  # logical CPUs beyond the machine's, for Ray Train's controller and for tasks beside the actors


class RaySession:
    """`with RaySession(config) as ray:`; on leaving, a local Ray is stopped and its folder removed."""

    def __init__(self, config: RayConfig) -> None:
        self.config = config
        self._folder: Path | None = None

    def __enter__(self) -> Any:
        for name, value in {**KEEPALIVE, **QUIET}.items():
            os.environ.setdefault(name, value)
        address = self.config.address or os.environ.get("RAY_ADDRESS")
        if JOINED and address == JOINED[0]:
            import ray

            _quieten()
            return ray
        if not address:
            self._make_folder()
        elif trouble := unreachable(address):
            raise VillaError(
                f"no Ray cluster answers at {address}: {trouble}; start one, correct ray.address or RAY_ADDRESS, or work "
                "without Ray by --set runner=local"
            )
        if address:
            require_token(
                address,
                insecure=self.config.insecure_no_token,
                how=f"--set ray.insecure_no_token=true, or {INSECURE}=1",
            )
        import ray

        _quieten()
        options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
        try:
            if address:
                LOG.info("connecting to the Ray cluster at %s", address)
                ray.init(address=address, **options)
            else:
                cpus = usable_cpus()
                LOG.info("starting a local Ray on %d CPUs", cpus)
                ray.init(
                    num_cpus=cpus + DRIVER_SLACK,
                    include_dashboard=False,
                    _temp_dir=str(self._folder),
                    object_store_memory=256 << 20,  # paths travel through Ray, never images
                    **options,
                )
        except (ConnectionError, RuntimeError, ValueError, TimeoutError) as error:
            self._remove_folder()
            raise VillaError(
                f"no Ray cluster answers at {address or 'a local head'}: {error}; start one, correct ray.address or "
                "RAY_ADDRESS, or work without Ray by --set runner=local"
            ) from error
        return ray

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        import ray

        if error is None or isinstance(error, Exception):
            ray.shutdown()
        elif self._folder is not None:
            _end_at_once()
        self._remove_folder()

    def _make_folder(self) -> None:
        # Unix sockets below it must stay under 107 bytes, so it cannot be in the run's folder.
        remove_orphans(Path(tempfile.gettempdir()))
        self._folder = Path(tempfile.mkdtemp(prefix=PREFIX))
        self._owner = open(self._folder / OWNER, "w")  # noqa: SIM115  locked for as long as this process lives
        fcntl.flock(self._owner, fcntl.LOCK_EX)
        token = self._folder / "token"
        token.touch(mode=0o600)
        token.write_text(secrets.token_hex(32), encoding="ascii")
        os.environ["RAY_AUTH_MODE"] = "token"
        os.environ["RAY_AUTH_TOKEN_PATH"] = str(token)
        os.environ.pop("RAY_AUTH_TOKEN", None)  # which Ray would take first: of another cluster

    def _remove_folder(self) -> None:
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)


def _end_at_once() -> None:
    """Kill the local Ray with all it has started. `ray.shutdown` under a thread that waits on Ray would end this process
    with a code of Ray's own, and the agents of a killed raylet would stay for as long as it takes them to miss it."""
    below = psutil.Process().children(recursive=True)
    for process in below:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(below, END_SECONDS)


def _quieten() -> None:
    """When a node is lost, Ray would write pages of that node's log and C++ stack over the progress, whatever
    `log_to_driver` is; tell the first line of each such message, once."""
    from ray._private import worker

    told: set[str] = set()

    def tell(message: Mapping[str, Any], *_: object, **__: object) -> None:
        for text in message.get("lines", ()):
            line = " ".join(str(text).strip().partition("\n")[0].split())[:TOLD]
            if line and line not in told:
                told.add(line)
                LOG.info("Ray says: %s", line)

    if hasattr(worker, "print_to_stdstream"):
        worker.print_to_stdstream = tell


def remove_orphans(place: Path) -> None:
    """Remove what local Rays of drivers that were killed left behind: folders of ours whose owner holds no lock."""
    for folder in place.glob(PREFIX + "*"):
        try:
            with open(folder / OWNER, "r+") as owner:
                fcntl.flock(owner, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
        except OSError:  # alive, another user's, or being made
            continue


def unreachable(address: str) -> str:
    """Why host:port does not take a connection; empty if it does, or for addresses such as `auto`.

    ray.init itself waits for minutes and then keeps trying.
    """
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():
        return ""
    try:
        with socket.create_connection((host, int(port)), CONNECT_SECONDS):
            return ""
    except OSError as error:
        return str(error)


def usable_cpus() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
