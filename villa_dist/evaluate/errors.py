"""The error of evaluation."""

from __future__ import annotations

from shards.errors import VillaError


class EvaluationError(VillaError, ValueError):
    """Scores, boxes, labels or truth that no metric can be trusted on."""
