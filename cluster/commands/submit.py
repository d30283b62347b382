"""`villa submit CONFIG --address URL`."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from cluster.result import emit
from shards.errors import VillaError
from villa_dist.config_file import as_given, load
from villa_dist.observe import LOG

ADDRESSES = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")


def command(
    config: Annotated[str | None, typer.Argument(help="a YAML config in this folder, which is sent along")] = None,
    address: Annotated[
        str | None, typer.Option("--address", help="of the cluster's job server: http://HEAD:8265")
    ] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="KEY=VALUE; repeatable")] = None,
    follow: Annotated[
        bool, typer.Option("--follow/--no-follow", help="stay until the job ends, or until it runs")
    ] = True,
    status: Annotated[
        str | None, typer.Option("--status", metavar="ID", help="of a job: is it done, is it whole?")
    ] = None,
    stop: Annotated[str | None, typer.Option("--stop", metavar="ID", help="a job; what is committed stays")] = None,
    exclude: Annotated[list[str] | None, typer.Option("--exclude", help="do not send these files; repeatable")] = None,
    insecure: Annotated[
        bool, typer.Option("--insecure-no-token", help="use a cluster that runs anybody's code")
    ] = False,
) -> None:
    """Run a config on a Ray cluster: check it, send this folder, start it, follow it. Submitted again, it resumes.

    Exit 0 when the run is whole, by what is committed, not by how the job ended.
    """
    if sum(x is not None for x in (config, status, stop)) != 1:
        raise typer.BadParameter("give a CONFIG to submit, or --status ID, or --stop ID")
    address = address or next((os.environ[name] for name in ADDRESSES if os.environ.get(name)), None)
    if not address:
        raise VillaError("submit needs the cluster's address: --address http://HEAD:8265, or RAY_API_SERVER_ADDRESS")
    if config is None:
        from cluster import submit

        client = submit.connect(address, insecure=insecure)
        return _told(client, status or stop or "", stopped=stop is not None)
    _submit(config, address, set_ or [], follow, exclude or [], insecure)


def _submit(config: str, address: str, sets: list[str], stay: bool, exclude: list[str], insecure: bool) -> None:
    from cluster import preflight, submit

    folder, excludes = Path.cwd(), (*preflight.EXCLUDED, *exclude)
    preflight.check_paths(as_given(config, sets), folder, excludes)
    loaded = load(config, sets)
    inside = preflight.config_in(config, folder)
    if loaded.ray.address:
        sets = [*sets, "ray.address=null"]  # the cluster it is submitted to
    if insecure:
        sets = [*sets, "ray.insecure_no_token=true"]
    what = submit.Submission(inside, tuple(sets), load(config, sets), folder, excludes)
    client = submit.connect(address, insecure=insecure)
    name = submit.submit(client, what)
    LOG.info("submit: %s; `villa submit --address %s --status %s` asks for it, --stop ends it", name, address, name)
    try:
        state = submit.follow(client, name, _tell, until_started=not stay)
    except Exception:
        raise
    except BaseException:  # Ctrl-C ends the following
        LOG.info("submit: job %s goes on without being followed", name)
        raise
    if not stay and state not in submit.ENDED:
        return emit({"command": "submit", "submission": name, "run": loaded.run, "status": state})
    _told(client, name, stopped=False)


def _told(client: Any, name: str, *, stopped: bool) -> None:
    """The result line of a job, and exit 1 when it has ended and its run is not whole."""
    from cluster import submit

    if stopped:
        LOG.info("submit: %s is %s", name, submit.stop(client, name))
    state, run, config, code = submit.described(client, name)
    missing = submit.lacking(client, name, run, config)
    whole = not missing
    if whole and state == "FAILED":
        LOG.warning("submit: job %s failed (exit %s), but its run is whole", name, code)
    if not whole and state in submit.ENDED:
        LOG.warning("submit: %s lacks %s; the same command goes on from what is committed", run, ", ".join(missing))
    emit({"command": "submit", "submission": name, "run": run, "status": state, "complete": whole, "missing": missing})
    if state in submit.ENDED and not whole and not stopped:
        raise typer.Exit(code or 1)


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
