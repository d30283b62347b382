r"""An HTTP proxy for one server on this host that fails on demand, and counts what passes.

    proxy = Proxy(("127.0.0.1", port)).start()
    proxy.faults.append(Fault("lose_response", "PUT", r"\.done\.json"))

A fault is met by the requests that its method and pattern match; after `times` of them it is spent. Requests that carry
`If-None-Match` are passed on one at a time: the server behind looks and writes in two steps, which a real one does not.
"""

from __future__ import annotations

import re
import socket
import struct
import threading
import time
from dataclasses import dataclass, field
from typing import BinaryIO, Literal

Kind = Literal["status", "delay", "cut_request", "lose_response", "cut_response", "short_response"]
REASON = {403: "AccessDenied", 500: "InternalError", 502: "BadGateway", 503: "SlowDown", 504: "GatewayTimeout"}


@dataclass
class Fault:
    """What happens to requests of `method` whose target matches `target`: the first `skip` pass, the next `times` meet it.

    status          answered with `status` and S3's XML for it (`code`), the server sees nothing
    delay           passed on after `seconds`
    cut_request     the connection is reset after `keep` bytes of the request's body, the server sees nothing
    lose_response   the server does the work, the connection is reset before the response
    cut_response    the connection is closed after `keep` bytes of the response's body
    short_response  the response has `keep` bytes of its body, and a header that says so
    """

    kind: Kind
    method: str = ""
    target: str = ""
    times: int = 1
    skip: int = 0
    status: int = 503
    code: str = ""
    headers: str = ""
    seconds: float = 0.0
    keep: int = 10
    met: int = field(default=0, init=False)


@dataclass
class Message:
    """Start line, header lines and whole body of a request or response."""

    start: str
    headers: list[str]
    body: bytes

    def header(self, name: str) -> str | None:
        for line in self.headers:
            key, _, value = line.partition(":")
            if key.strip().lower() == name:
                return value.strip()
        return None

    def without(self, *names: str) -> list[str]:
        return [line for line in self.headers if line.partition(":")[0].strip().lower() not in names]

    def to_bytes(self) -> bytes:
        return "\r\n".join([self.start, *self.headers, "", ""]).encode("latin-1") + self.body


class Reset(Exception):
    """Close the client's connection, with a reset unless `polite`."""

    def __init__(self, *, polite: bool = False) -> None:
        self.polite = polite


class Proxy:
    def __init__(self, upstream: tuple[str, int], host: str = "127.0.0.1") -> None:
        self.upstream, self.host = upstream, host
        self.faults: list[Fault] = []
        self.requests: list[str] = []  # "METHOD target", in the order they came in
        self.ignores_conditions = False  # as some storages do
        self._lock = threading.Lock()
        self._one_at_a_time = threading.Lock()
        self._listener = socket.create_server((host, 0), backlog=128)
        self.port: int = self._listener.getsockname()[1]
        self._open: set[socket.socket] = set()

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}"

    def start(self) -> Proxy:
        threading.Thread(target=self._accept, name="proxy", daemon=True).start()
        return self

    def stop(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)  # wakes the thread that accepts
        self._listener.close()
        with self._lock:
            for connection in self._open:
                connection.close()

    def clear(self) -> None:
        with self._lock:
            self.faults.clear()
            self.requests.clear()

    def count(self, method: str = "", target: str = "") -> int:
        return sum(_matches(r, method, target) for r in self.requests)

    # ---- one connection

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return  # stopped
            with self._lock:
                self._open.add(connection)
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        try:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with connection.makefile("rb") as reader:
                while self._exchange(connection, reader):
                    pass
        except Reset as reset:
            if not reset.polite and connection.fileno() >= 0:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        except (OSError, ValueError):
            pass  # the client has gone, or the proxy was stopped
        finally:
            with self._lock:
                self._open.discard(connection)
            connection.close()

    def _exchange(self, connection: socket.socket, reader: BinaryIO) -> bool:
        head = _read_head(reader)
        if head is None:
            return False
        method, target, _ = head.start.split(" ", 2)
        request = f"{method} {target}"
        with self._lock:
            self.requests.append(request)
            fault = self._fault(request)
        if (head.header("expect") or "").lower() == "100-continue":
            connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        if fault and fault.kind == "cut_request":
            reader.read(min(fault.keep, int(head.header("content-length") or 0)))
            raise Reset
        head.body = _read_body(head, reader)
        if fault and fault.kind == "status":
            connection.sendall(_refusal(fault, head_only=method == "HEAD"))
            return True
        if fault and fault.kind == "delay":
            time.sleep(fault.seconds)
        response = self._forward(head, method)
        if fault and fault.kind == "lose_response":
            raise Reset
        if fault and fault.kind == "cut_response":
            connection.sendall(Message(response.start, response.headers, response.body[: fault.keep]).to_bytes())
            raise Reset(polite=True)
        if fault and fault.kind == "short_response" and response.body:
            kept = response.body[: fault.keep]
            lines = [*response.without("content-length"), f"Content-Length: {len(kept)}"]
            connection.sendall(Message(response.start, lines, kept).to_bytes())
            return True
        connection.sendall(response.to_bytes())
        return True

    def _fault(self, request: str) -> Fault | None:
        for fault in self.faults:
            if _matches(request, fault.method, fault.target):
                fault.met += 1
                if fault.skip < fault.met <= fault.skip + fault.times:
                    return fault
        return None

    def _forward(self, request: Message, method: str) -> Message:
        dropped = ("if-none-match",) if self.ignores_conditions else ()
        gone = ("connection", "expect", "transfer-encoding", "content-length", *dropped)
        lines = [*request.without(*gone), "Connection: close"]
        lines.append(f"Content-Length: {len(request.body)}")
        if request.header("if-none-match"):
            with self._one_at_a_time:
                return self._ask(Message(request.start, lines, request.body), method)
        return self._ask(Message(request.start, lines, request.body), method)

    def _ask(self, request: Message, method: str) -> Message:
        with socket.create_connection(self.upstream, timeout=60) as upstream, upstream.makefile("rb") as reader:
            upstream.sendall(request.to_bytes())
            response = _read_head(reader)
            if response is None:
                raise Reset
            if method != "HEAD" and " 204 " not in response.start and " 304 " not in response.start:
                response.body = _read_body(response, reader, to_the_end=True)
            length = response.header("content-length") if method == "HEAD" else str(len(response.body))
            response.headers = response.without("connection", "transfer-encoding", "content-length")
            response.headers.append(f"Content-Length: {length or 0}")
            return response


def _matches(request: str, method: str, target: str) -> bool:
    found, _, place = request.partition(" ")
    return (not method or found == method) and (not target or re.search(target, place) is not None)


def _refusal(fault: Fault, *, head_only: bool) -> bytes:
    code = fault.code or REASON.get(fault.status, "Error")
    body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>refused on demand</Message></Error>".encode()
    more = f"{fault.headers}\r\n" if fault.headers else ""
    start = (
        f"HTTP/1.1 {fault.status} {code}\r\nContent-Type: application/xml\r\n{more}Content-Length: {len(body)}\r\n\r\n"
    )
    return start.encode() + (b"" if head_only else body)


def _read_head(reader: BinaryIO) -> Message | None:
    start = reader.readline()
    if not start.strip():
        return None
    lines = []
    while (line := reader.readline().rstrip(b"\r\n")) != b"":
        lines.append(line.decode("latin-1"))
    return Message(start.decode("latin-1").rstrip(), lines, b"")


def _read_body(message: Message, reader: BinaryIO, *, to_the_end: bool = False) -> bytes:
    if "chunked" in (message.header("transfer-encoding") or "").lower():
        parts = []
        while size := int(reader.readline().split(b";")[0], 16):
            parts.append(reader.read(size))
            reader.readline()
        while reader.readline().strip():
            pass
        return b"".join(parts)
    length = message.header("content-length")
    if length is not None:
        body = reader.read(int(length))
        if len(body) != int(length):
            raise Reset
        return body
    return reader.read() if to_the_end else b""
