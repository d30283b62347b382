"""The error of evaluation."""

from __future__ import annotations

from shards.errors import VillaError


class EvaluationError(VillaError, ValueError):
    """Scores, boxes, labels or truth that no metric can be trusted on."""


class NothingHereError(EvaluationError):
    """A split has no image that a part of evaluation is of; another split may have."""
