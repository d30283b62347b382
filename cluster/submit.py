"""`ray job submit --working-dir . -- villa run CONFIG`, with checks before it starts and the data's word at its end.

A job is two commands on the head: is the package there; `cluster.probe` (versions, storage, nodes), which goes on as
`villa run`. Nothing secret is sent: credentials and the token are those of the cluster's own environment.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster import auth, complete, preflight, probe
from shards.errors import VillaError
from villa_dist import __version__
from villa_dist.config import Config
from villa_dist.config_file import dump
from villa_dist.observe import LOG
from villa_dist.revision import SUBMITTED, commit

HERE = "villa-here "
LOOK = (
    f"import sys,importlib.util as u;print({HERE!r}+sys.version.split()[0],bool(u.find_spec('villa_dist')),"
    "bool(u.find_spec('ray')),flush=True)"
)
POLL_SECONDS = 0.5
PROBE_SECONDS = 300.0
STOP_SECONDS = 60.0
AWAY_SECONDS = 180.0  # so long the job server of a job that is followed may be away
SILENT_SECONDS = 60.0  # of a log, after which its connection is made anew: a lost head closes none
CHATTY = (
    *("ray._private.runtime_env.packaging", "ray._private.runtime_env.working_dir"),
    *("ray.dashboard.modules.dashboard_sdk", "ray.dashboard.modules.job.sdk"),
)
OVERRIDING = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")  # Ray's client takes these before what it is given


class RefusedJob(VillaError):
    """The checks on the cluster found something."""


class LostJob(VillaError):
    """The cluster that had the job is gone, or another one answers in its place."""

    exit_code = 1


@dataclass(frozen=True)
class Submission:
    """What is submitted. config: its path in `folder`; loaded: what it says."""

    config: str
    sets: tuple[str, ...]
    loaded: Config
    folder: Path
    excludes: tuple[str, ...]


def connect(address: str, *, insecure: bool) -> Any:
    """A JobSubmissionClient. Raises: VillaError when nothing answers, or the token is missing, wrong or not asked for."""
    auth.require_token(address, insecure=insecure, how="--insecure-no-token")

    import requests
    from ray.exceptions import AuthenticationError
    from ray.job_submission import JobSubmissionClient

    for name in CHATTY:
        logging.getLogger(name).setLevel(logging.ERROR)
    if "://" not in address:
        address = f"http://{address}"
    try:
        with _without(OVERRIDING):
            client = JobSubmissionClient(address)
        client.list_jobs()
        if not insecure and not auth.is_loopback(address) and _takes_anyone(address):
            raise VillaError(
                f"the Ray cluster at {address} takes jobs without a token: whoever reaches it can run any code on "
                "it; start it "
                f"with {auth.MODE}=token. To go on with it on a network that you trust: --insecure-no-token"
            )
    except AuthenticationError as error:
        told = (
            "asks for a token, and none was given" if "no authentication token" in str(error) else "refuses this token"
        )
        raise VillaError(f"the Ray cluster at {address} {told}; set {auth.MODE}=token and {auth.GIVE}") from None
    except (ConnectionError, requests.RequestException, RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise VillaError(
            f"no Ray job server answers at {address} ({reason}); give --address http://HEAD:8265, the dashboard's "
            "address; "
            "behind a firewall forward its port (docs/operate.md)"
        ) from None
    return client


def _takes_anyone(address: str) -> bool:
    import requests

    return requests.get(f"{address.rstrip('/')}/api/jobs/", timeout=10.0).status_code == 200


def submit(client: Any, what: Submission) -> str:
    """Send the working folder and the job. Returns the submission's id. Raises: VillaError for too large an upload."""
    import ray

    upload = preflight.look_at(what.folder, what.excludes)
    preflight.check_upload(upload, what.folder, what.excludes)
    name = f"villa-{_safe(Path(what.loaded.run).name)}-{time.strftime('%m%d-%H%M%S')}-{os.urandom(3).hex()}"
    record = {"config": dump(what.loaded), "sets": list(what.sets), "file": what.config}
    asked = {
        "run": what.loaded.run,
        "id": name,
        "ray": ray.__version__,
        "villa": __version__,
        "python": sys.version.split()[0],
        "training": preflight.training_workers(what.loaded),
        "data": what.loaded.ray.workers,
        "gpus": what.loaded.ray.gpus,
        "record": record,
    }
    found = commit(what.folder) if upload.package else None  # else the code is the image's
    shipped = "with the package" if upload.package else "the package is expected in the cluster's image"
    LOG.info("submit: sending %d files, %.1f MiB, %s", upload.files, upload.bytes / 2**20, shipped)
    client.submit_job(
        entrypoint=entrypoint(what),
        submission_id=name,
        runtime_env={
            "working_dir": str(what.folder),
            "excludes": list(what.excludes),
            "env_vars": {probe.ASKED: json.dumps(asked), **({SUBMITTED: found} if found else {})},
        },
        metadata={"villa_run": what.loaded.run, "villa_config": record["config"]},
    )
    return name


def entrypoint(what: Submission) -> str:
    """The job's shell command. The second part is started when the first found nothing wrong."""
    run = ["-m", "cluster.probe", "run", what.config, *(part for each in what.sets for part in ("--set", each))]
    first, second = (f'"$PY" {shlex.join(part)}' for part in (["-c", LOOK], run))
    return f"PY=$(command -v python || command -v python3); {first} && exec {second}"


def follow(client: Any, name: str, tell: Callable[[str], None], *, until_started: bool = False) -> str:
    """Pass on the lines of a job's log until it ends, or until its checks are done. Returns its status.

    Raises: RefusedJob naming what the checks on the cluster found; LostJob when the cluster is gone.
    """
    seen, since = Seen(tell), 0.0  # since: when the job server was found away
    while True:
        try:
            asyncio.run(_read(client, name, seen, until_started))
        except Exception as error:  # noqa: BLE001  the connection, not the job; of aiohttp, when the head restarts
            if not since:
                said = " ".join(str(error).split())[:120] or type(error).__name__
                LOG.info("submit: the log of %s is cut off (%s); looking again", name, said)
        seen.check()
        status = _status_if_there(client, name)
        if status is None:
            since = since or time.monotonic()
            if time.monotonic() - since > AWAY_SECONDS:
                raise LostJob(
                    f"no job server has answered for {AWAY_SECONDS:.0f} s: job {name} may go on without being followed "
                    "(`villa submit --status` asks for it). Where its head is lost, submit again to a new cluster: what "
                    "is committed stays"
                )
        else:
            since = 0.0
            if until_started and seen.probed:
                return status
            if status in ENDED:
                seen.take_rest(client.get_job_logs(name))
                seen.check()
                return status
        time.sleep(POLL_SECONDS)


ENDED = ("SUCCEEDED", "FAILED", "STOPPED")


class Seen:
    """What was passed on of a log that is read again from its start after each break."""

    def __init__(self, tell: Callable[[str], None]) -> None:
        self.tell, self.passed, self.started, self.probed = tell, 0, False, False
        self.package: bool | None = None
        self.python = ""
        self.problems: list[str] = []
        self._rest = ""

    def take_rest(self, log: str) -> None:
        """log: all of it."""
        self.take(log[self.passed :])
        if self._rest:
            self.take("\n")

    def take(self, text: str) -> None:
        self.passed += len(text)
        *lines, self._rest = (self._rest + text).split("\n")
        for line in lines:
            if line.startswith(HERE):
                self.python, package, ray = line.removeprefix(HERE).split()
                self.package = package == ray == "True"
            elif line.startswith(probe.MARK):
                self._probed(json.loads(line.removeprefix(probe.MARK)))
            else:
                self.tell(line)

    def _probed(self, found: dict[str, Any]) -> None:
        self.probed, self.problems = True, found["problems"]
        for remark in found["remarks"]:
            LOG.warning("submit: %s", remark)
        if not self.problems:
            LOG.info(
                "submit: the cluster has %d nodes, %.0f CPUs, %.0f GPUs, Ray %s, Python %s, and sees the run's storage",
                *(found[k] for k in ("nodes", "cpus", "gpus", "ray", "python")),
            )

    def check(self) -> None:
        """Raises: RefusedJob."""
        if self.package is False:
            raise RefusedJob(
                f"the head's `python` ({self.python}) has no villa_dist or no Ray: submit from a clone, whose "
                "packages are sent "
                "along, to a cluster whose image has the requirements (see the Dockerfile), with its environment "
                "first on PATH"
            )
        if self.problems:
            raise RefusedJob("the cluster cannot run this job:\n" + "\n".join(f"  {p}" for p in self.problems))


async def _read(client: Any, name: str, seen: Seen, until_started: bool) -> None:
    skip, texts = seen.passed, aiter(client.tail_job_logs(name))
    while True:
        try:
            text = await asyncio.wait_for(anext(texts), SILENT_SECONDS)
        except (StopAsyncIteration, asyncio.TimeoutError):
            return
        fresh, skip = text[skip:], max(0, skip - len(text))
        seen.take(fresh)
        if seen.problems or (until_started and seen.probed):
            return


def lacking(client: Any, name: str, run: str, config: str) -> list[str]:
    """What a submission's run lacks: read from here where its storage is seen from here, else asked of the cluster."""
    if complete.record(run, name) is not None:
        return complete.missing(complete.as_config(config))
    asked = f"{name}-look-{os.urandom(2).hex()}"
    command = f'PY=$(command -v python || command -v python3); "$PY" -m cluster.complete {shlex.join([run, name])}'
    env = client.get_job_info(name).runtime_env or {}
    sent = {key: env[key] for key in ("working_dir",) if key in env}
    client.submit_job(entrypoint=command, submission_id=asked, runtime_env=sent)
    ends = time.monotonic() + PROBE_SECONDS
    while _status(client, asked) not in ENDED and time.monotonic() < ends:
        time.sleep(POLL_SECONDS)
    for line in client.get_job_logs(asked).splitlines():
        if line.startswith(complete.MARK):
            found: list[str] = json.loads(line.removeprefix(complete.MARK))
            return found
    return [f"unknown: neither this machine nor the cluster could read {run} (see the log of job {asked})"]


def described(client: Any, name: str) -> tuple[str, str, str, int | None]:
    """(status, run, config, exit code) of a submission. Raises: VillaError when the cluster knows none of that id."""
    try:
        info = client.get_job_info(name)
    except RuntimeError:
        known = [j.submission_id for j in client.list_jobs() if j.submission_id and "villa_run" in (j.metadata or {})]
        raise VillaError(f"the cluster knows no job {name!r}; it knows {', '.join(known) or 'none of villa'}") from None
    told = info.metadata or {}
    if "villa_run" not in told:
        raise VillaError(f"job {name!r} was not submitted by villa; use `ray job status {name}`")
    code = getattr(info, "driver_exit_code", None)
    return str(info.status.value), told["villa_run"], told["villa_config"], code


def stop(client: Any, name: str) -> str:
    """Stop a job and wait until it has ended. Returns its status."""
    client.stop_job(name)
    ends = time.monotonic() + STOP_SECONDS
    while (status := _status(client, name)) not in ENDED and time.monotonic() < ends:
        time.sleep(POLL_SECONDS)
    return status


def _status(client: Any, name: str) -> str:
    return str(client.get_job_status(name).value)


def _status_if_there(client: Any, name: str) -> str | None:
    """None while nobody answers. Raises: LostJob when who answers does not know the job."""
    from ray.exceptions import AuthenticationError

    try:
        return _status(client, name)
    except AuthenticationError:
        known = "takes another token"
    except RuntimeError as error:
        if "does not exist" not in str(error):
            return None
        known = f"does not know job {name}"
    except OSError:
        return None
    raise LostJob(
        f"the cluster that answers now {known}: the one it ran on is lost. Submit again: what is committed stays, and the "
        "same command goes on from there"
    )


def _safe(text: str) -> str:
    return "".join(c if c.isalnum() or c in "-_" else "-" for c in text)[:40]


@contextmanager
def _without(names: Sequence[str]) -> Iterator[None]:
    kept = {name: os.environ.pop(name) for name in names if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(kept)
