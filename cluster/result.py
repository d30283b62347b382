"""The result line: the one thing on stdout, whatever libraries print."""

from __future__ import annotations

import json
import os
from typing import Any

_STDOUT = -1  # the descriptor of the real stdout


def keep_stdout(*, redirect: bool) -> None:
    """Keep stdout for the result line; with `redirect`, what libraries print goes to stderr."""
    global _STDOUT
    _STDOUT = os.dup(1)
    if redirect:
        os.dup2(2, 1)


def emit(result: dict[str, Any]) -> None:
    """Write the result line."""
    line = (json.dumps(result, ensure_ascii=False) + "\n").encode()
    while line:
        line = line[os.write(_STDOUT if _STDOUT >= 0 else 1, line) :]
