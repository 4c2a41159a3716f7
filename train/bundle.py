"""One file of what a class needs of this package, for those who have the libraries and not the package.

A release holds its pipeline's code so. What is taken is what is reached by names from the class, as it stands in the
modules, the lines of comment above it included; it is data here, and nothing is imported or run to make it.
"""

import ast
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

OURS = ("sonify", "train")
ROOT = Path(__file__).parents[1]


@dataclass(frozen=True, slots=True, kw_only=True)
class Module:
    """What a module says at its top: the lines of each definition by its name, and what each imported name is.

    `ours` has the module of a name, `foreign` its import statement.
    """

    doc: str
    lines: list[str]
    definitions: dict[str, ast.stmt]
    ours: dict[str, str]
    foreign: dict[str, str]


def bundle(module: str, name: str, doc: str | None = None) -> bytes:
    """The code of a top-level name of a module, and of all of ours that it needs, as one file.

    Raises:
        ValueError: two modules call different things by one name, or import something of ours in a way that is not
            followed here.
    """
    needed: dict[str, str] = {}  # of each name, the module that defines it
    foreign: dict[str, str] = {}  # of each name, the statement that imports it
    _collect(module, name, needed, foreign)
    doc = doc or read_module(module).doc
    end = "\n" if "\n" in doc else ""
    text = f'"""{doc}{end}"""\n\n' + "".join(_merged(foreign.values()))
    was_simple = False
    for place in _in_order(module, {*needed.values()}):
        lines = read_module(place).lines
        nodes = {
            id(node): node for node in (read_module(place).definitions[one] for one in needed if needed[one] == place)
        }
        for node in sorted(nodes.values(), key=lambda node: node.lineno):
            is_simple = isinstance(node, ast.Assign | ast.AnnAssign)
            text += "" if is_simple and was_simple else "\n\n"
            text += "".join(f"{line}\n" for line in lines[_first_line(node, lines) : node.end_lineno])
            was_simple = is_simple
    return text.encode()


@cache
def read_module(name: str) -> Module:
    """Read a module of ours, without importing it."""
    text = ROOT.joinpath(*name.split(".")).with_suffix(".py").read_text(encoding="utf-8")
    tree = ast.parse(text)
    definitions: dict[str, ast.stmt] = {}
    ours: dict[str, str] = {}
    foreign: dict[str, str] = {}
    for node in tree.body:
        for defined in _defined(node):
            definitions[defined] = node
        if not isinstance(node, ast.Import | ast.ImportFrom):
            continue
        for alias in node.names:
            local = alias.asname or alias.name.split(".")[0]
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in OURS:
                if alias.asname:
                    raise ValueError(f"{name}: imports {alias.name} as {alias.asname}, which is not followed")
                ours[local] = str(node.module)
            elif isinstance(node, ast.Import) and local in OURS:
                raise ValueError(f"{name}: imports {alias.name} as a whole, which is not followed")
            else:
                foreign[local] = ast.unparse(_alone(node, alias))
    doc = (ast.get_docstring(tree) or name).rstrip()
    return Module(doc=doc, lines=text.splitlines(), definitions=definitions, ours=ours, foreign=foreign)


def _collect(module: str, name: str, needed: dict[str, str], foreign: dict[str, str]) -> None:
    """Follow a name to what defines it, and to all that this needs; what is none of ours is local, or Python's own."""
    found = read_module(module)
    if name in found.ours:
        _collect(found.ours[name], name, needed, foreign)
    elif name in found.foreign or name in found.definitions:
        there, what = (foreign, found.foreign[name]) if name in found.foreign else (needed, module)
        if name in needed.keys() | foreign.keys():
            if there.get(name) != what:
                raise ValueError(f"{name} of {module} is another thing elsewhere: rename one of them")
            return
        there[name] = what
        for node in ast.walk(found.definitions[name]) if there is needed else ():
            if isinstance(node, ast.Name):
                _collect(module, node.id, needed, foreign)


def _in_order(module: str, wanted: set[str]) -> Iterator[str]:
    """The modules that are wanted, each behind those that it imports."""
    seen: set[str] = set()

    def visit(place: str) -> Iterator[str]:
        seen.add(place)
        for other in sorted({*read_module(place).ours.values()} & wanted):
            if other not in seen:
                yield from visit(other)
        yield place

    yield from visit(module)


def _merged(statements: Iterable[str]) -> Iterator[str]:
    """Import statements with those from one module in one line, Python's own way of spelling them first."""
    plain, names = set[str](), dict[str, set[str]]()
    for statement in statements:
        source, is_from, imported = statement.removeprefix("from ").partition(" import ")
        if is_from:
            names.setdefault(source, set()).add(imported)
        else:
            plain.add(statement)
    yield from (f"{statement}\n" for statement in sorted(plain))
    yield from (f"from {source} import {', '.join(sorted(names[source]))}\n" for source in sorted(names))


def _defined(node: ast.stmt) -> Iterator[str]:
    match node:
        case ast.ClassDef() | ast.FunctionDef() | ast.AsyncFunctionDef():
            yield node.name
        case ast.Assign():
            for target in node.targets:
                yield from (part.id for part in ast.walk(target) if isinstance(part, ast.Name))
        case ast.AnnAssign():
            yield from (part.id for part in ast.walk(node.target) if isinstance(part, ast.Name))
        case _:
            pass


def _alone(node: ast.Import | ast.ImportFrom, alias: ast.alias) -> ast.stmt:
    if isinstance(node, ast.Import):
        return ast.Import(names=[alias])
    return ast.ImportFrom(module=node.module, names=[alias], level=node.level)


def _first_line(node: ast.stmt, lines: list[str]) -> int:
    """Where a statement begins, with its decorators and the comment above it."""
    decorators = getattr(node, "decorator_list", [])
    first = min([node.lineno, *(decorator.lineno for decorator in decorators)]) - 1
    while first and lines[first - 1].startswith("#"):
        first -= 1
    return first
