"""Reading JSON as models write it: in prose, with single quotes, trailing commas and Python's words, and without an
end where the token limit cut it. What was complete is kept.
"""

import json
import re
from collections.abc import Iterator

# Answers need four levels; a thousand brackets are no answer.
MAX_DEPTH = 8

_CONSTANTS = {"true": True, "false": False, "null": None, "none": None}
# An opening bracket that data follows, so that prose in brackets is no data. Repeats are possessive: no backtracking.
_OPENING = re.compile(r"""\{(?=\s*+(?:["'{\[}]|\w++\s*+:))|\[(?=\s*+["'{\[\]])""")
_TOKEN = re.compile(
    r"""\s*+(?:(?P<mark>[{}\[\]():,])
    |(?P<double>"(?:[^"\\]|\\.)*+")
    |'(?P<single>(?:[^'\\]|\\.|'(?!\s*+(?:[\]},:]|\Z)))*+)'   # an apostrophe inside a word does not end it
    |(?P<number>-?\d++(?:\.\d++)?)
    |(?P<word>\w++))""",
    re.VERBOSE | re.DOTALL,
)
_BACKSLASHED = re.compile(r"\\(.)", re.DOTALL)


def json_values(text: str) -> Iterator[object]:
    """Yield the objects and lists that stand in a text. Reading ends at the first thing that cannot be read."""
    position = 0
    while opening := _OPENING.search(text, position):
        builder = _Builder()
        position = opening.start()
        while not builder.closed:
            match = _TOKEN.match(text, position)
            if match is None or builder.depth > MAX_DEPTH:
                yield builder.root
                return
            position = match.end()
            builder.add(match)
        yield builder.root


class _Builder:
    """Containers grow in place, so that a value whose end is missing is there as far as it went."""

    def __init__(self) -> None:
        self.root: object = None
        self._open: list[list | dict] = []
        self._key: list[str | None] = []  # for each open container, the key that waits for its value

    @property
    def depth(self) -> int:
        return len(self._open)

    @property
    def closed(self) -> bool:
        return self.root is not None and not self._open

    def add(self, match: re.Match[str]) -> None:
        mark = match["mark"]
        if mark is None:
            self._put(_scalar(match))
        elif mark in "{[(":
            container = {} if mark == "{" else []
            self._put(container)
            self._open.append(container)
            self._key.append(None)
        elif mark in "}])":
            self._open.pop()
            self._key.pop()
        elif mark == ",":
            self._key[-1] = None

    def _put(self, value: object) -> None:
        if not self._open:
            self.root = value
            return
        container = self._open[-1]
        if isinstance(container, list):
            container.append(value)
        elif self._key[-1] is None:
            self._key[-1] = str(value)
        else:
            container[self._key[-1]] = value
            self._key[-1] = None


def _scalar(match: re.Match[str]) -> object:
    if match["number"] is not None:
        return float(match["number"])
    if match["word"] is not None:
        return _CONSTANTS.get(match["word"].lower(), match["word"])
    if match["single"] is not None:
        return _BACKSLASHED.sub(r"\1", match["single"])
    try:
        return json.loads(match["double"], strict=False)
    except ValueError:  # an escape that JSON does not have
        return _BACKSLASHED.sub(r"\1", match["double"][1:-1])
