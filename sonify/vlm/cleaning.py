"""From what a model said to plain text: without control characters, thinking and marks of the chat's template.

An answer that is empty, a loop, a web page or far too long is a reason, whatever was asked.
"""

import re
import unicodedata
from dataclasses import dataclass

from sonify.rows import Reason
from sonify.vlm.looping import is_looping

# Four thousand tokens; answers end at some hundreds.
MAX_ANSWER_CHARS = 16_000
MAX_LINES = 300
MAX_LINE_CHARS = 1_000
MAX_MARKS = 4  # combining marks on one letter; normalising takes the square of their number

_THINKING = re.compile(r"</\s?(?:think|thinking|reasoning)>|◁/think▷")
_THINKING_STARTS = re.compile(r"<(?:think|thinking|reasoning)>|◁think▷")
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
_SPECIAL = re.compile(r"<\|[^|<>\n]{1,40}\|>|</?(?:s|bos|eos|pad|unk|image|img|answer|row_\d+_col_\d+|global-img)>")
_BOXES = re.compile(r"\[\[[\d,;.\s]{1,200}\]\]|<box>[^<>]{0,200}</box>|</?ref>")
_TURN = re.compile("([\x01\x02])")
_SPACES = re.compile(r"[^\S\n]+")


@dataclass(frozen=True, slots=True, kw_only=True)
class Unusable:
    """Why an answer says nothing that can be used; `detail` is one line."""

    reason: Reason
    detail: str


def read_text(answer: str) -> list[str] | Unusable:
    """Return the turns in which the model speaks, as plain text, or why there is nothing to read.

    A model that runs on after its answer speaks in several turns: the first that says something is the answer.
    """
    said = _THINKING.split(answer)[-1]
    text = _plain(said[:MAX_ANSWER_CHARS])
    if not text.strip():
        return unusable(Reason.EMPTY_ANSWER, answer)
    if is_looping(text):
        return unusable(Reason.LOOPING, text)
    if len(said) > MAX_ANSWER_CHARS:
        return Unusable(reason=Reason.BAD_ANSWER, detail=f"{len(said)} characters")
    if _PAGE.search(text):
        return unusable(Reason.BAD_ANSWER, text)
    turns = _turns(_THINKING_STARTS.split(text)[0])
    if not turns:
        return unusable(Reason.BAD_ANSWER if _THINKING_STARTS.search(text) else Reason.EMPTY_ANSWER, text)
    return turns


def unusable(reason: Reason, text: str) -> Unusable:
    """The reason with the beginning of what was said."""
    return Unusable(reason=reason, detail=" ".join(_plain(text[:200]).split())[:80])


def lines_of(text: str) -> list[str]:
    """The first lines of a text, none too long; empty ones are kept out."""
    lines = (line.strip()[:MAX_LINE_CHARS] for line in text.split("\n")[:MAX_LINES])
    return [line for line in lines if line]


def _plain(text: str) -> str:
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
