"""One file of Python out of several modules: what an entry module defines, and of other modules of ours only what it uses.

So the code in an exported folder is the code that trained the model, word for word, and nothing of it is kept twice.
Names are followed through `from … import …`; definitions are copied as they are written, dependencies first.
"""

from __future__ import annotations

import ast
import importlib.util
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

OURS = ("villa_dist", "shards")
# what stands for a name of ours instead of its definition: in an exported model statistics are fixed and errors are plain
STAND_INS = {
    "VillaError": 'class VillaError(ValueError):\n    """What was given cannot be used; the message says what can."""',
    "GlobalBatchNorm": "GlobalBatchNorm = nn.BatchNorm2d  # its statistics are fixed here",
}
SHAPES = '''class Float:
    """Shapes in signatures, as jaxtyping writes them: Float[Tensor, "N 3 H W"] is a float tensor of four dimensions."""

    def __class_getitem__(cls, item: Any) -> Any:
        return item[0]


Bool = Int = UInt8 = Float'''


class BundleError(Exception):
    """A module that cannot be bundled: it says why. A defect of ours, never of what a user gave."""


@dataclass
class Source:
    """A module's text, and where each of its names comes from."""

    name: str

    @cached_property
    def text(self) -> str:
        spec = importlib.util.find_spec(self.name)
        if spec is None or spec.origin is None:
            raise BundleError(f"there is no module {self.name}")
        return Path(spec.origin).read_text(encoding="utf-8")

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.text)

    @cached_property
    def definitions(self) -> dict[str, ast.stmt]:
        return {name: node for node in self.tree.body for name in defined(node)}

    @cached_property
    def imports(self) -> dict[str, tuple[str, str | None]]:
        """Local name to (module, name in it); None for a module itself."""
        found: dict[str, tuple[str, str | None]] = {}
        for node in self.tree.body:
            if isinstance(node, ast.ImportFrom) and node.module:
                found.update({a.asname or a.name: (node.module, a.name) for a in node.names})
            elif isinstance(node, ast.Import):
                found.update({a.asname or a.name: (a.name, None) for a in node.names})
        return found

    def segment(self, node: ast.stmt) -> str:
        """The lines of a definition, its decorators and the comment above it included."""
        lines = self.text.splitlines()
        decorators = getattr(node, "decorator_list", [])
        first = min([node.lineno, *(d.lineno for d in decorators)]) - 1
        while first and lines[first - 1].startswith("#"):
            first -= 1
        return "\n".join(lines[first : node.end_lineno])


def defined(node: ast.stmt) -> list[str]:
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return [node.name]
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    return [n.id for target in targets for n in ast.walk(target) if isinstance(n, ast.Name)]


def used(node: ast.AST, *, annotations: bool) -> Iterator[str]:
    """Names that run when the definition does (annotations: those that only its annotations name)."""
    skipped = ("annotation", "returns")
    for name, value in ast.iter_fields(node):
        inside = annotations or name not in skipped
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.ImportFrom) and (child.module or "").split(".")[0] in OURS:
                raise BundleError(f"line {child.lineno} imports {child.module} inside a function")
            if isinstance(child, ast.Name) and inside:
                yield child.id
            if isinstance(child, ast.AST) and inside:
                yield from used(child, annotations=annotations)


@dataclass
class Bundle:
    replace: Mapping[str, str] = field(default_factory=dict)  # of names imported from elsewhere
    taken: dict[str, str] = field(default_factory=dict)  # name to the module it came from
    parts: list[str] = field(default_factory=list)
    outer: set[tuple[str, str | None, str]] = field(default_factory=set)  # module, name in it, local name
    stand_ins: set[str] = field(default_factory=set)
    only_named: set[str] = field(default_factory=set)

    def take(self, module: str, name: str) -> None:
        if self.taken.get(name, module) != module:
            raise BundleError(f"{name} is defined in both {self.taken[name]} and {module}")
        if name in self.taken:
            return
        source = _source(module)
        if name not in source.definitions:
            raise BundleError(f"{module} does not define {name}")
        node = source.definitions[name]
        for each in defined(node):
            self.taken[each] = module
        for other in used(node, annotations=False):
            if other in source.definitions:
                self.take(module, other)
            elif other in source.imports:
                self._import(*source.imports[other], other)
        for other in used(node, annotations=True):
            self._named(source, other)
        self.parts.append(source.segment(node))

    def _import(self, module: str, name: str | None, local: str) -> None:
        if module.split(".")[0] not in OURS:
            self.outer.add((module, name, local))
        elif name in STAND_INS:
            self.stand_ins.add(local)
        elif name is None or name != local or name not in _source(module).definitions:
            raise BundleError(f"{local} of {module} is no definition under its own name")
        else:
            self.take(module, name)

    def _named(self, source: Source, name: str) -> None:
        """A name in an annotation, which nothing evaluates: an import from elsewhere, or one of ours that is not needed."""
        module, original = source.imports.get(name, (source.name, name))
        if module.split(".")[0] not in OURS:
            self.outer.add((module, original, name))
        elif name in source.imports or name in source.definitions:
            self.only_named.add(name)

    def imported(self) -> str:
        """The import lines, one a module, as isort orders them."""
        plain: set[str] = set()
        chosen: dict[str, set[str]] = {}
        for module, name, local in self.outer | {("typing", "Any", "Any")}:
            if module == "jaxtyping":
                continue
            if name is None:
                plain.add(f"import {module}" + (f" as {local}" if local != module else ""))
            else:
                original = self.replace.get(name, name)
                chosen.setdefault(module, set()).add(original + (f" as {local}" if local != name else ""))
        lines = [
            *sorted(plain),
            *(f"from {module} import {', '.join(sorted(chosen[module]))}" for module in sorted(chosen)),
        ]
        standard = [line for line in lines if line.split()[1].split(".")[0] in sys.stdlib_module_names]
        return "\n".join(standard) + "\n\n" + "\n".join(line for line in lines if line not in standard)


_SOURCES: dict[str, Source] = {}


def _source(module: str) -> Source:
    return _SOURCES.setdefault(module, Source(module))


def bundle(entry: str, replace: Mapping[str, str] | None = None) -> str:
    """The text of a file that defines all that module `entry` does and imports nothing of ours.

    replace: names that the entry imports from elsewhere, to the ones to import instead. Raises: BundleError when two modules
    define one name, or a module of ours is used other than by `from … import name`.
    """
    made, source = Bundle(replace or {}), _source(entry)
    for name in source.definitions:
        made.take(entry, name)
    docstring = ast.get_docstring(source.tree) or ""
    quoted = f'"""{docstring}\n"""' if "\n" in docstring else f'"""{docstring}"""'
    head = [quoted, "from __future__ import annotations", made.imported(), "", SHAPES]
    unneeded = sorted(made.only_named - set(made.taken) - made.stand_ins)
    if unneeded:
        head.append(f"{' = '.join(unneeded)} = Any  # types of the training code, named in signatures alone")
    head += [STAND_INS[name] for name in sorted(made.stand_ins)]
    return "\n\n".join(head) + "\n\n\n" + "\n\n\n".join(made.parts) + "\n"
