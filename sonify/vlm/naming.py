"""Names of concepts as models write them: brought to one form, and compared."""

import re

from sonify.captions.words import plural, tokenize
from sonify.vlm.vocabulary import words_of

MAX_NAME_WORDS = 5
MAX_NAME_CHARS = 50

# Bullets, numbers, headings and boxes to tick before a line's text.
_MARKS = re.compile(r"(?:[-+•‣◦▪●○■–—·>#*]++\s*+|\(?\d{1,3}+[.):](?!\d)\s*+|\(?[a-zA-Z][.)]\s++|\[[ xX]\]\s*+)++")
_EMPHASIS = re.compile(r"[*`]++|(?<!\w)_++|_++(?!\w)")
_PARENTHESES = re.compile(r"\([^()]*+\)|\[[^\[\]]*+\]")
_LATIN = re.compile(r"[a-z\u00c0-\u024f0-9]++(?:(?: ?[&/'’-] ?|,? |\. )[a-z\u00c0-\u024f0-9]++)*+['’]?")
_LETTER = re.compile(r"[A-Za-z]")
_NOT_IN_KEYS = words_of(
    "a an the some several many few two three four five six seven eight nine ten one multiple various"
)


def strip_marks(line: str) -> tuple[str, bool]:
    """A line without emphasis and without what makes it an item of a list, and whether it was one."""
    match = _MARKS.match(line)
    text = line
    # a heading in bold begins with the bullet's star
    if match is not None and not (match.group().startswith("**") and not match.group()[2:].strip("*")):
        text = line[match.end() :]
    bulleted = len(text) < len(line)
    text = _EMPHASIS.sub("", text).strip()
    inner = _MARKS.match(text)  # **1. Dog**
    return (text[inner.end() :].strip(), True) if inner is not None else (text, bulleted)


def clean_name(raw: str) -> str:
    """A name in lower case, without article, quotes, brackets and number; empty where it is none."""
    plain = _EMPHASIS.sub("", _PARENTHESES.sub(" ", raw[:200]))
    words = plain.strip(" \t.,;:!?\"'“”‘’*_-–—|").lower().split()
    while len(words) > 1 and words[0] in {"a", "an", "the", "some"}:
        words = words[1:]
    while len(words) > 1 and words[-1].strip("#").isdigit():
        words = words[:-1]
    while words and not any(c.isalnum() for c in words[0]):  # an emoji before it
        words = words[1:]
    name = " ".join(words)
    if not _LATIN.fullmatch(name) or not _LETTER.search(name):
        return ""
    return name if len(words) <= MAX_NAME_WORDS and len(name) <= MAX_NAME_CHARS else ""


def name_key(name: str) -> tuple[str, ...]:
    """The words that tell one name from another: no articles, numbers, accents and case."""
    tokens = tuple(t for t in tokenize(name) if t not in _NOT_IN_KEYS and not t.isdigit())
    return tokens or tuple(tokenize(name))


def same_name(one: str, other: str) -> bool:
    """Whether two names are one: `A dog`, `dogs`, `Dog 2`."""
    ours, theirs = name_key(one), name_key(other)
    return 0 < len(ours) == len(theirs) and all(map(_same_word, ours, theirs))


def _same_word(one: str, other: str) -> bool:
    return one == other or plural(one) == other or plural(other) == one
