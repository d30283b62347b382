"""A headless Chromium by its debugging pipe: real key presses, any width, all requests and console lines seen."""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome", "chrome-headless-shell")
CACHE = Path.home() / ".cache" / "ms-playwright"
KEYS = {"Tab": (9, ""), "Enter": (13, "\r"), "Escape": (27, ""), "ArrowRight": (39, "")}
PATIENCE = 60.0


def find() -> str | None:
    """On PATH, or as playwright keeps it."""
    on_path = next((b for b in NAMES if shutil.which(b)), None)
    kept = sorted(CACHE.glob("chromium*/chrome-*/chrome*")) if CACHE.is_dir() else []
    return on_path or next((str(p) for p in kept if p.is_file() and os.access(p, os.X_OK)), None)


class Tab:
    """One page. events: all that was told of it, in order."""

    def __init__(self, to: int, back: int) -> None:
        self._to, self._back, self._number, self._rest = to, back, 0, b""
        self._session = ""
        self.events: list[dict[str, Any]] = []

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        return self._until(lambda m: m.get("id") == self._number)["result"]

    def attach(self) -> None:
        made = self.call("Target.createTarget", url="about:blank")
        self._session = self.call("Target.attachToTarget", targetId=made["targetId"], flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")

    def open(self, url: str, width: int = 1280, height: int = 900) -> None:
        self.width(width, height)
        self.events.clear()
        self.call("Page.navigate", url=url)
        self._until(lambda m: m.get("method") == "Page.loadEventFired", seen=True)

    def width(self, width: int, height: int = 900) -> None:
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)

    def value(self, expression: str) -> Any:
        """Of JavaScript. Raises: AssertionError when it throws."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def press(self, *keys: str) -> None:
        for key in keys:
            code, text = KEYS[key]
            for kind in ("keyDown", "keyUp"):
                said = {"text": text} if text and kind == "keyDown" else {}
                self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code, **said)

    def type(self, text: str) -> None:
        for letter in text:
            self.call("Input.dispatchKeyEvent", type="char", text=letter)

    def screenshot(self, path: Path, height: int | None = None) -> None:
        """height: of the part from the top; None: of what the window shows."""
        clip = (
            {"clip": {"x": 0, "y": 0, "width": self.value("innerWidth"), "height": height, "scale": 1}}
            if height
            else {}
        )
        made = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=bool(height), **clip)
        path.write_bytes(base64.b64decode(made["data"]))

    @property
    def requests(self) -> list[str]:
        """Addresses of all requests but those inside the page itself."""
        sent = [e["params"]["request"]["url"] for e in self.events if e["method"] == "Network.requestWillBeSent"]
        return [url for url in sent if not url.startswith("data:")]

    @property
    def complaints(self) -> list[str]:
        """Errors and warnings of the console, exceptions, and what the page's policy refused."""
        told = [e for e in self.events if e["method"] in ("Log.entryAdded", "Runtime.exceptionThrown")]
        said = [e for e in self.events if e["method"] == "Runtime.consoleAPICalled" and e["params"]["type"] != "log"]
        return [json.dumps(e["params"])[:500] for e in [*told, *said]]

    def _until(self, wanted: Any, *, seen: bool = False) -> dict[str, Any]:
        """seen: what came before counts too."""
        for event in self.events if seen else ():
            if wanted(event):
                return event
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            whole, mark, self._rest = self._rest.partition(b"\0")
            if not mark:
                self._rest = whole
                if select.select([self._back], [], [], 1.0)[0]:
                    self._rest += os.read(self._back, 1 << 20)
                continue
            message = json.loads(whole)
            if "method" in message:
                self.events.append(message)
            if wanted(message):
                assert "error" not in message, message
                return message
        raise AssertionError(f"the browser did not answer within {PATIENCE:.0f} s")


@contextmanager
def browser(program: str, profile: Path) -> Iterator[Tab]:
    """A tab of a browser of its own, which ends with the block."""
    to_read, to_write = os.pipe()
    back_read, back_write = os.pipe()
    flags = (
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--remote-debugging-pipe",
        "--no-first-run",
        "--hide-scrollbars",
    )
    quiet = (
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        f"--user-data-dir={profile}",
    )
    line = f'exec "$@" 3<&{to_read} 4>&{back_write}'  # the pipe's two ends, by the numbers that it has
    process = subprocess.Popen(
        ["bash", "-c", line, "browser", program, *flags, *quiet],
        pass_fds=(to_read, back_write),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.close(to_read)
    os.close(back_write)
    tab = Tab(to_write, back_read)
    try:
        tab.attach()
        yield tab
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        os.close(to_write)
        os.close(back_read)
