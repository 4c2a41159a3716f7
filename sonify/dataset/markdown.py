"""Other people's text inside Markdown: it is shown as it is written and does nothing."""

import re
from collections.abc import Iterable, Mapping, Sequence

# Control characters, half surrogates, line separators; and what makes a line read from right to left.
_UNSHOWN = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]+")
_ENTITIES = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}
_SPECIAL = re.compile(r"[\\`*_\[\]|~$#]")


def plain(text: str, longest: int) -> str:
    """One line of at most that many characters, without what cannot be shown."""
    line = " ".join(_UNSHOWN.sub(" ", text).split())
    return line if len(line) <= longest else f"{line[: longest - 1]}…"


def escape(text: str, longest: int = 200) -> str:
    """Text for a place inside a line or a table's cell: no HTML, no markup, no link under another name.

    An address stays one: it is shown as where it leads.
    """
    line = "".join(_ENTITIES.get(character, character) for character in plain(text, longest))
    return _SPECIAL.sub(lambda found: f"\\{found.group()}", line)


def code_block(text: str) -> str:
    """Text as it is, indented: no line of it can end the block."""
    return "\n".join(f"    {_UNSHOWN.sub(' ', line)}" for line in text.splitlines())


def table(head: Sequence[str], rows: Iterable[Sequence[str | int]]) -> str:
    """A table; numbers are set to the right and get their commas."""
    body = [[f"{cell:,}" if isinstance(cell, int) else escape(cell) for cell in row] for row in rows]
    return "\n".join(f"| {' | '.join(row)} |" for row in [list(head), ["---"] * len(head), *body])


def counts(head: Sequence[str], counted: Mapping[str, int], most: int = 50) -> str:
    """A table of counts in their own order, with what was left out of it."""
    shown = list(counted.items())[:most]
    text = table(head, shown)
    left = len(counted) - len(shown)
    return f"{text}\n\n{left:,} more are not shown." if left else text
