"""The files of a folder of jobs as text: YAML with the line of every value, comments, and command lines.

Whatever a file holds, reading it ends: what is damaged, too large or twisted is said, and nothing of it is run.
"""

import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import yaml

MAX_BYTES = 1 << 20
MAX_VALUES = 50_000  # of one file, aliases written out
MAX_EXPANSIONS = 6
MAX_WORD = 10_000
# What is not known is kept out of the way while the rest is filled in.
_KEEP, _GIVE_BACK = str.maketrans("${}", "\0\1\2"), str.maketrans("\0\1\2", "${}")
_CONTROL = {";", "&&", "||", "|", "&", "(", ")", ";;", "|&", "\n"}
# What may stand before a command.
_SKIPPED = (
    "if", "then", "elif", "else", "while", "until", "do", "!", "{", "time", "exec", "command", "sudo", "setsid",
    "export", "env",
)  # fmt: skip
_ASSIGNMENT = re.compile(r"([A-Za-z_]\w*)\+?=(.*)", re.DOTALL)


class Unreadable(Exception):
    """A file is not what its name says; the line is where."""

    def __init__(self, line: int, what: str) -> None:
        super().__init__(what)
        self.line = line
        self.what = what


@dataclass(frozen=True, slots=True)
class Node:
    """A value of a YAML file and its line, from 1; one that is not there is None, at the line of what lacks it."""

    value: Any  # Mapping[str, Node], tuple[Node, ...], or a scalar of YAML
    line: int
    size: int = 1

    @property
    def given(self) -> bool:
        """Whether it is there."""
        return self.value is not None

    def at(self, *path: str) -> "Node":
        """What lies below these keys; those of a list are its positions."""
        node = self
        for key in path:
            below = node.value.get(key) if isinstance(node.value, Mapping) else None
            if isinstance(node.value, tuple) and key.isascii() and key.isdigit() and int(key) < len(node.value):
                below = node.value[int(key)]
            node = Node(None, node.line) if below is None else below
        return node

    def items(self) -> tuple[tuple[str, "Node"], ...]:
        """The keys of a mapping, and nothing of anything else."""
        return tuple(self.value.items()) if isinstance(self.value, Mapping) else ()

    def each(self) -> tuple["Node", ...]:
        """The values of a list, and nothing of anything else."""
        return self.value if isinstance(self.value, tuple) else ()

    def text(self) -> str:
        """A scalar as it is written; empty for anything else."""
        return "" if self.value is None or isinstance(self.value, Mapping | tuple) else str(self.value)

    def plain(self) -> Any:
        """The value without its lines."""
        if isinstance(self.value, Mapping):
            return {key: below.plain() for key, below in self.value.items()}
        return [below.plain() for below in self.value] if isinstance(self.value, tuple) else self.value


def read_documents(text: str) -> tuple[Node, ...]:
    """The documents of a YAML file.

    Raises:
        Unreadable: it is none, a key stands twice, or it is too large with its aliases written out.
    """
    loader = yaml.SafeLoader("")
    try:
        nodes = list(yaml.compose_all(text, Loader=yaml.SafeLoader))
        return tuple(_to_node(node, loader, {}) for node in nodes if node is not None)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else 1
        raise Unreadable(line, f"not YAML: {' '.join(str(error.problem or error).split())[:120]}") from error
    except (yaml.YAMLError, RecursionError) as error:
        raise Unreadable(1, f"not YAML: {' '.join(str(error).split())[:120]}") from error


def _to_node(node: yaml.Node, loader: yaml.SafeLoader, known: dict[int, Node | None]) -> Node:
    line = node.start_mark.line + 1
    if id(node) in known:
        done = known[id(node)]
        if done is None:
            raise Unreadable(line, "a value that holds itself")
        return done
    known[id(node)] = None
    if isinstance(node, yaml.CollectionNode) and node.tag.removeprefix("tag:yaml.org,2002:") not in ("map", "seq"):
        raise Unreadable(line, f"not plain YAML: {node.tag[:80]}")
    if isinstance(node, yaml.MappingNode):
        value: Any = _to_mapping(node, loader, known)
        size = 1 + sum(below.size for below in value.values())
    elif isinstance(node, yaml.SequenceNode):
        value = tuple(_to_node(child, loader, known) for child in node.value)
        size = 1 + sum(below.size for below in value)
    else:
        value, size = _to_scalar(node, loader), 1
    if size > MAX_VALUES:
        raise Unreadable(line, f"more than {MAX_VALUES:,} values, those of aliases counted at each use")
    made = Node(value, line, size)
    known[id(node)] = made
    return made


def _to_mapping(node: yaml.MappingNode, loader: yaml.SafeLoader, known: dict[int, Node | None]) -> dict[str, Node]:
    own: dict[str, Node] = {}
    merged: dict[str, Node] = {}
    for key_node, child in node.value:
        below = _to_node(child, loader, known)
        if key_node.tag == "tag:yaml.org,2002:merge":
            for source in (below, *below.each()):
                merged = dict(source.items()) | merged
            continue
        key = str(key_node.value)
        if key in own:
            raise Unreadable(key_node.start_mark.line + 1, f"{key} stands in line {own[key].line} already")
        # of a scalar that is written in the next lines, and of a section, the line of the key is where people look
        own[key] = Node(below.value, key_node.start_mark.line + 1, below.size)
    return merged | own


def _to_scalar(node: yaml.Node, loader: yaml.SafeLoader) -> Any:
    try:
        return loader.construct_object(node)
    except (ValueError, yaml.YAMLError) as error:
        raise Unreadable(node.start_mark.line + 1, f"not YAML: {' '.join(str(error).split())[:120]}") from error


class FileKind(StrEnum):
    """What a file is, by its name."""

    DOCKERFILE = "Dockerfile"
    SHELL = "script"
    YAML = "YAML"
    MARKDOWN = "Markdown"
    OTHER = "other"


@dataclass(frozen=True, slots=True)
class Words:
    """One simple command of a file; `set` are the variables that stand before it, `comment` says it is an example."""

    line: int
    words: tuple[str, ...]
    set: Mapping[str, str]
    comment: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A file: its name as it is shown, what it holds, and what it tells people."""

    name: str
    path: Path
    kind: FileKind
    text: str
    documents: tuple[Node, ...] = ()
    prose: str = ""  # comments, or a page, without the command lines in them
    commands: tuple[Words, ...] = ()


def kind_of(path: Path) -> FileKind:
    """What a file is to be read as."""
    if path.name == "Dockerfile" or path.suffix == ".Dockerfile" or path.name.startswith("Dockerfile."):
        return FileKind.DOCKERFILE
    by_suffix = {".sh": FileKind.SHELL, ".bash": FileKind.SHELL, ".sbatch": FileKind.SHELL, ".slurm": FileKind.SHELL}
    by_suffix |= {".yaml": FileKind.YAML, ".yml": FileKind.YAML, ".md": FileKind.MARKDOWN}
    return by_suffix.get(path.suffix, FileKind.OTHER)


def read_source(path: Path, name: str) -> Source:
    """Read a file as what its name says.

    Raises:
        Unreadable: it is no such file.
    """
    text = _read(path)
    kind = kind_of(path)
    if kind is FileKind.OTHER:
        return Source(name=name, path=path, kind=kind, text=text)
    documents = read_documents(text) if kind is FileKind.YAML else ()
    prose, examples = _read_page(text) if kind is FileKind.MARKDOWN else _read_comments(text)
    body = tuple(split_commands(_without_comments(text), 1)) if kind is FileKind.SHELL else ()
    return Source(
        name=name, path=path, kind=kind, text=text, documents=documents, prose=prose, commands=(*examples, *body)
    )


def _read(path: Path) -> str:
    try:
        if not path.is_file():
            raise Unreadable(1, "not a file")
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        raise Unreadable(1, f"cannot be read ({getattr(error, 'strerror', None) or error})") from error
    if len(data) > MAX_BYTES:
        raise Unreadable(1, f"larger than {MAX_BYTES >> 20} MiB")
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise Unreadable(data.count(b"\n", 0, error.start) + 1, "not text in UTF-8") from error
    if "\0" in text:
        raise Unreadable(text.count("\n", 0, text.index("\0")) + 1, "not text")
    return text


def _read_comments(text: str) -> tuple[str, tuple[Words, ...]]:
    """What comments say, and the command lines among them: those that are set in by three blanks or more."""
    prose: list[str] = []
    lines: list[str] = []
    for line in text.splitlines():
        found = re.match(r"\s*#(?!!|SBATCH)( *)(.*)", line)
        is_command = found is not None and len(found.group(1)) >= 3
        lines.append(found.group(2) if found and is_command else "")
        if found and not is_command:
            prose.append(found.group(2))
    return "\n".join(prose), tuple(split_commands("\n".join(lines), 1, comment=True))


def _read_page(text: str) -> tuple[str, tuple[Words, ...]]:
    """What a page says, and its command lines: those that are set in by four blanks, or fenced."""
    prose: list[str] = []
    lines: list[str] = []
    fenced = False
    for line in text.splitlines():
        fence = line.lstrip().startswith("```")
        fenced ^= fence
        is_command = not fence and (fenced or line.startswith("    "))
        lines.append(re.sub(r"^\$ ", "", line.strip()) if is_command else "")
        # a comment in a block of commands tells people something, too
        prose.append(line if not is_command else line.partition(" # ")[2])
    return "\n".join(prose), tuple(split_commands("\n".join(lines), 1, comment=True))


def _without_comments(text: str) -> str:
    return "\n".join("" if line.lstrip().startswith("#") else line for line in text.splitlines())


def split_commands(text: str, first_line: int, *, comment: bool = False) -> Iterator[Words]:
    """The simple commands of a piece of shell, as far as they can be told without running it."""
    number = first_line
    heredoc = ""
    for whole, count in _logical_lines(text, quotes=not comment):
        line, number = number, number + count
        if heredoc:
            heredoc = "" if whole.strip() == heredoc else heredoc
            continue
        if opened := re.search(r"<<-?\s*['\"]?(\w+)['\"]?", whole):
            heredoc = opened.group(1)
        for words in _split(whole):
            variables: dict[str, str] = {}
            start = 0
            while start < len(words) and (words[start] in _SKIPPED or _ASSIGNMENT.fullmatch(words[start])):
                if found := _ASSIGNMENT.fullmatch(words[start]):
                    variables[found.group(1)] = found.group(2)
                start += 1
            if words[start:] or variables:
                yield Words(line, tuple(words[start:]), variables, comment)


def _logical_lines(text: str, *, quotes: bool) -> Iterator[tuple[str, int]]:
    """Lines joined where one ends with a backslash or within quotes, with how many lines of the file they are.

    Examples in comments have apostrophes that open nothing: there `quotes` is false.
    """
    joined, count = "", 0
    for line in text.splitlines():
        joined, count = joined + line, count + 1
        if joined.endswith("\\") and not joined.endswith("\\\\"):
            joined = joined[:-1] + " "
        elif quotes and count < 50 and _is_open(joined):
            joined += "\n"
        else:
            yield joined, count
            joined, count = "", 0
    if count:
        yield joined, count


def _is_open(text: str) -> bool:
    """Whether a quotation mark is not closed yet."""
    if "'" not in text and '"' not in text:
        return False
    try:
        list(shlex.shlex(text, posix=True, punctuation_chars=True))
    except ValueError as error:
        return "quotation" in str(error)
    return False


def _split(text: str) -> Iterator[list[str]]:
    lexer = shlex.shlex(text, posix=True, punctuation_chars="();<>|&")
    lexer.whitespace_split = True
    try:
        words = list(lexer)
    except ValueError:  # a quotation mark alone
        words = text.split()
    command: list[str] = []
    for word in words:
        if word in _CONTROL or (word and set(word) <= set("();|&")):
            if command:
                yield command
            command = []
        else:
            command.append(word)
    if command:
        yield command


def expand(word: str, variables: Mapping[str, str], depth: int = 0) -> str:
    """A word with the variables that are known, and the defaults of those that are not: `${A:-${B}/c}`, too."""
    if depth > MAX_EXPANSIONS or len(word) > MAX_WORD:
        return word

    def value(found: re.Match[str]) -> str:
        name = found.group(1) or found.group(4) or found.group(5)
        operator, rest = found.group(2), found.group(3)
        known = variables.get(name)
        if known is None or (not known and operator == ":-"):
            return rest if operator in (":-", "-") else found.group(0).translate(_KEEP)
        without = {key: text for key, text in variables.items() if key != name}
        return expand(known, without, depth + 1)

    # those within others first
    for _ in range(MAX_EXPANSIONS):
        filled = re.sub(r"\$\{(\w+)(?:(:?[-?+=])([^{}]*))?\}|\$\((\w+)\)|\$(\w+)", value, word)
        if filled == word or len(filled) > MAX_WORD:
            break
        word = filled
    return word.translate(_GIVE_BACK)
