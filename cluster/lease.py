"""One driver a run, wherever it is: a lease in the run's own storage, where there may be nothing but put-if-absent.

Every state of the lease is a generation, `<run>/.lease/000042.json`, created exclusively and never changed: who holds the
run, and until when. The one with the highest number is the state. To renew, to take over and to give back are all the
creation of the next number, so of all who try from one state exactly one succeeds. Generations below the one before
are removed; the highest never is, so numbers only grow, and who created one below the highest (having looked long ago)
sees so when it looks again. Two clocks that differ by less than the margin cannot disagree about an expiry; a holder that
was taken over finds the next number taken when it renews, and stops.
"""

from __future__ import annotations

import json
import os
import secrets
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from shards.errors import ShardError, VillaError
from shards.store import Store
from villa_dist.observe import LOG

FOLDER = ".lease"
SECONDS_VARIABLE = "VILLA_LEASE_SECONDS"
SECONDS = 180.0  # longer than a storage may be away before a request to it is given up
LEAST_SECONDS = 1.0
LOOK_SECONDS = 0.5
RELEASE_SECONDS = 5.0
GRACE_SECONDS = 30.0  # for a driver that has lost its lease to stop by itself
INTERRUPT = signal.SIGUSR2  # not SIGINT, which a shell has ignored in what it starts in the background


class LostLease(VillaError):
    """Another driver has the run now, or may have it."""


@dataclass(frozen=True)
class Terms:
    """seconds: a renewal holds so long. renew: between renewals. margin: by which clocks may differ."""

    seconds: float = SECONDS

    @property
    def renew(self) -> float:
        return self.seconds / 6

    @property
    def margin(self) -> float:
        return min(10.0, self.seconds / 6)


def terms() -> Terms:
    """Raises: VillaError when VILLA_LEASE_SECONDS is not a number of seconds."""
    text = os.environ.get(SECONDS_VARIABLE, "")
    try:
        seconds = float(text or SECONDS)
        if not LEAST_SECONDS <= seconds < 86_400:
            raise ValueError
    except ValueError:
        raise VillaError(
            f"{SECONDS_VARIABLE}={text!r} is not a number of seconds of at least {LEAST_SECONDS:g}; set it to one, "
            "such "
            f"as {SECONDS:.0f}"
        ) from None
    return Terms(seconds)


@dataclass(frozen=True)
class Holder:
    """A process. place: what decides whether a pid means the same there as here; born: its start in clock ticks."""

    token: str
    host: str
    pid: int
    born: int
    place: str


@dataclass(frozen=True)
class Lease:
    """One generation. Times in seconds since 1970 by the holder's clock; `expires` 0: given back."""

    holder: Holder
    started: float
    expires: float

    def encode(self) -> bytes:
        return json.dumps(asdict(self), sort_keys=True).encode()

    @property
    def told(self) -> str:
        since = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(self.started))
        return f"pid {self.holder.pid} on {self.holder.host}, since {since}"


def decode(data: bytes) -> Lease | None:
    """None for a file that is torn or somebody else's."""
    try:
        values = json.loads(data)
        return Lease(Holder(**values["holder"]), float(values["started"]), float(values["expires"]))
    except (ValueError, TypeError, KeyError):
        return None


def myself() -> Holder:
    return Holder(secrets.token_hex(8), socket.gethostname(), os.getpid(), born(os.getpid()) or 0, place())


def place() -> str:
    """This boot of this machine and its namespace of pids; empty where that cannot be told."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{socket.gethostname()} {boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def born(pid: int) -> int | None:
    """When a process started, in clock ticks since the boot; None when there is none, or it is a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return None
    return None if fields[0] in (b"Z", b"X") else int(fields[19])


def gone(holder: Holder) -> bool | None:
    """Whether the holder's process has ended; None where that cannot be known from here."""
    if not holder.place or holder.place != place():
        return None
    return born(holder.pid) != holder.born


class Generations:
    """The states of one run's lease."""

    def __init__(self, run: str, seconds: float) -> None:
        self.store, self.seconds = Store(run), seconds

    def newest(self) -> tuple[int, Lease | None]:
        """(number, state); (0, None) where the run was never held."""
        while True:
            number = max(self._numbers(), default=0)
            if not number:
                return 0, None
            data = self.store.find(_name(number))
            if data is not None:
                return number, decode(data) or self._unread(number)

    def create(self, number: int, lease: Lease) -> bool:
        """Whether this made `number` the state: for one of all callers. Raises: GaveUp when that is unknown."""
        try:
            made = self.store.put_if_absent(_name(number), lease.encode())
        except ShardError:  # it stood, and was removed before it could be looked at: the state is far ahead
            return False
        if made and max(self._numbers(), default=0) > number:
            self.store.remove(_name(number))
            return False
        return made

    def remove_below(self, number: int) -> None:
        self.store.remove_files([_name(n) for n in self._numbers() if n < number])

    def _unread(self, number: int) -> Lease:
        """A file that cannot be read counts as held by nobody known, until it is as old as a lease."""
        written = self.store.list_modified(FOLDER, ".json").get(_name(number).rpartition("/")[2], time.time())
        return Lease(Holder("", "an unknown host", 0, 0, ""), written, written + self.seconds)

    def _numbers(self) -> list[int]:
        stems = (name.removesuffix(".json") for name in self.store.list(FOLDER, ".json"))
        return [int(stem) for stem in stems if stem.isdigit()]


def _name(number: int) -> str:
    return f"{FOLDER}/{number:06d}.json"


def acquire(run: str, instead: str, given: Terms | None = None) -> HeldLease:
    """The lease of a run's folder, renewed by a thread until `release`.

    Held by a process of this machine: refused at once, or taken at once where that process has ended. Held elsewhere:
    watched until it is renewed (refused) or expires (taken). instead: what to do in place of waiting, for the message.
    Raises: VillaError naming the holder.
    """
    lease_terms = given or terms()
    generations, me, told = Generations(run, lease_terms.seconds), myself(), False
    seen, since = 0, time.monotonic()
    while True:
        number, state = generations.newest()
        if state is None or _free(state, lease_terms):
            now = time.time()
            mine = Lease(me, now, now + lease_terms.seconds)
            if generations.create(number + 1, mine):
                if state is not None and state.expires:
                    LOG.info("the driver before (%s) has ended; this one goes on", state.told)
                return HeldLease(generations, number + 1, mine, lease_terms)
            seen = 0
            continue
        renewed = seen and number != seen
        if renewed or gone(state.holder) is False:
            raise VillaError(
                f"another villa process ({state.told}) is working on {generations.store.shown()}; wait for it, stop "
                "it, or "
                f"{instead}"
            )
        if not seen:
            seen, since = number, time.monotonic()
        elif time.monotonic() - since > lease_terms.seconds + lease_terms.margin:
            raise VillaError(
                f"{generations.store.shown()} is held by {state.told}, which has not renewed its lease for "
                f"{lease_terms.seconds:.0f} s, and by its clock holds it for another "
                f"{state.expires - time.time():.0f} s: "
                "set the clocks of both machines, or, when that process has ended, remove "
                f"{generations.store.shown(FOLDER)}"
            )
        if not told:
            told = True
            left = state.expires + lease_terms.margin - time.time()
            LOG.info(
                "%s is held by %s; waiting up to %.0f s to see whether it lives",
                generations.store.shown(),
                state.told,
                left,
            )
        time.sleep(min(LOOK_SECONDS, lease_terms.renew / 4))


def _free(state: Lease, given: Terms) -> bool:
    return time.time() > state.expires + given.margin * bool(state.expires) or gone(state.holder) is True


class HeldLease:
    """A lease that is held. `lost` says why it is no longer, empty while it is.

    on_loss: called once, in a thread, when it is lost; default: interrupt the main thread as Ctrl-C would (`held` makes it
    so), and end the process when it has not stopped after a grace.
    """

    def __init__(
        self,
        generations: Generations,
        number: int,
        lease: Lease,
        given: Terms,
        on_loss: Callable[[HeldLease], None] | None = None,
    ) -> None:
        self.number, self.lease, self.lost = number, lease, ""
        self.on_loss = on_loss or _stop
        self.released = threading.Event()
        self._generations, self._terms = generations, given
        self._ended, self._turn = threading.Event(), threading.Lock()
        self._renewed = time.monotonic()
        for work in (self._renew_on, self._watch):
            threading.Thread(target=work, name=f"villa-lease{work.__name__}", daemon=True).start()

    def release(self) -> None:
        """Give the run back; nothing where its folder was removed or the lease lost. Where the storage is away it is left
        alone: the lease then ends by itself."""
        self._ended.set()
        self.released.set()
        if self.lost or not self._turn.acquire(timeout=RELEASE_SECONDS):
            return
        try:
            if self._generations.store.is_file(_name(self.number)):
                self._generations.create(self.number + 1, replace(self.lease, expires=0.0))
                self._generations.remove_below(self.number + 1)
        except (VillaError, OSError) as error:
            LOG.info("the lease of %s could not be given back (%s); it expires", self._shown, error)
        finally:
            self._turn.release()

    @property
    def _shown(self) -> str:
        return self._generations.store.shown()

    def renew(self) -> None:
        """Hold the run for another term. Raises: LostLease; what the storage raises, when it stays unknown."""
        store, started = self._generations.store, time.monotonic()
        with self._turn:
            if self._ended.is_set():
                return
            if (
                not store.is_file(_name(self.number)) and not store.exists()
            ):  # the run was removed, and its lease with it
                self._ended.set()
                return
            renewed = replace(self.lease, expires=time.time() + self._terms.seconds)
            if self._generations.create(self.number + 1, renewed):
                self.number, self.lease = self.number + 1, renewed
                self._generations.remove_below(self.number - 1)
            else:
                number, state = self._generations.newest()
                if state is None or state.holder.token != self.lease.holder.token:
                    by = f" by another villa process ({state.told})" if state else ""
                    raise LostLease(f"{self._shown} was taken over{by}")
                self.number, self.lease = number, state  # ours: its answer had been lost
            self._renewed = started

    def _renew_on(self) -> None:
        while not self._ended.wait(self._tick):
            slept = time.time() > self.lease.expires - self._terms.seconds + self._terms.renew  # the machine, perhaps
            if not slept and time.monotonic() - self._renewed < self._terms.renew:
                continue
            try:
                self.renew()
            except LostLease as error:
                self._lose(str(error))
            except (VillaError, OSError) as error:
                LOG.info("the lease of %s is not renewed yet: %s", self._shown, error)

    def _watch(self) -> None:
        """In a thread of its own, since a request to a storage that is away takes minutes."""
        while not self._ended.wait(self._tick):
            if time.monotonic() - self._renewed > self._terms.seconds:
                self._lose(
                    f"the lease of {self._shown} could not be renewed for {self._terms.seconds:.0f} s, so another "
                    "villa "
                    "process may have taken it over"
                )

    @property
    def _tick(self) -> float:
        return min(1.0, self._terms.renew / 4)

    def _lose(self, why: str) -> None:
        if self._ended.is_set():
            return
        self.lost = f"{why}: this one stops; what is committed stays, and the same command goes on from there"
        self._ended.set()
        self.on_loss(self)


def _stop(lease: HeldLease) -> None:
    signal.pthread_kill(threading.main_thread().ident or 0, INTERRUPT)  # which also ends a wait of the system's
    if not lease.released.wait(GRACE_SECONDS):
        os.write(2, f"error: {lease.lost}\n".encode())
        os._exit(LostLease.exit_code)


@contextmanager
def held(run: str, instead: str, given: Terms | None = None) -> Iterator[HeldLease]:
    """The lease of a run around its work. Raises: LostLease in place of the interruption, when it was lost meanwhile."""
    lease = acquire(run, instead, given)
    in_main = threading.current_thread() is threading.main_thread()
    before = signal.signal(INTERRUPT, signal.default_int_handler) if in_main else None
    try:
        yield lease
    except BaseException:
        if lease.lost:
            raise LostLease(lease.lost) from None
        raise
    finally:
        lease.release()
        if in_main:
            signal.signal(INTERRUPT, before or signal.SIG_DFL)
