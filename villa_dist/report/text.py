"""Text for the report: figures as words, and data made safe to show. All functions are pure."""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

NONE = "–"
REDACTED = "(redacted)"
_SECRET_NAME = re.compile(r"password|passwd|secret|credential|token(?!iz)|(?:^|_|-|api|access)key(?:$|s$|_|-)", re.I)
_URL_USER = re.compile(r"(\w://)[^/@\s]+@")
_URL_SECRET = re.compile(r"([?&][^=&\s]*(?:key|token|secret|signature|password|credential)[^=&\s]*=)[^&\s]+", re.I)


def number(value: object) -> float | None:
    """The value as a finite float, or None: results of older or partial runs lack figures, or hold NaN."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def figure(value: object, digits: int = 2) -> str:
    """`1,234.50`, with a true minus; an en dash where there is no finite figure."""
    known = number(value)
    if known is None:
        return NONE
    return f"{round(known, digits) + 0.0:,.{digits}f}".replace("-", "−")


def seconds(value: object) -> str:
    known = number(value)
    return "<0.01" if known is not None and 0.0 < known < 0.005 else figure(known)


def signed(value: object, digits: int = 2) -> str:
    known = number(value)
    return f"+{figure(known, digits)}" if known is not None and round(known, digits) > 0 else figure(value, digits)


def percent(value: object, digits: int = 1) -> str:
    known = number(value)
    return NONE if known is None else f"{figure(known, digits)}%"


def between(interval: object, digits: int = 1) -> str:
    """`58.1 to 64.0`, of a list of two figures; empty for anything else."""
    if not isinstance(interval, list) or len(interval) != 2 or any(number(v) is None for v in interval):
        return ""
    return f"{figure(interval[0], digits)} to {figure(interval[1], digits)}"


def count(value: object, one: str = "", many: str = "") -> str:
    """`1 image`, `1,234 images`."""
    known = number(value)
    if known is None:
        return NONE
    noun = one if known == 1 else many or f"{one}s"
    return f"{known:,.0f} {noun}" if one else f"{known:,.0f}"


def listed(parts: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return " and ".join([", ".join(parts[:-1]), parts[-1]]) if len(parts) > 1 else "".join(parts)


def shortened(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"


def plain(value: Any) -> Any:
    """jinja2's `finalize`: what a page cannot show as it is, or must not, becomes visible text.

    Control characters, lone surrogates and direction overrides (which would reorder their neighbours) are written as
    escapes; credentials inside URLs are left out. Markup that a template itself made passes unchanged.
    """
    if not isinstance(value, str) or isinstance(value, Markup):
        return value
    value = _URL_SECRET.sub(rf"\1{REDACTED}", _URL_USER.sub(rf"\1{REDACTED}@", value))
    if value.isprintable():
        return value
    return "".join(c if _harmless(c) else _escape(c) for c in value)


def _harmless(character: str) -> bool:
    """Printable, a line break, a kind of space, or one of the two joiners that scripts and emoji need."""
    return character.isprintable() or character in "\n\t\u200c\u200d" or unicodedata.category(character) == "Zs"


def _escape(character: str) -> str:
    code = ord(character)
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def redacted(value: Any, name: str = "") -> Any:
    """A nested config without the values of keys that name a secret. Empty values and switches stay visible."""
    if _SECRET_NAME.search(name) and value is not None and not isinstance(value, bool) and value != "":
        return REDACTED
    if isinstance(value, Mapping):
        return {k: redacted(v, str(k)) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [redacted(v) for v in value]
    return value
