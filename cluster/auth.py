"""Ray's token: who has it may run any code on the cluster, so no cluster is used over a network without one.

Ray takes the token from RAY_AUTH_TOKEN, the file RAY_AUTH_TOKEN_PATH or ~/.ray/auth_token, and asks for it where
RAY_AUTH_MODE=token. It travels unencrypted: a private network or TLS is still needed around it (SECURITY.md).
"""

from __future__ import annotations

import ipaddress
import os
from pathlib import Path
from urllib.parse import urlsplit

from shards.errors import VillaError

MODE, TOKEN, TOKEN_PATH = "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"
INSECURE = "VILLA_INSECURE_NO_TOKEN"
GIVE = (
    f"give it by {TOKEN_PATH}=FILE (or {TOKEN}), with the token of the cluster; on Kubernetes it is in the cluster's "
    "Secret, key "
    "auth_token"
)


def token() -> str:
    """As Ray finds it; empty where there is none. Raises: VillaError for a file that is named and cannot be read."""
    if os.environ.get(TOKEN):
        return os.environ[TOKEN]
    named = os.environ.get(TOKEN_PATH)
    path = Path(named) if named else Path.home() / ".ray" / "auth_token"
    try:
        found = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        if not named:
            return ""
        reason = getattr(error, "strerror", None) or "it is not text"
        raise VillaError(f"{TOKEN_PATH}={named}: {reason}; name the file that holds the cluster's token") from None
    if named and not found:
        raise VillaError(f"{TOKEN_PATH}={named} is empty; put the cluster's token into it")
    return found


def require_token(address: str, *, insecure: bool, how: str) -> None:
    """See to it that Ray sends a token to `address`; must be called before ray is imported.

    how: what allows to go without one, for the message. Raises: VillaError where there is none and the address is not this
    machine's loopback.
    """
    mode = os.environ.get(MODE, "").lower()
    if mode not in ("", "token", "disabled"):
        raise VillaError(f"{MODE}={mode!r} is not a mode of Ray's; set it to token")
    found = token() if mode != "disabled" else ""
    if found:
        os.environ[MODE] = "token"
        return
    if mode == "token":
        raise VillaError(f"{MODE}=token, and there is no token for the Ray cluster at {address}; {GIVE}")
    if insecure or os.environ.get(INSECURE) == "1" or is_loopback(address):
        return
    raise VillaError(
        f"refusing to use the Ray cluster at {address} without a token: whoever reaches it can run any code on it; "
        "start it "
        f"with {MODE}=token, and {GIVE}. To go without on a network that you trust: {how}"
    )


def is_loopback(address: str) -> bool:
    """Whether an address (host:port, ray:// or http://) can be reached from this machine only."""
    host = urlsplit(address if "://" in address else f"ray://{address}").hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
