"""Answers in lines: `name: description` in its disguises, name and description on lines of their own, tables."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace

from sonify.vlm.drafts import Draft, Entry, entry_of, key_of
from sonify.vlm.naming import clean_name, strip_marks
from sonify.vlm.vocabulary import (
    CAPTION_KEYS,
    DESCRIPTION_KEYS,
    NAME_KEYS,
    PROMINENCE_KEYS,
    PROMINENCES,
    is_heading,
)

_COLON = re.compile(r"\s*+[:=](?![\d/:])\s*+|\s++(?:->|=>|→)\s++")
_DASH = re.compile(r"\s++[-–—]{1,2}+\s++|\s*+—\s*+")
_SOUND = re.compile(r"\b(?:sounds?|noises?)\b", re.IGNORECASE)
_SOUND_FIRST = re.compile(r"(?:the |a |an )?(?:faint |loud |soft |distant )?(?:sounds?|noises?)\b", re.IGNORECASE)
# Where a next item begins on the same line: after a prominence, at a number, at a name after a sentence's end.
_AFTER_PROMINENCE = re.compile(r"(\((?:foreground|background|ambien(?:ce|t))\))[\s,;.]++(?=\S)", re.IGNORECASE)
_AT_NUMBER = re.compile(r"(?:(?<=\s)|^)\d{1,2}[.)]\s++(?=[A-Za-z*])")
_AT_NAME = re.compile(r"(?<=[.!?])\s++(?=[^.!?:;]{1,50}:\s)")
_SENTENCE = re.compile(r"(?<=[.!?])\s++(?=[A-Z\"(])")
# "Sure! Here is the list:" is no caption.
_COURTESY = re.compile(
    r"(?:sure|certainly|of course|okay|ok|here(?:'s| is| are)|based on|below|the following|absolutely|great|yes|let me"
    r"|thank|i hope|please|note|as an|as a|i )\b|.*:$",
    re.IGNORECASE,
)
_SAYS_WHAT = re.compile(r"(?:the |this )?(?:image|caption|photo|picture)$", re.IGNORECASE)


def draft_from_lines(lines: Sequence[str]) -> Draft:
    """Read the lines of an answer."""
    reader = _LineReader()
    for line in lines:
        for part in _items(line):
            reader.read(part)
    return reader.draft


def split_pair(text: str, *, listed: bool) -> tuple[str, str] | None:
    """Name and description of one item; a dash tells them apart only in lists and where a sound is spoken of."""
    colon = _COLON.search(text)
    if colon is not None:
        return text[: colon.start()].strip(), text[colon.end() :].strip()
    dash = _DASH.search(text)
    if dash is not None and (listed or _SOUND.search(text, dash.end())):
        return text[: dash.start()].strip(), text[dash.end() :].strip()
    return None


def _items(line: str) -> Iterator[str]:
    """Several items that a model wrote on one line."""
    if line.startswith("|"):
        yield line
        return
    if len(_AT_NUMBER.findall(line)) > 1:
        line = _AT_NUMBER.sub("\n- ", line)
    line = _AT_NAME.sub("\n", _AFTER_PROMINENCE.sub(r"\1\n", line))
    for part in line.split("\n"):
        pieces = part.split(";")
        yield from pieces if all(_COLON.search(piece) for piece in pieces) else [part]


class _LineReader:
    """Reads line after line; remembers the section, the columns of a table, and a caption's heading."""

    def __init__(self) -> None:
        self.draft = Draft()
        self._section = ""
        self._awaits_caption = False
        self._columns: tuple[str, ...] = ()

    def read(self, line: str) -> None:
        if line.startswith("|"):
            self._read_row([cell.strip() for cell in line.strip("|").split("|")])
            return
        text, listed = strip_marks(line.strip())
        text = text.strip("\"'“”,")
        if not any(c.isalnum() for c in text):
            return
        pair = split_pair(text, listed=listed)
        if pair is None:
            self._read_plain(text, listed=listed)
        elif pair[1]:
            self._read_pair(*pair)
        else:
            self._read_heading(pair[0], listed=listed)

    def _read_pair(self, head: str, tail: str) -> None:
        key = key_of(head)
        last = self._last()
        if key in CAPTION_KEYS or (key == "description" and last is None) or _SAYS_WHAT.match(head):
            self._caption(tail)
        elif key in DESCRIPTION_KEYS and last is not None:
            self._amend(replace(last, description=last.description or tail))
        elif key in PROMINENCE_KEYS and last is not None:
            self._amend(replace(last, prominence=last.prominence or PROMINENCES.get(key_of(tail), "")))
        elif key in NAME_KEYS or key in PROMINENCES:
            # `Concept 1: dog - sound of a dog`, `Name: dog`, `Background: birds: sound of birds`
            name, description = split_pair(tail, listed=True) or (tail, "")
            self._add(Entry(name=name, description=description, prominence=PROMINENCES.get(key, "")))
        else:
            self._add(Entry(name=head, description=tail))

    def _read_heading(self, head: str, *, listed: bool) -> None:
        key = key_of(head)
        self._awaits_caption = key in CAPTION_KEYS
        if key in PROMINENCES:
            self._section = PROMINENCES[key]
        elif not is_heading(head) and clean_name(head):
            self._add(Entry(name=head, listed=listed))

    def _read_plain(self, text: str, *, listed: bool) -> None:
        key = key_of(text)
        last = self._last()
        if self._awaits_caption:
            self._caption(text)
            self._awaits_caption = False
        elif key in PROMINENCES or key in CAPTION_KEYS:
            self._read_heading(text, listed=listed)
        elif last is not None and not last.description and _SOUND_FIRST.match(text):
            self._amend(replace(last, description=text))
        elif listed and not is_heading(text) and clean_name(text):
            self._add(Entry(name=text))
        elif not self.draft.entries and not _COURTESY.match(text):
            self._caption(_SENTENCE.split(text, maxsplit=1)[0])

    def _read_row(self, cells: Sequence[str]) -> None:
        keys = tuple(map(key_of, cells))
        if any(key in NAME_KEYS or key in DESCRIPTION_KEYS for key in keys):
            self._columns = keys
            return
        columns = self._columns
        if not columns:
            columns = ("name", "description", "prominence")
            cells = [cell for cell in cells if any(c.isalpha() for c in cell)]
        entry = entry_of(dict(zip(columns, cells, strict=False)))
        if entry is not None:
            self._add(entry)

    def _last(self) -> Entry | None:
        return self.draft.entries[-1] if self.draft.entries else None

    def _caption(self, text: str) -> None:
        self.draft.caption = self.draft.caption or text

    def _add(self, entry: Entry) -> None:
        self.draft.entries.append(replace(entry, prominence=entry.prominence or self._section))

    def _amend(self, entry: Entry) -> None:
        self.draft.entries[-1] = entry
