"""JSON that somebody else wrote: reading it, and saying what is wrong in it, without ever raising what no user can read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from villa_dist.evaluate.errors import EvaluationError

SHOWN = 120  # characters of a value in a message


def read_json(path: str | Path, what: str = "") -> Any:
    """The content of a file. what: such as "prompt templates", for messages.

    Raises: EvaluationError for a file that cannot be read, is not JSON in UTF-8, or is nested too deeply.
    """
    subject = f"{path}: {what} " if what else f"{path}: "
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise EvaluationError(f"{subject}cannot be read: no such file; correct the path") from None
    except OSError as error:
        raise EvaluationError(f"{subject}cannot be read: {error.strerror}") from error
    except RecursionError:
        raise EvaluationError(f"{subject}cannot be read: its JSON is nested too deeply; write it flat") from None
    except ValueError as error:  # JSON and UTF-8 alike
        raise EvaluationError(f"{path}: not JSON: {error}") from None


def is_text(value: Any) -> bool:
    """Whether it is a string that can be written: JSON can escape half a character."""
    try:
        return isinstance(value, str) and value.encode() is not None
    except UnicodeEncodeError:
        return False


def said(value: Any) -> str:
    """A value in a message, shortened and printable. Never fails: a number may have too many digits to be written, a list be
    nested too deeply."""
    try:
        return repr(value)[:SHOWN].encode("utf-8", "backslashreplace").decode()
    except (ValueError, RecursionError):
        return f"a value of type {type(value).__name__} that is too large to show"
