"""The text of a configuration: YAML, with the line of every key, and what people get wrong in it said line by line."""

import codecs
import os
import re
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from sonify.errors import InputError

MAX_BYTES = 4 << 20
MAX_VALUES = 50_000  # of one file, what an alias names counted at each use
TEXT_OF_A_VALUE = 100  # characters; a longer text counts as several values, since aliases multiply it as well
_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_NO_BLANK = re.compile(r"^\s*(?:- )?\s*([A-Za-z_][\w-]*):([^\s/\\].*)$")

BACKSLASH = "inside double quotes a backslash changes what follows: write / in its place, or single quotes"
# What PyYAML says of a mistake, and what to do about it; the first that fits.
_ADVICE = (
    (r"character '\\t'", "a tab: YAML is indented with blanks only"),
    (r"escape character|escape sequence", BACKSLASH),
    (r"scanning a quoted scalar", "a quotation mark opens here and is not closed"),
    (r"flow (sequence|mapping)", "a bracket opens here and is not closed, or a comma is missing"),
    (r"found character '[@`%]'|undefined alias|alphabetic or numeric character|could not determine a constructor",
     "a value that begins with a special character belongs in quotes"),
    (r"another document", "a second document begins (---), and one is expected"),
    (r"block (mapping|collection)|block end", "keys of one section must begin in the same column"),
    (r"could not find expected ':'", "expected key: value"),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Text:
    """What a file says, and the line of each key in it (`audio.sources.0.path`), from 1."""

    values: dict[str, Any]
    lines: dict[str, int]


def read_text(path: Path) -> Text:
    """Read a YAML file of sections.

    Raises:
        InputError: it is none; the message names the line and what to do about it.
    """
    where = f"config {path}"
    text = _decode(where, _read(where, path))
    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        values = None if node is None else _construct(where, loader, node)
    except yaml.MarkedYAMLError as error:
        raise InputError(f"{where} {_explain(error, text.splitlines())}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise InputError(f"{where}: not YAML: {' '.join(str(error).split())[:200]}") from error
    if node is None or values is None:
        raise InputError(f"{where}: is empty; expected sections, as `init` writes them")
    if not isinstance(values, dict):
        raise InputError(f"{where}: expected sections (key: value), found {_kind_of(values)}{_no_blank(text)}")
    return Text(values=values, lines=_lines_of(where, node))


def read_value(where: str, text: str) -> Any:
    """One value of YAML, as it stands behind a key.

    Raises:
        InputError: it is too large with its aliases written out.
        ValueError, RecursionError, yaml.YAMLError: it is none.
    """
    loader = yaml.SafeLoader(text)
    node = loader.get_single_node()
    return None if node is None else _construct(where, loader, node)


def _construct(where: str, loader: yaml.SafeLoader, node: yaml.Node) -> Any:
    """The values of a document, counted before: merging keys writes aliases out, and so does whoever reads on."""
    _count(where, node, {})
    return loader.construct_document(node)


def _count(where: str, node: yaml.Node, known: dict[int, int]) -> int:
    """How many values there are with each alias written out; what was counted before is not looked at again.

    Raises:
        InputError: they are too many, or one holds itself.
    """
    found = known.get(id(node))
    if found is None:
        known[id(node)] = 0
        count = 1
        if isinstance(node, yaml.ScalarNode):
            count += len(node.value) // TEXT_OF_A_VALUE
        for child in _below(node):
            count += _count(where, child, known)
        if count > MAX_VALUES and isinstance(node, yaml.CollectionNode):
            raise InputError(
                f"{where} line {node.start_mark.line + 1}: {count:,} values here, those of aliases counted at each use;"
                f" expected at most {MAX_VALUES:,}: write lists of that size to files"
            )
        found = known[id(node)] = count
    elif not found:
        raise InputError(f"{where} line {node.start_mark.line + 1}: a value that holds itself")
    return found


def _below(node: yaml.Node) -> Iterator[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        yield from (each for pair in node.value for each in pair)
    elif isinstance(node, yaml.SequenceNode):
        yield from node.value


def _read(where: str, path: Path) -> bytes:
    try:
        mode = os.stat(path).st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):  # a pipe may never be written; what a folder is, `open` says
            raise InputError(f"{where}: a device, a pipe or a socket; --config takes a YAML file")
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        what = getattr(error, "strerror", None) or error
        raise InputError(f"{where}: cannot be read ({what}); --config takes a YAML file") from error
    if len(data) > MAX_BYTES:
        raise InputError(f"{where}: larger than {MAX_BYTES >> 20} MiB; --config takes a YAML file")
    return data


def _decode(where: str, data: bytes) -> str:
    encoding = "utf-16" if data.startswith(_UTF16) else "utf-8-sig"
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise InputError(f"{where} line {line}: not text in UTF-8; --config takes a YAML file") from error
    if "\0" in text:
        raise InputError(f"{where}: not text; --config takes a YAML file")
    return text


def _explain(error: yaml.MarkedYAMLError, lines: Sequence[str]) -> str:
    """A mistake with its line and what to do about it."""
    said = f"{error.context or ''} {error.problem or ''}"
    opened = error.context_mark is not None and re.search("quoted|flow", error.context or "")
    marks = [mark.line for mark in (error.problem_mark, error.context_mark) if mark is not None] or [0]
    line = marks[-1] if opened else marks[0]
    near = {number for mark in marks for number in (mark, mark - 1)}
    for number in sorted(near, reverse=True):
        found = _NO_BLANK.match(lines[number]) if 0 <= number < len(lines) and not opened else None
        if found and "character '\\t'" not in said:
            return f"line {number + 1}: a blank belongs behind the colon: {found.group(1)}: {found.group(2)[:80]}"
    text = lines[line] if line < len(lines) else ""
    if "mapping values are not allowed" in said:
        value = text.partition(": ")[2].strip()
        if ": " in value or value.endswith(":"):
            return f"line {line + 1}: a value with a colon belongs in quotes: {_quoted(value)[:80]}"
        said = "block mapping"
    advice = next((advice for pattern, advice in _ADVICE if re.search(pattern, said)), None)
    return f"line {line + 1}: {advice or 'not YAML: ' + ' '.join(said.split())}: {text.strip()[:80]}"


def _quoted(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"


def _no_blank(text: str) -> str:
    """Of a file that is one long word: the colon that has no blank behind it."""
    lines = ((number, _NO_BLANK.match(line)) for number, line in enumerate(text.splitlines(), 1))
    found = next(((number, match) for number, match in lines if match), None)
    return f"; line {found[0]}: a blank belongs behind the colon: {found[1].group(1)}: ..." if found else ""


def _kind_of(value: object) -> str:
    return {list: "a list", str: "one word"}.get(type(value), type(value).__name__)


def _lines_of(where: str, root: yaml.Node) -> dict[str, int]:
    """The line of every key; what an alias names again is looked at once.

    Raises:
        InputError: a key stands twice in a section, of which YAML would silently keep the second.
    """
    found: dict[str, int] = {}
    seen: set[int] = set()
    todo = [(root, "")]
    while todo:
        node, prefix = todo.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        before: dict[str, int] = {}
        for name, line, child in _children(node):
            if name in before and name != "<<":
                raise InputError(f"{where} line {line}: {prefix}{name} stands in line {before[name]} already")
            before[name] = line
            found[f"{prefix}{name}"] = line
            todo.append((child, f"{prefix}{name}."))
    return found


def _children(node: yaml.Node) -> Iterator[tuple[str, int, yaml.Node]]:
    if isinstance(node, yaml.MappingNode):
        yield from ((str(key.value), key.start_mark.line + 1, value) for key, value in node.value)
    elif isinstance(node, yaml.SequenceNode):
        yield from ((str(n), child.start_mark.line + 1, child) for n, child in enumerate(node.value))
