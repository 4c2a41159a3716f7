"""What a model's answer to the concepts prompt means: a caption and sounding concepts, or why there are none.

Pure and strict. `PARSER_VERSION` rises with every change that can change a result: stored answers are then read again.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from sonify.captions.words import tokenize
from sonify.rows import Concept, Reason
from sonify.vlm.cleaning import Unusable, lines_of, read_text, unusable
from sonify.vlm.drafts import Draft, Entry
from sonify.vlm.json_form import draft_from_json, is_empty
from sonify.vlm.line_form import draft_from_lines
from sonify.vlm.loose_json import json_values
from sonify.vlm.naming import clean_name, same_name
from sonify.vlm.prompts import CONCEPTS_PROMPT, EXAMPLE_DESCRIPTION, EXAMPLE_NAME
from sonify.vlm.vocabulary import (
    PROMINENCES,
    SILENT,
    UNSEEN,
    is_foreign,
    is_heading,
    says_nothing_sounds,
    says_sorry,
    words_of,
)

PARSER_VERSION = 1

MAX_DESCRIPTION_CHARS = 200
MAX_CAPTION_CHARS = 400

# (foreground), [in the background], - ambience; "(foreground, background or ambience)" is the form said back.
_WORD = r"(?:foreground|background|ambien(?:ce|t)|ambiance)"
_PROMINENCE = re.compile(
    rf"[\s,;:–—-]*+[(\[]\s*+(?:in the )?({_WORD}(?:(?:\s*+[,/|]\s*+|\s++or\s++){_WORD})*+)(?: sounds?)?\s*+[)\]]"
    r"[\s.,;]*+$"
    rf"|(?:\s++[–—-]++\s*+|\s*+[,;|]\s*+)({_WORD})[\s.,;]*+$",
    re.IGNORECASE,
)
# Where the token limit cut a description, it may end in such words, and what is left may say nothing.
_DANGLING = words_of("a an the of with and or to from while as for into is are its their")
_EMPTY_WORDS = _DANGLING | words_of("sound sounds noise noises audio soft loud gentle yes no true false")


@dataclass(frozen=True, slots=True, kw_only=True)
class Parsed:
    """What a model heard in an image; `caption` is empty where it gave none, `concepts` never is."""

    caption: str
    concepts: tuple[Concept, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Concepts:
    kept: tuple[Concept, ...]
    silent: bool  # some were left out for being silent or unseen, by the model's own word


def parse_concepts(answer: str, max_concepts: int, image_size: tuple[int, int] | None = None) -> Parsed | Unusable:
    """Read an answer to `concepts_prompt`.

    Args:
        image_size: width and height in which the model gives the pixels of boxes. Without it a box gives an area only
            in shares of the image, for then 1000 may be pixels or thousandths.
    """
    turns = read_text(answer)
    if isinstance(turns, Unusable):
        return turns
    text = next((own for turn in turns if (own := _without_prompt(turn))), "")
    if not text:
        return Unusable(reason=Reason.BAD_ANSWER, detail="repeats the prompt")
    values = list(json_values(text))
    draft = draft_from_json(values) if values else draft_from_lines(lines_of(text))
    concepts = _concepts(draft.entries, max_concepts, image_size)
    if not concepts.kept or is_foreign(_words(draft)):
        return _why_none(text, values, concepts)
    return Parsed(caption=_caption(draft.caption), concepts=concepts.kept)


def _why_none(text: str, values: list[object], concepts: _Concepts) -> Unusable:
    if concepts.kept:
        return unusable(Reason.BAD_ANSWER, f"another language: {text}")
    if concepts.silent or is_empty(values) or any(map(says_nothing_sounds, _sayings(text))):
        return unusable(Reason.NO_CONCEPTS, text)
    return unusable(Reason.REFUSAL if says_sorry(text) else Reason.BAD_ANSWER, text)


def _sayings(text: str) -> list[str]:
    """Lines, and what stands behind their colons."""
    return [saying for line in lines_of(text) for saying in (line, line.partition(":")[2]) if saying]


def _words(draft: Draft) -> list[str]:
    said = [draft.caption, *(f"{entry.name} {entry.description}" for entry in draft.entries)]
    return tokenize(" ".join(said))


def _concepts(entries: Sequence[Entry], max_concepts: int, image_size: tuple[int, int] | None) -> _Concepts:
    """The first entries that name a sounding thing, each once; bare names only where nothing was described."""
    described = any(entry.description for entry in entries)
    kept: list[Concept] = []
    silent = False
    for entry in entries:
        if not entry.description and (described or not entry.listed):
            continue
        concept = _concept(entry, image_size)
        if concept is None:
            continue
        if SILENT.search(entry.description) or UNSEEN.search(f"{entry.name}; {entry.description}"):
            silent = True
        elif not _merge(kept, concept) and len(kept) < max_concepts:
            kept.append(concept)
    return _Concepts(kept=tuple(kept), silent=silent)


def _concept(entry: Entry, image_size: tuple[int, int] | None) -> Concept | None:
    raw_name, prominence_of_name = _split_prominence(" ".join(entry.name.split()))
    raw_description, prominence = _split_prominence(" ".join(entry.description.split()))
    name = clean_name(raw_name)
    description = clean_description(raw_description)
    if not name or is_heading(name) or (description is None) or _is_example(name, description):
        return None
    return Concept(
        concept=name,
        description=description,
        prominence=entry.prominence or prominence or prominence_of_name,
        area=_area(entry.box, image_size),
    )


def clean_description(raw: str) -> str | None:
    """One line of at most 200 characters; empty for none, None for one that says nothing or is no English."""
    text = " ".join(raw.replace("*", "").replace("`", "").split())
    if len(text) > MAX_DESCRIPTION_CHARS:
        text = text[:MAX_DESCRIPTION_CHARS].rpartition(" ")[0]
    for opens, closes in ("()", "[]"):
        if text.count(opens) > text.count(closes):
            text = text[: text.rindex(opens)]
    words = text.strip(" .,;:\"'“”").split()
    while words and words[-1].lower() in _DANGLING:
        words = words[:-1]
    tokens = tokenize(" ".join(words))
    if raw.strip() and (all(token in _EMPTY_WORDS for token in tokens) or not _mostly_latin(words) or "://" in text):
        return None
    return " ".join(words)


def _mostly_latin(words: list[str]) -> bool:
    letters = [c for word in words for c in word if c.isalpha()]
    return 2 * sum(c < "\u0250" for c in letters) > len(letters)


def _split_prominence(text: str) -> tuple[str, str]:
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


def _caption(raw: str) -> str:
    text = " ".join(raw.replace("*", "").replace("`", "").split()).strip("\"'“” ")
    return text if len(text) <= MAX_CAPTION_CHARS else text[:MAX_CAPTION_CHARS].rpartition(" ")[0]


def _is_example(name: str, description: str) -> bool:
    return name == EXAMPLE_NAME and tokenize(description) == tokenize(EXAMPLE_DESCRIPTION)


def _spoken(text: str) -> str:
    """Words alone, without numbers: how a line of the prompt is known again."""
    return " ".join(token for token in tokenize(text) if not token.isdigit())


_PROMPT_LINES = frozenset(map(_spoken, CONCEPTS_PROMPT.replace("{max_concepts}", "").split("\n")))


def _without_prompt(text: str) -> str:
    """The text without lines of the prompt, and without the prompt where it was said on one line."""
    lines = [line for line in text.split("\n") if line.strip() and not _echoes(_spoken(line[:2000]))]
    return "\n".join(lines)


def _echoes(spoken: str) -> bool:
    return bool(spoken) and (spoken in _PROMPT_LINES or any(len(p) > 60 and p in spoken for p in _PROMPT_LINES))
