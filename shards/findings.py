"""What a check found: severity, kind, place, expected, found, remedy. Ordered, and capped per kind with a count, so that a
million broken samples make as many lines as ten, and the same lines whichever worker was first."""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

SEVERITIES = ("error", "warning", "note")
CAP = 20


@dataclass(frozen=True)
class Finding:
    """severity: error (the data is not what was committed, or not usable), warning (incomplete or suspicious), note (left by
    a crash; harmless)."""

    severity: str
    kind: str
    place: str
    expected: str
    found: str
    remedy: str

    @property
    def order(self) -> tuple[int, str, str, str]:
        return SEVERITIES.index(self.severity), self.kind, self.place, self.found

    def line(self) -> str:
        return (
            f"{self.severity}: {self.kind}: {self.place}: expected {self.expected}, found {self.found}; {self.remedy}"
        )


@dataclass
class Findings:
    """counts[(severity, kind)] of all; the first `CAP` of each, in order, are kept."""

    counts: dict[tuple[str, str], int] = field(default_factory=dict)
    kept: dict[tuple[str, str], list[Finding]] = field(default_factory=dict)

    def add(self, severity: str, kind: str, place: str, *, expected: Any, found: Any, remedy: str) -> None:
        finding = Finding(severity, kind, place, _short(expected), _short(found), remedy)
        self._keep(finding)
        self.counts[severity, kind] = self.counts.get((severity, kind), 0) + 1

    def _keep(self, finding: Finding) -> None:
        kept = self.kept.setdefault((finding.severity, finding.kind), [])
        bisect.insort(kept, finding, key=lambda f: f.order)
        del kept[CAP:]

    def merge(self, other: Findings) -> None:
        for key, count in other.counts.items():
            self.counts[key] = self.counts.get(key, 0) + count
        for finding in other:
            self._keep(finding)

    def __iter__(self) -> Any:
        return iter(sorted((f for kept in self.kept.values() for f in kept), key=lambda f: f.order))

    def total(self, severity: str) -> int:
        return sum(count for (s, _), count in self.counts.items() if s == severity)

    @property
    def clean(self) -> bool:
        """Notes aside."""
        return not self.total("error") and not self.total("warning")

    def kinds(self) -> dict[str, int]:
        """Kind -> count, worst first."""
        order = sorted(self.counts, key=lambda k: (SEVERITIES.index(k[0]), k[1]))
        return {f"{severity}: {kind}": self.counts[severity, kind] for severity, kind in order}

    def to_json(self) -> dict[str, Any]:
        return {
            "counts": [[*key, count] for key, count in self.counts.items()],
            "kept": [asdict(finding) for finding in self],
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Findings:
        made = cls({(severity, kind): count for severity, kind, count in value["counts"]})
        for kept in value["kept"]:
            made._keep(Finding(**kept))
        return made


def lines(findings: Findings) -> Iterable[str]:
    """For a person: every finding that was kept, and how many of its kind were not."""
    shown: dict[tuple[str, str], int] = {}
    for finding in findings:
        key = finding.severity, finding.kind
        shown[key] = shown.get(key, 0) + 1
        yield finding.line()
        more = findings.counts[key] - CAP
        if shown[key] == CAP and more > 0:
            yield f"{finding.severity}: {finding.kind}: … and {more} more"


def _short(value: Any, limit: int = 200) -> str:
    text = str(value).encode("utf-8", "backslashreplace").decode()
    return text if len(text) <= limit else text[: limit - 1] + "…"
