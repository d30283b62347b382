"""The table of faults and stages in docs/reliability.md: each cell names tests that are there, or says why there is none."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

TESTS = Path(__file__).parents[1]
PAGE = TESTS.parent / "docs" / "reliability.md"
STAGES = ["ingest", "regions", "mapping, pairs", "train", "evaluate"]
CODE = re.compile(r"\b[A-Z]\d+\b")


def part() -> str:
    return PAGE.read_text(encoding="utf-8").partition("## Every fault in every stage")[2].partition("\n## ")[0]


def rows() -> list[list[str]]:
    lines = [line for line in part().splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def known() -> dict[str, Path]:
    """The test of each code, as FILE::NAME."""
    found: dict[str, Path] = {}
    for line in re.split(r"\n- ", part())[1:]:
        folder = re.match(r"[A-Z] `(tests[\w/]*)`:", line)
        assert folder, line
        for code, file, name in re.findall(r"([A-Z]\d+)\s+`([\w/.]+)::(\w+)`", line):
            assert code not in found, f"{code} stands for two tests"
            found[code] = TESTS.parent / folder[1] / f"{file}::{name}"
    return found


@cache
def functions(path: Path) -> set[str]:
    return {n.name for n in ast.parse(path.read_text(encoding="utf-8")).body if isinstance(n, ast.FunctionDef)}


def test_every_fault_has_an_answer_in_every_stage() -> None:
    head, *faults = rows()
    assert head[1:] == STAGES and len(faults) == 12
    for name, *cells in faults:
        assert len(cells) == len(STAGES), name
        for stage, cell in zip(STAGES, cells, strict=True):
            reason = cell.partition("does not apply")[2].strip(":, ")
            assert CODE.search(cell) or reason, f"{name}, {stage}: neither a test nor why there is none"


def test_every_test_that_is_named_is_there_and_every_code_used() -> None:
    used = {code for row in rows()[1:] for cell in row[1:] for code in CODE.findall(cell)}
    tests = known()
    assert used == tests.keys()
    for code, place in tests.items():
        file, _, name = str(place).partition("::")
        assert name.startswith("test_") and name in functions(Path(file)), f"{code}: there is no {place}"
