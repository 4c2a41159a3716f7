"""Finding, in an answer to the grounding check, what is said of each name and of the medium."""

import re
from collections.abc import Sequence

from sonify.vlm.cleaning import lines_of
from sonify.vlm.loose_json import json_values
from sonify.vlm.naming import same_name, strip_marks
from sonify.vlm.vocabulary import NAME_KEYS

# The media that are asked for, in the question's order.
MEDIA = ("photo", "drawing", "statue", "logo", "screen", "other")

# `visible: yes`, `Real (no)`, `not sounding`: what is said of one of the three.
OF_ONE = re.compile(
    r"\b(not |in|un|non-)?(visible|real|sounding|audible)\b(?:[\"'\s:=(-]|is\b|->|now\b)*+(\w+|[✓✔✅☑✗✘❌☒])?",
    re.IGNORECASE,
)
_HEAD = re.compile(
    r"\s*+[:=|](?!\d)\s*+|\s++[-–—]\s++|[,\s]\s*+\(?(?=(?:is )?(?:not )?(?:visible|invisible)\b)", re.IGNORECASE
)
_COMMA = re.compile(r",\s*+|$")
_MEDIUM = re.compile(r"(?:the |image )?medium\b[\"' ]*+(?:of the image )?(?:is\b|[:=–—-])\W*+(.++)", re.IGNORECASE)
_MEDIUM_SENTENCE = re.compile(
    r"(?:(?:the|this) image is |it is |it's |this is )?(?:an? |the )?(?:\w+ )?\w+\W*$", re.IGNORECASE
)


def find_sayings(text: str, names: Sequence[str]) -> list[tuple[str, str]]:
    """Return what is said of each name, and under the empty name of the medium, in the text's order."""
    return _from_json(list(json_values(text)), names) or _from_lines(lines_of(_one_a_line(text, names)), names)


def _from_json(values: Sequence[object], names: Sequence[str]) -> list[tuple[str, str]]:
    sayings: list[tuple[str, str]] = []
    for value in values:
        if isinstance(value, list):
            sayings += _from_json(value, names)
        elif isinstance(value, dict):
            own = next((str(v) for k, v in value.items() if k.lower() in NAME_KEYS), "")
            if name := _known(own, names):
                sayings.append((name, _spelled(value)))
            else:
                sayings += _from_mapping(value, names)
    return sayings


def _from_mapping(value: dict[str, object], names: Sequence[str]) -> list[tuple[str, str]]:
    sayings: list[tuple[str, str]] = []
    for key, inner in value.items():
        if name := _known(key, names):
            sayings.append((name, _spelled(inner)))
        elif key.lower() in ("medium", "image_medium"):
            sayings.append(("", str(inner)))
        else:
            sayings += _from_json([inner], names)
    return sayings


def _spelled(value: object) -> str:
    """A JSON value in the words of the plain form."""
    if isinstance(value, dict):
        return ", ".join(f"{key.replace('_', ' ')} {_spelled(inner)}" for key, inner in value.items())
    if isinstance(value, list):
        return ", ".join(map(_spelled, value))
    return {True: "yes", False: "no"}.get(value, "") if isinstance(value, bool) else str(value)


def _from_lines(lines: Sequence[str], names: Sequence[str]) -> list[tuple[str, str]]:
    """As `_from_json`; lines that begin with what was asked of a name go on with the last one."""
    sayings: list[tuple[str, str]] = []
    for line in lines:
        text = strip_marks(line.strip("| \t").replace(" | ", ", ", 99) if line.startswith("|") else line)[0]
        medium = _MEDIUM.match(text)
        head = _HEAD.search(text) or _COMMA.search(text)
        assert head is not None
        if medium is not None:
            sayings.append(("", medium[1]))
        elif name := _known(text[: head.start()], names):
            sayings.append((name, text[head.end() :]))
        elif sayings and sayings[-1][0] and OF_ONE.match(text):
            sayings[-1] = (sayings[-1][0], f"{sayings[-1][1]}, {text}")
        elif _MEDIUM_SENTENCE.match(text):
            sayings.append(("", text))
    return sayings


def _one_a_line(text: str, names: Sequence[str]) -> str:
    """A new line before each name that follows an answer on the same line."""
    known = "|".join(re.escape(name) for name in sorted(names, key=len, reverse=True))
    before = "|".join(("yes", "no", *MEDIA))
    return re.sub(
        rf"((?:\b(?:{before})\b[.;,)]?|[.;)])\s++)(?=(?:the |an? )?(?:{known})\s*:)", r"\1\n", text, flags=re.I
    )


def _known(raw: str, names: Sequence[str]) -> str:
    """The name that is meant, empty where it is none of them."""
    return next((name for name in names if same_name(raw[:100], name)), "")
