"""What a model's answer to the concepts prompt means: a caption and sounding concepts, or why there are none.

Pure and strict. An answer, be it lines or JSON, is first read for its form alone: a caption, and names with what was
said of them. What these mean comes after.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from sonify.captions.words import tokenize
from sonify.rows import Concept, Reason
from sonify.vlm.questions import CONCEPTS_PROMPT, EXAMPLE_DESCRIPTION, EXAMPLE_NAME
from sonify.vlm.repair import Unusable, json_values, lines_of, read_text, unusable
from sonify.vlm.vocabulary import (
    BOX_KEYS,
    CAPTION_KEYS,
    DESCRIPTION_KEYS,
    NAME_KEYS,
    PROMINENCE_KEYS,
    PROMINENCES,
    REASONING_KEYS,
    SILENT,
    UNSEEN,
    clean_name,
    is_foreign,
    is_heading,
    same_name,
    says_nothing_sounds,
    says_sorry,
    strip_marks,
    words_of,
)

# Rises with every change that can change a result: stored answers are then read again. A form of reasoning that is told
# apart from then on raises nothing, for what was read out of reasoning was no result: a form in `thinking`, or text
# under one of `REASONING_KEYS`. An answer that holds neither is read as before, to the letter.
PARSER_VERSION = 1

MAX_DESCRIPTION_CHARS = 200
MAX_CAPTION_CHARS = 400

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
# (foreground), [in the background], - ambience; "(foreground, background or ambience)" is the form said back.
_LEVEL = r"(?:foreground|background|ambien(?:ce|t)|ambiance)"
_PROMINENCE = re.compile(
    rf"[\s,;:–—-]*+[(\[]\s*+(?:in the )?({_LEVEL}(?:(?:\s*+[,/|]\s*+|\s++or\s++){_LEVEL})*+)(?: sounds?)?\s*+[)\]]"
    r"[\s.,;]*+$"
    rf"|(?:\s++[–—-]++\s*+|\s*+[,;|]\s*+)({_LEVEL})[\s.,;]*+$",
    re.IGNORECASE,
)
# Where the token limit cut a description, it may end in such words, and what is left may say nothing.
_DANGLING = words_of("a an the of with and or to from while as for into is are its their")
_EMPTY_WORDS = _DANGLING | words_of("sound sounds noise noises audio soft loud gentle yes no true false")
_FILLED_IN = re.compile(r"\{\w+\}")
_ABOUT_A_NAME = DESCRIPTION_KEYS | PROMINENCE_KEYS | BOX_KEYS


@dataclass(frozen=True, slots=True, kw_only=True)
class Parsed:
    """What a model heard in an image; `caption` is empty where it gave none, `concepts` never is."""

    caption: str
    concepts: tuple[Concept, ...]


def parse_concepts(
    answer: str,
    max_concepts: int,
    image_size: tuple[int, int] | None = None,
    finished: bool = True,
    *,
    english: bool = True,
) -> Parsed | Unusable:
    """Read an answer to `concepts_prompt`.

    Args:
        image_size: width and height in which the model gives the pixels of boxes. Without it a box gives an area only
            in shares of the image, for then 1000 may be pixels or thousandths.
        finished: False where the token limit cut the answer.
        english: False where another language was asked for, in whatever letters.
    """
    turns = read_text(answer, finished)
    if isinstance(turns, Unusable):
        return turns
    text = next((own for turn in turns if (own := without_lines(turn, _PROMPT_LINES))), "")
    if not text:
        return Unusable(reason=Reason.BAD_ANSWER, detail="repeats the prompt")
    values = list(json_values(text))
    form = _Form(english=english)
    for value in values:
        form.read_json(value, "")
    for item in () if values else _items(text):
        form.read_line(item)
    concepts, some_silent = _concepts(form.entries, max_concepts, image_size, english=english)
    if concepts and english and is_foreign(tokenize(form.words)):
        return unusable(Reason.BAD_ANSWER, f"another language: {text}")
    if concepts:
        return Parsed(caption=clean_caption(form.caption), concepts=concepts)
    if some_silent or any(map(_is_empty, values)) or any(map(says_nothing_sounds, _sayings(text))):
        return unusable(Reason.NO_CONCEPTS, text)
    return unusable(Reason.REFUSAL if says_sorry(text) else Reason.BAD_ANSWER, text)


def _is_empty(value: object) -> bool:
    """Whether JSON says `[]` or `{"concepts": []}`."""
    return not value or (isinstance(value, dict) and any(inner in ([], {}, None) for inner in value.values()))


def _sayings(text: str) -> list[str]:
    """Lines, and what stands behind their colons."""
    return [saying for line in lines_of(text) for saying in (line, line.partition(":")[2]) if saying]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Entry:
    """A name as it was written, and what was said of it. `listed` is False for what looks like a heading."""

    name: str
    description: str = ""
    prominence: str = ""
    box: tuple[float, ...] = ()
    listed: bool = True


class _Form:
    """What reading has found so far, in JSON or line after line: `name: description` in its disguises, and tables."""

    def __init__(self, *, english: bool) -> None:
        self._english = english
        self.caption = ""
        self.entries: list[_Entry] = []
        self._section = ""  # the prominence that a heading gives to what stands below
        self._awaits_caption = False
        self._columns: tuple[str, ...] = ()

    @property
    def words(self) -> str:
        return " ".join([self.caption, *(f"{entry.name} {entry.description}" for entry in self.entries)])

    def read_json(self, value: object, section: str) -> None:
        """Read objects with keys for name and description, or names mapped to descriptions, in lists or not."""
        if isinstance(value, list):
            for item in value:
                if isinstance(item, str):
                    name, description = _split_pair(strip_marks(item)[0], listed=True) or (item, "")
                    self._add(_Entry(name=name, description=description, prominence=section))
                else:
                    self.read_json(item, section)
        elif isinstance(value, dict):
            entry = _entry_of(value, section=section)
            if entry is not None:
                self._add(entry)
            else:
                self._read_mapping(value, section)

    def _read_mapping(self, value: dict[str, object], section: str) -> None:
        """An object without a name: its keys are the names, or headings above more."""
        for raw, inner in value.items():
            key = key_of(raw)
            if isinstance(inner, str):
                if key in REASONING_KEYS:
                    continue
                if key in CAPTION_KEYS or (key == "description" and not self.caption):
                    self._caption(inner)
                elif key not in _ABOUT_A_NAME:
                    self._add(_Entry(name=raw, description=inner, prominence=section))
            elif isinstance(inner, dict) and not is_heading(raw) and any(key_of(k) in _ABOUT_A_NAME for k in inner):
                self._add(_entry_of(inner, name=raw, section=section) or _Entry(name=raw))
            else:
                self.read_json(inner, PROMINENCES.get(key, section))

    def read_line(self, line: str) -> None:
        """Read one item."""
        if line.startswith("|"):
            self._read_row([cell.strip() for cell in line.strip("|").split("|")])
            return
        text, listed = strip_marks(line.strip())
        text = text.strip("\"'“”,")
        if not any(c.isalnum() for c in text):
            return
        pair = _split_pair(text, listed=listed)
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
            name, description = _split_pair(tail, listed=True) or (tail, "")
            self._add(_Entry(name=name, description=description, prominence=PROMINENCES.get(key, "")))
        else:
            self._add(_Entry(name=head, description=tail))

    def _read_heading(self, head: str, *, listed: bool) -> None:
        key = key_of(head)
        self._awaits_caption = key in CAPTION_KEYS
        if key in PROMINENCES:
            self._section = PROMINENCES[key]
        elif not is_heading(head) and clean_name(head, english=self._english):
            self._add(_Entry(name=head, listed=listed))

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
        elif listed and not is_heading(text) and clean_name(text, english=self._english):
            self._add(_Entry(name=text))
        elif not self.entries and not _COURTESY.match(text):
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
        entry = _entry_of(dict(zip(columns, cells, strict=False)))
        if entry is not None:
            self._add(entry)

    def _last(self) -> _Entry | None:
        return self.entries[-1] if self.entries else None

    def _caption(self, text: str) -> None:
        self.caption = self.caption or text

    def _add(self, entry: _Entry) -> None:
        self.entries.append(replace(entry, prominence=entry.prominence or self._section))

    def _amend(self, entry: _Entry) -> None:
        self.entries[-1] = entry


def _split_pair(text: str, *, listed: bool) -> tuple[str, str] | None:
    """Name and description of one item; a dash tells them apart only in lists and where a sound is spoken of."""
    colon = _COLON.search(text)
    if colon is not None:
        return text[: colon.start()].strip(), text[colon.end() :].strip()
    dash = _DASH.search(text)
    if dash is not None and (listed or _SOUND.search(text, dash.end())):
        return text[: dash.start()].strip(), text[dash.end() :].strip()
    return None


def _items(text: str) -> Iterator[str]:
    """The items of a text: lines, and what a model wrote on one line although it is several."""
    for line in lines_of(text):
        yield from _items_of_line(line)


def _items_of_line(line: str) -> Iterator[str]:
    if line.startswith("|"):
        yield line
        return
    if len(_AT_NUMBER.findall(line)) > 1:
        line = _AT_NUMBER.sub("\n- ", line)
    line = _AT_NAME.sub("\n", _AFTER_PROMINENCE.sub(r"\1\n", line))
    for part in line.split("\n"):
        pieces = part.split(";")
        yield from pieces if all(_COLON.search(piece) for piece in pieces) else [part]


def key_of(text: str) -> str:
    """A heading or a key in one form: `**Concept 1**` and `concept` are one."""
    return " ".join(text.lower().replace("_", " ").strip(" *`\"'().:#0123456789").split())


def _entry_of(said: Mapping[str, object], name: str = "", section: str = "") -> _Entry | None:
    """The entry that the keys and values of an object or of a table's row make, or None where nothing is the name."""
    told = {key_of(key): value for key, value in said.items()}
    name = name or _text(told, NAME_KEYS)
    if not name:
        return None
    silent = False in (told.get("audible"), told.get("sounding"), told.get("sound"))
    box = next((value for key, value in told.items() if key in BOX_KEYS), None)
    return _Entry(
        name=name,
        description="silent" if silent else _text(told, DESCRIPTION_KEYS),
        prominence=PROMINENCES.get(key_of(_text(told, PROMINENCE_KEYS)), section),
        box=tuple(n for n in box if isinstance(n, float)) if isinstance(box, list) else (),
    )


def _text(told: Mapping[str, object], keys: frozenset[str]) -> str:
    return next((v.strip() for k, v in told.items() if k in keys and isinstance(v, str)), "")


def _concepts(
    entries: Sequence[_Entry], max_concepts: int, image_size: tuple[int, int] | None, *, english: bool
) -> tuple[tuple[Concept, ...], bool]:
    """The first entries that name a sounding thing, each once; bare names only where nothing was described.

    Beside them, whether some were left out for being silent or unseen, by the model's own word.
    """
    described = any(entry.description for entry in entries)
    kept: list[Concept] = []
    some_silent = False
    for entry in entries:
        if not entry.description and (described or not entry.listed):
            continue
        concept = _concept(entry, image_size, english=english)
        if concept is None:
            continue
        if SILENT.search(entry.description) or UNSEEN.search(f"{entry.name}; {entry.description}"):
            some_silent = True
        elif not _merge(kept, concept) and len(kept) < max_concepts:
            kept.append(concept)
    return tuple(kept), some_silent


def _concept(entry: _Entry, image_size: tuple[int, int] | None, *, english: bool) -> Concept | None:
    raw_name, prominence_of_name = split_prominence(" ".join(entry.name.split()))
    raw_description, prominence = split_prominence(" ".join(entry.description.split()))
    name = clean_name(raw_name, english=english)
    description = clean_description(raw_description, english=english)
    if not name or is_heading(name) or (description is None) or is_example(name, description):
        return None
    return Concept(
        concept=name,
        description=description,
        prominence=entry.prominence or prominence or prominence_of_name,
        area=_area(entry.box, image_size),
    )


def clean_description(raw: str, *, english: bool = True) -> str | None:
    """One line of at most 200 characters; empty for none, None for one that says nothing or is no English.

    Where another language was asked for it may be in any letters.
    """
    text = " ".join(raw.replace("*", "").replace("`", "").split())
    if len(text) > MAX_DESCRIPTION_CHARS:
        text = text[:MAX_DESCRIPTION_CHARS].rpartition(" ")[0]
    for opens, closes in ("()", "[]"):
        if text.count(opens) > text.count(closes):
            text = text[: text.rindex(opens)]
    words = text.strip(" .,;:\"'“”").split()
    while words and words[-1].lower() in _DANGLING:
        words = words[:-1]
    said = " ".join(words)
    if not english:
        return None if raw.strip() and ("://" in text or not any(c.isalnum() for c in said)) else said
    tokens = tokenize(said)
    if raw.strip() and (all(token in _EMPTY_WORDS for token in tokens) or not _mostly_latin(words) or "://" in text):
        return None
    return said


def _mostly_latin(words: list[str]) -> bool:
    letters = [c for word in words for c in word if c.isalpha()]
    return 2 * sum(c < "\u0250" for c in letters) > len(letters)


def split_prominence(text: str) -> tuple[str, str]:
    """The text without the model's word of prominence at its end, and the word; several words are none."""
    match = _PROMINENCE.search(text[-100:])
    if match is None:
        return text, ""
    return text[: len(text) - len(match.group())], PROMINENCES.get((match[1] or match[2]).lower(), "")


def _merge(kept: list[Concept], new: Concept) -> bool:
    """Take from a concept what it says more of one that is there; False where none of its name is."""
    for place, old in enumerate(kept):
        if same_name(old.concept, new.concept):
            kept[place] = Concept(
                concept=old.concept,
                description=old.description or new.description,
                prominence=old.prominence or new.prominence,
                area=max(old.area, new.area),
            )
            return True
    return False


def _area(box: tuple[float, ...], image_size: tuple[int, int] | None) -> float:
    """The share of the image that a box (two corners) takes; 0.0 where its unit is not known."""
    if len(box) != 4 or min(box) < 0:
        return 0.0
    width, height = (1, 1) if max(box) <= 1 else image_size or (0, 0)
    x1, y1, x2, y2 = box
    if not (x1 < x2 <= width and y1 < y2 <= height):
        return 0.0
    return (x2 - x1) * (y2 - y1) / (width * height)


def clean_caption(raw: str) -> str:
    """One line of at most 400 characters."""
    text = " ".join(raw.replace("*", "").replace("`", "").split()).strip("\"'“” ")
    return text if len(text) <= MAX_CAPTION_CHARS else text[:MAX_CAPTION_CHARS].rpartition(" ")[0]


def is_example(name: str, description: str) -> bool:
    """Whether a concept is the example of the question, said back."""
    return name == EXAMPLE_NAME and tokenize(description) == tokenize(EXAMPLE_DESCRIPTION)


def _spoken(text: str) -> str:
    """Words alone, without numbers: how a line of the prompt is known again."""
    return " ".join(token for token in tokenize(text) if not token.isdigit())


def spoken_lines(prompt: str) -> frozenset[str]:
    """The lines of a prompt as they are known again: words alone, without what is filled in."""
    return frozenset(map(_spoken, _FILLED_IN.sub("", prompt).split("\n")))


_PROMPT_LINES = spoken_lines(CONCEPTS_PROMPT)


def without_lines(text: str, known: frozenset[str]) -> str:
    """The text without lines of the prompt, and without the prompt where it was said on one line."""
    lines = [line for line in text.split("\n") if line.strip() and not _echoes(_spoken(line[:2000]), known)]
    return "\n".join(lines)


def _echoes(spoken: str, known: frozenset[str]) -> bool:
    return bool(spoken) and (spoken in known or any(len(line) > 60 and line in spoken for line in known))
