"""From what a model said to what can be read: plain text, without thinking and marks of the chat's template, and JSON.

An answer that is empty, a loop, a web page or far too long is a reason, whatever was asked.
"""

import json
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from sonify.rows import Reason
from sonify.vlm.thinking import answer_in

# Four thousand tokens; answers end at some hundreds.
MAX_ANSWER_CHARS = 16_000
MAX_LINES = 300
MAX_LINE_CHARS = 1_000
MAX_MARKS = 4  # combining marks on one letter; normalising takes the square of their number

_PAGE = re.compile(
    r"\A\W*(?:doctype html|html|head|xml version)\b|</(?:html|body|head|title)>|\ATraceback \(most", re.I
)
# The chat's template, leaked: who speaks now, and where a turn ends. Bare role names are taken only as templates write
# them, for a "human: sound of a human talking" is a concept.
_ASSISTANT = re.compile(
    r"(?:<\|im_start\|>|<start_of_turn>|<\|start_header_id\|>|<\|?)(?:assistant|model)(?:<\|end_header_id\|>|\|?>|\b)"
    r"|\[/INST\]|###\s?Assistant:|\bASSISTANT:|^Assistant:",
    re.MULTILINE,
)
_OTHER_TURN = re.compile(
    r"(?:<\|im_start\|>|<start_of_turn>|<\|start_header_id\|>|<\|?)(?:user|system)(?:<\|end_header_id\|>|\|?>|\b)"
    r"|\[INST\]|<<SYS>>|###\s?(?:Human|User|System):|\b(?:USER|HUMAN|SYSTEM):|^User:"
    r"|</s>|<eos>|<\|im_end\|>|<\|endoftext\|>|<\|eot_id\|>|<end_of_turn>|<end_of_utterance>",
    re.MULTILINE,
)
# What stands around an answer and is none of its words; GLM's <|begin_of_box|> is among the first.
_SPECIAL = re.compile(r"<\|[^|<>\n]{1,40}\|>|</?(?:s|bos|eos|pad|unk|image|img|answer|row_\d+_col_\d+|global-img)>")
_BOXES = re.compile(r"\[\[[\d,;.\s]{1,200}\]\]|<box>[^<>]{0,200}</box>|</?ref>")
_TURN = re.compile("([\x01\x02])")
_SPACES = re.compile(r"[^\S\n]+")

# Four times the same, and at least 16 words of it: "woof woof woof woof" inside a description is no loop.
MIN_REPEATS = 4
MIN_WORDS = 16
# A whole answer of a caption and five concepts, said again and again, has a period of about 100 words.
MAX_PERIOD_WORDS = 400
# Writing without spaces, "!!!!!" of a model that computes NaN: eight times the same, and at least 64 characters of it.
MIN_CHAR_REPEATS = 8
MIN_CHARS = 64
MAX_PERIOD_CHARS = 32
# A loop whose repeats differ in a word: few distinct runs of four words in a long answer. Lists in the asked form have
# above 0.6.
MIN_DISTINCT = 0.25
LONG_ANSWER_WORDS = 200

_LIST_NUMBER = re.compile(r"\b\d{1,4}[.):]\s")
_RULER = re.compile(r"[-=_*|:#\s]+")
_WORD = re.compile(r"\w+")

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Unusable:
    """Why an answer says nothing that can be used; `detail` is one line."""

    reason: Reason
    detail: str


def read_text(answer: str, finished: bool = True) -> list[str] | Unusable:
    """Return the turns in which the model speaks, as plain text, or why there is nothing to read.

    A model that runs on after its answer speaks in several turns: the first that says something is the answer.

    Args:
        finished: False where the token limit cut the answer.
    """
    said = answer_in(answer, finished)
    if said is None:
        thought = unusable(Reason.BAD_ANSWER, answer).detail
        return Unusable(reason=Reason.BAD_ANSWER, detail=f"thinks to the end, see max_new_tokens: {thought}"[:80])
    text = plain(said[:MAX_ANSWER_CHARS])
    if not text.strip():
        return unusable(Reason.EMPTY_ANSWER, answer)
    if is_looping(text):
        return unusable(Reason.LOOPING, text)
    if len(said) > MAX_ANSWER_CHARS:
        return Unusable(reason=Reason.BAD_ANSWER, detail=f"{len(said)} characters")
    if _PAGE.search(text):
        return unusable(Reason.BAD_ANSWER, text)
    turns = _turns(text)
    return turns or unusable(Reason.EMPTY_ANSWER, text)


def unusable(reason: Reason, text: str) -> Unusable:
    """The reason with the beginning of what was said."""
    return Unusable(reason=reason, detail=" ".join(plain(text[:200]).split())[:80])


def lines_of(text: str) -> list[str]:
    """The first lines of a text, none too long; empty ones are kept out."""
    lines = (line.strip()[:MAX_LINE_CHARS] for line in text.split("\n")[:MAX_LINES])
    return [line for line in lines if line]


def plain(text: str) -> str:
    """NFKC, without control, format, private and unpaired surrogate characters; line ends are newlines."""
    text = unicodedata.normalize("NFKC", _few_marks(text))[:MAX_ANSWER_CHARS]
    text = text.replace("\r\n", "\n").replace("\r", "\n").replace("\u2028", "\n").replace("\u2029", "\n")
    kept = (c if c == "\n" or unicodedata.category(c)[0] != "C" else " " if c in "\t\v\f" else "" for c in text)
    return _SPACES.sub(" ", "".join(kept))


def _few_marks(text: str) -> str:
    if text.isascii():
        return text
    kept: list[str] = []
    marks = 0
    for char in text:
        marks = marks + 1 if unicodedata.combining(char) else 0
        if marks <= MAX_MARKS:
            kept.append(char)
    return "".join(kept)


def _turns(text: str) -> list[str]:
    """What the model says, turn by turn; what stands before any mark is the model's."""
    marked = _OTHER_TURN.sub("\x02", _ASSISTANT.sub("\x01", text))
    turns = [""]
    speaks = True
    for part in _TURN.split(marked):
        if part in ("\x01", "\x02"):
            speaks = part == "\x01"
            turns.append("")
        elif speaks:
            turns[-1] = _BOXES.sub(" ", _SPECIAL.sub(" ", part)).strip()
    return [turn for turn in turns if turn]


def is_looping(text: str) -> bool:
    """Whether the text repeats itself. Linear in its length, times the periods that are tried."""
    words = _WORD.findall(_LIST_NUMBER.sub(" ", text.lower()))
    places: dict[str, int] = {}
    word_ids = np.array([places.setdefault(word, len(places)) for word in words], dtype=np.int32)
    if _repeats(word_ids, MAX_PERIOD_WORDS, MIN_REPEATS, MIN_WORDS) or _says_little(word_ids):
        return True
    # rulers and the padding of tables are no loops
    chars = np.frombuffer(_RULER.sub(" ", text).encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
    return _repeats(chars, MAX_PERIOD_CHARS, MIN_CHAR_REPEATS, MIN_CHARS)


def _repeats(ids: np.ndarray, max_period: int, min_repeats: int, min_length: int) -> bool:
    """Whether a run of at least `min_length` items, and of `min_repeats` periods, repeats with some period."""
    for period in range(1, min(max_period, len(ids) // min_repeats) + 1):
        needed = max(min_length, min_repeats * period) - period
        same = ids[period:] == ids[:-period]
        if np.count_nonzero(same) >= needed and _longest_run(same) >= needed:
            return True
    return False


def _longest_run(same: np.ndarray) -> int:
    breaks = np.flatnonzero(~same)
    return int(np.diff(breaks, prepend=-1, append=len(same)).max()) - 1


def _says_little(word_ids: np.ndarray) -> bool:
    if len(word_ids) < LONG_ANSWER_WORDS:
        return False
    runs = np.lib.stride_tricks.sliding_window_view(word_ids, 4)
    return len(np.unique(runs, axis=0)) < MIN_DISTINCT * len(runs)


def json_values(text: str, *, whole: bool = False) -> Iterator[object]:
    """Yield the objects and lists that stand in a text.

    Models write JSON in prose, with single quotes, trailing commas and Python's words, and without an end where the
    token limit cut it: what was complete is kept. Reading ends at the first thing that cannot be read.

    Args:
        whole: leave out an object of a list that has no end, for what it lacks would be taken for not said.
    """
    position = 0
    while opening := _OPENING.search(text, position):
        builder = _Builder()
        position = opening.start()
        while builder.root is None or builder.open:
            match = _TOKEN.match(text, position)
            if match is None or len(builder.open) > MAX_DEPTH:
                if whole:
                    builder.drop_unfinished()
                yield builder.root
                return
            position = match.end()
            builder.add(match)
        yield builder.root


class _Builder:
    """Containers grow in place, so that a value whose end is missing is there as far as it went."""

    def __init__(self) -> None:
        self.root: object = None
        self.open: list[list | dict] = []
        self._key: list[str | None] = []  # for each open container, the key that waits for its value

    def add(self, match: re.Match[str]) -> None:
        mark = match["mark"]
        if mark is None:
            self._put(_scalar(match))
        elif mark in "{[(":
            container = {} if mark == "{" else []
            self._put(container)
            self.open.append(container)
            self._key.append(None)
        elif mark in "}])":
            self.open.pop()
            self._key.pop()
        elif mark == ",":
            self._key[-1] = None

    def drop_unfinished(self) -> None:
        """Take the outermost object that is open out of the list that it is in."""
        for container, inner in pairwise(self.open):
            if isinstance(container, list) and isinstance(inner, dict):
                container.pop()
                return

    def _put(self, value: object) -> None:
        container = self.open[-1] if self.open else None
        if container is None:
            self.root = value
        elif isinstance(container, list):
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
        # half a surrogate pair, which an escape can say, is nothing that a table holds
        return json.loads(match["double"], strict=False).encode("utf-8", "ignore").decode()
    except ValueError:  # an escape that JSON does not have
        return _BACKSLASHED.sub(r"\1", match["double"][1:-1])
