"""Three Ray nodes on one machine, each in a network namespace of its own, so that a node can be cut off or lost.

    with Nodes() as nodes:
        driver = nodes.start("head", [sys.executable, …])
        nodes.cut("one")        # the cable is pulled
        nodes.kill_raylet("two")

A fourth namespace holds the bridge, so the machine's own network is not touched, and a fifth one, `outside`, what is no
node: a client, a storage. The processes of a namespace are ours alone; what ends them goes by their ids. What a killed test
run has left is removed by the next.
"""

from __future__ import annotations

import ctypes
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from cluster.session import KEEPALIVE, QUIET

NAMES = ("head", "one", "two")
OUTSIDE = "outside"
PREFIX = "villa-nodes-"
PORT, METRICS, DASHBOARD = 6379, 8090, 8265
START_SECONDS, START_TRIES = 180.0, 3
CLONE_NEWNET, PR_SET_PDEATHSIG = 0x40000000, 1
ROOT = Path(__file__).parents[2]


def missing() -> str:
    """Why namespaces cannot be had here; empty if they can."""
    if not shutil.which("ip"):
        return "no `ip` on this machine (Debian: apt-get install iproute2)"
    if os.geteuid():
        return "network namespaces need root"
    name = f"{PREFIX}{os.getpid()}-probe"
    tried = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True)
    if tried.returncode:
        return f"no network namespaces here: {tried.stderr.strip()}"
    bridge = subprocess.run(
        ["ip", "-n", name, "link", "add", "name", "probe", "type", "bridge"], capture_output=True, text=True
    )
    subprocess.run(["ip", "netns", "del", name], check=True)
    return f"no bridges here: {bridge.stderr.strip()}" if bridge.returncode else ""


def address(node: str) -> str:
    return f"10.77.0.{(*NAMES, OUTSIDE).index(node) + 1}"


class Nodes:
    """The head and two more nodes, of `cpus` each. jobs: with a job server at `jobs_url`. up: else they are wired only, and
    `mend` starts them."""

    def __init__(self, cpus: int = 1, *, jobs: bool = False, up: bool = True, **env: str) -> None:
        self.cpus, self.jobs, self.up = cpus, jobs, up
        self.jobs_url = f"http://{address('head')}:{DASHBOARD}"
        self.address = f"{address('head')}:{PORT}"
        self._given = env
        self._main: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> Nodes:
        remove_leftovers()
        # Unix sockets below it must stay under 107 bytes, so it cannot be in pytest's folder.
        self.folder = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{os.getpid()}-"))
        (self.folder / "token").write_text(secrets.token_hex(32), encoding="ascii")
        self.env = {
            **{k: v for k, v in os.environ.items() if not k.startswith("RAY_")},
            **KEEPALIVE,
            **QUIET,
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(self.folder / "token"),
            "HOME": str(self.folder),
            "PYTHONPATH": f"{ROOT}:{Path(__file__).parent}",
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",  # a job's `python` is the head's
            "OMP_NUM_THREADS": "1",
            **self._given,
        }
        try:
            self._wire()
            if self.up:
                self.mend()
        except BaseException:
            self._remove()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._remove()

    # ---- what tests do with them

    def start(self, node: str, command: Sequence[str], **options: Any) -> subprocess.Popen[bytes]:
        """Start a process in a node's namespace; it gets SIGTERM when this one dies."""
        entered = ["nsenter", f"--net=/run/netns/{_space(node)}", *command]
        options = {"env": self.env, "cwd": ROOT, "preexec_fn": _end_with_parent, **options}
        return subprocess.Popen(entered, **options)

    def cut(self, node: str) -> None:
        _ip("-n", _space("switch"), "link", "set", node, "down")

    def join(self, node: str) -> None:
        _ip("-n", _space("switch"), "link", "set", node, "up")

    def kill_raylet(self, node: str) -> None:
        """SIGKILL of the raylet alone, as when it crashes; its workers find out by themselves."""
        raylets = [pid for pid in self.pids(node) if _name(pid) == "raylet"]
        assert len(raylets) == 1, f"{len(raylets)} raylets on {node}"
        os.kill(raylets[0], signal.SIGKILL)

    def lose(self, node: str) -> None:
        """SIGKILL of all that runs on a node, as when its machine is lost."""
        self._end(node)

    def pids(self, node: str) -> list[int]:
        return _pids(_space(node))

    def called(self, node: str, words: str) -> list[int]:
        """The processes of a node whose command line holds `words`; Ray's are called ray::CLASS.METHOD."""
        return [pid for pid in self.pids(node) if words in command_line(pid)]

    def inside(self, node: str, work: Callable[[], Any]) -> Any:
        """Call `work` in a thread whose sockets are a node's."""
        made: list[Any] = []

        def entered() -> None:
            with open(f"/run/netns/{_space(node)}") as space:
                if ctypes.CDLL(None, use_errno=True).setns(space.fileno(), CLONE_NEWNET):
                    made.append(OSError(ctypes.get_errno(), "setns"))
                    return
            try:
                made.append(work())
            except Exception as error:
                made.append(error)

        thread = threading.Thread(target=entered)
        thread.start()
        thread.join()
        if isinstance(made[0], Exception):
            raise made[0]
        return made[0]

    def mend(self) -> None:
        """Join what was cut and start what is lost: three nodes again."""
        for node in NAMES:
            self.join(node)
        lost = [n for n in NAMES if not self._alive(n)]
        if "head" in lost:
            lost = list(NAMES)  # a new cluster
        for node in lost:
            self._end(node)
        for node in lost:
            self._begin(node)
            if node == "head":
                self._await("head")
        for node in lost:
            self._await(node)

    # ---- how

    def _wire(self) -> None:
        _ip("netns", "add", _space("switch"))
        _ip("-n", _space("switch"), "link", "add", "name", "bridge", "type", "bridge")
        _ip("-n", _space("switch"), "link", "set", "bridge", "up")
        for node in (*NAMES, OUTSIDE):
            space = _space(node)
            _ip("netns", "add", space)
            _ip("-n", space, "link", "add", "eth0", "type", "veth", "peer", "name", node, "netns", _space("switch"))
            _ip("-n", _space("switch"), "link", "set", node, "master", "bridge", "up")
            _ip("-n", space, "addr", "add", f"{address(node)}/24", "dev", "eth0")
            _ip("-n", space, "link", "set", "eth0", "up")
            _ip("-n", space, "link", "set", "lo", "up")

    def _begin(self, node: str) -> None:
        place = self.folder / node
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        where = [f"--address={self.address}"]
        if node == "head":
            served = [f"--dashboard-host={address(node)}", f"--dashboard-port={DASHBOARD}"]
            where = ["--head", f"--port={PORT}", *(served if self.jobs else ["--include-dashboard=false"])]
        command = [
            *(sys.executable, "-m", "ray.scripts.scripts", "start", *where, "--block", "--disable-usage-stats"),
            *(f"--node-ip-address={address(node)}", f"--num-cpus={self.cpus}", f"--temp-dir={place}"),
            *(f"--metrics-export-port={METRICS}", f"--object-store-memory={80 << 20}", "--log-color=false"),
        ]
        with open(self.folder / f"{node}.log", "wb") as log:
            self._main[node] = self.start(
                node, command, stdout=log, stderr=log, env={**self.env, "RAY_TMPDIR": str(place)}
            )

    def _await(self, node: str) -> None:
        """Until a node is up. Ray waits 30 s for its own start, too short for a busy machine, so it is tried again."""
        log, ends, tries = self.folder / f"{node}.log", time.monotonic() + START_SECONDS, 1
        while "Ray runtime started" not in (text := log.read_text(errors="replace")):
            assert time.monotonic() < ends, f"{node} did not start within {START_SECONDS:.0f} s:\n{text[-3000:]}"
            if self._main[node].poll() is not None:
                assert tries < START_TRIES, f"{node} did not start:\n{text[-3000:]}"
                tries += 1
                self._end(node)
                self._begin(node)
            time.sleep(0.1)

    def _alive(self, node: str) -> bool:
        return node in self._main and any(_name(pid) == "raylet" for pid in self.pids(node))

    def _end(self, node: str) -> None:
        _end_space(_space(node))
        if node in self._main:
            self._main.pop(node).wait(timeout=30)

    def _remove(self) -> None:
        for node in (*NAMES, OUTSIDE):
            self._end(node)
        for space in _spaces():
            if space.startswith(f"{PREFIX}{os.getpid()}-"):
                _remove_space(space)
        shutil.rmtree(self.folder, ignore_errors=True)


def remove_leftovers() -> None:
    """End and remove the namespaces, and remove the folders, of test runs that are gone."""
    for space in filter(_is_left, _spaces()):
        _remove_space(space)
    for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        if _is_left(folder.name):
            shutil.rmtree(folder, ignore_errors=True)


def _is_left(name: str) -> bool:
    pid = name.removeprefix(PREFIX).partition("-")[0]
    return name.startswith(PREFIX) and pid.isdigit() and not Path(f"/proc/{pid}").exists()


def _space(node: str) -> str:
    return f"{PREFIX}{os.getpid()}-{node}"


def _spaces() -> list[str]:
    found = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True).stdout
    return [line.split()[0] for line in found.splitlines() if line.strip()]


def _pids(space: str) -> list[int]:
    if space not in _spaces():
        return []
    found = subprocess.run(["ip", "netns", "pids", space], capture_output=True, text=True, check=True).stdout
    return [int(pid) for pid in found.split() if int(pid) != os.getpid()]


def _end_space(space: str) -> None:
    ends = time.monotonic() + 30
    while pids := [pid for pid in _pids(space) if _state(pid) not in ("Z", "")]:
        assert time.monotonic() < ends, f"processes of {space} do not end: {pids}"
        for pid in pids:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        time.sleep(0.1)


def _remove_space(space: str) -> None:
    _end_space(space)
    _ip("netns", "del", space)


def command_line(pid: int) -> str:
    """Its arguments with spaces between; empty where it is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:
        return ""


def _name(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""


def _state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""


def _ip(*arguments: str) -> None:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True)
    assert done.returncode == 0, f"ip {' '.join(arguments)}: {done.stderr.strip()}"


def _end_with_parent() -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
