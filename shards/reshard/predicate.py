"""`--where`: a predicate over sidecar columns, one truth value a sample.

    pairs >= 4 and regions.width >= 224 and not (base.key == "broken")

`stage.column` is the column's value, or the number of entries where it is a list; a stage alone is its main list's
number of entries (pairs, truth: pairs; regions: boxes). Comparisons, `and`, `or`, `not`, numbers and strings; nothing else.
"""

from __future__ import annotations

import ast
import difflib
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Bool

from shards.errors import VillaError

MAIN = {"pairs": "region", "truth": "region", "regions": "boxes"}
COMPARE: dict[type, Callable[[Any, Any], Any]] = {
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
}


def parse(text: str) -> ast.expr:
    """Raises: VillaError naming the part that is not understood."""
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise VillaError(f"--where {text!r} is not an expression ({error}); for example: pairs >= 4") from None
    _check(tree, text)
    return tree


def _check(node: ast.expr, text: str) -> None:
    if isinstance(node, ast.BoolOp):
        for value in node.values:
            _check(value, text)
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        _check(node.operand, text)
    elif isinstance(node, ast.Compare) and all(type(op) in COMPARE for op in node.ops):
        for side in (node.left, *node.comparators):
            if _column(side) is None and _constant(side) is None:
                raise VillaError(f"--where: {ast.unparse(side)!r} in {text!r} is neither a column nor a constant")
    else:
        raise VillaError(
            f"--where: {ast.unparse(node)!r} in {text!r} is not understood; compare columns with <, <=, >, >=, == or "
            "!=, and join comparisons by and, or, not"
        )


def stages(text: str) -> list[str]:
    """The stages a predicate reads, sorted."""
    names = {c.split(".")[0] for node in ast.walk(parse(text)) if (c := _column(node)) is not None}
    return sorted(names)


def check_stages(text: str, known: Sequence[str], place: str) -> None:
    """Raises: VillaError for a stage that is not there."""
    for stage in stages(text):
        if stage not in known:
            near = difflib.get_close_matches(stage, known, 1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; there are {sorted(known)}"
            raise VillaError(f"--where: {place} has no stage {stage!r} with one row a sample{hint}")


def _column(node: ast.AST) -> str | None:
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
        return f"{node.value.id}.{node.attr}"
    return None


def _constant(node: ast.AST) -> float | str | None:
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float | str):
        return node.value
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        value = _constant(node.operand)
        return -value if isinstance(value, int | float) else None
    return None


def evaluate(text: str, tables: Mapping[str, pa.Table], rows: int, place: str) -> Bool[np.ndarray, " N"]:
    """The predicate for each of `rows` samples of one shard. tables: each of `stages(text)` -> its rows in tar order.

    Raises: VillaError for a column that is not there, or a comparison of unlike things.
    """

    def side(node: ast.expr) -> Any:
        name = _column(node)
        return _constant(node) if name is None else _values(tables, name, place)

    def truth(node: ast.expr) -> np.ndarray:
        if isinstance(node, ast.BoolOp):
            parts = [truth(v) for v in node.values]
            return np.logical_and.reduce(parts) if isinstance(node.op, ast.And) else np.logical_or.reduce(parts)
        if isinstance(node, ast.UnaryOp):
            return ~truth(node.operand)
        assert isinstance(node, ast.Compare)
        sides = [side(s) for s in (node.left, *node.comparators)]
        held = np.ones(rows, bool)
        for op, a, b in zip(node.ops, sides, sides[1:], strict=False):
            if _is_text(a) != _is_text(b):
                raise VillaError(f"--where: {ast.unparse(node)!r} compares a text with a number; see {place}")
            held &= np.broadcast_to(COMPARE[type(op)](np.asarray(a), np.asarray(b)), rows)
        return held

    return truth(parse(text))


def _is_text(value: Any) -> bool:
    return np.asarray(value).dtype.kind in "UO"


def _values(tables: Mapping[str, pa.Table], name: str, place: str) -> np.ndarray:
    stage, _, column = name.partition(".")
    table = tables[stage]
    column = column or MAIN.get(stage, "")
    if column not in table.column_names:
        raise VillaError(f"--where: stage {stage!r} of {place} has no column {column!r}; it has {table.column_names}")
    values = table[column].combine_chunks()
    if pa.types.is_list(values.type) or pa.types.is_large_list(values.type):
        return np.asarray(values.value_lengths().fill_null(0).to_numpy(zero_copy_only=False))
    if pa.types.is_string(values.type):
        return np.asarray(values.to_pylist(), dtype=object).astype(str)
    return np.asarray(values.to_numpy(zero_copy_only=False))
