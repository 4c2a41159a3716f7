"""The grounding check: one more question over all concepts of an image and two foils that are not there.

Models name what is not there, and take drawings and statues for what they show; asked of each thing they know better.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from sonify.captions.words import tokenize
from sonify.rows import Reason, Verdict
from sonify.vlm.repair import Unusable, json_values, lines_of, read_text, unusable
from sonify.vlm.vocabulary import NAME_KEYS, same_name, says_sorry, strip_marks, words_of

# Media in the question's order, with the words that name them.
_MEDIA = {
    "photo": words_of("photo photograph photography photographic snapshot"),
    "drawing": words_of(
        "drawing painting illustration cartoon sketch comic anime render rendering clipart artwork canvas watercolor"
        " mural engraving"
    ),
    "statue": words_of("statue sculpture toy figurine"),
    "logo": words_of("logo icon emblem"),
    "screen": words_of("screen screenshot monitor"),
    "other": words_of("other poster diagram map chart collage"),
}
# `visible: yes`, `Real (no)`, `not sounding`: what is said of one of the three.
_OF_ONE = re.compile(
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
_ASKED = {"visible": 0, "real": 1, "sounding": 2, "audible": 2}
_YES = frozenset(("yes", "true", "y", "✓", "✔", "✅", "☑"))
_SAID = re.compile(r"\b(?:yes|no|true|false|y|n)\b|[✓✔✅☑✗✘❌☒]", re.IGNORECASE)
# The form itself, said back: no answer.
_FORM = re.compile(r"\byes\s*+(?:/|or\b|\|)\s*+no\b|\btrue\s*+(?:/|or\b)\s*+false\b|\by\s*+/\s*+n\b", re.IGNORECASE)
# `visible, real and sounding`, without a yes
_PLAIN = re.compile(
    r"(?:\b(?:is |are )?(?:not )?(?:visible|real|sounding|audible)\b(?:[\s,;.()]|\band\b|\bbut\b)*+)++", re.IGNORECASE
)
_ABSENT = re.compile(
    r"\bnot (?:present|there|shown|in the (?:image|picture|photo))\b|\babsent\b|\bn/a\b", re.IGNORECASE
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """An answer to the check: one verdict for each name, in the question's order.

    `medium` is one of `_MEDIA`; it is empty where the model gave none of these words.
    """

    medium: str
    verdicts: tuple[Verdict, ...]


def parse_check(answer: str, names: Sequence[str], finished: bool = True) -> Check | Unusable:
    """Read an answer to `check_question(names)`. A name of which it says nothing, or two things, is not confirmed."""
    turns = read_text(answer, finished)
    if isinstance(turns, Unusable):
        return turns
    results = [_read_turn(turn, names) for turn in turns]
    return next((result for result in results if isinstance(result, Check)), results[0])


def _read_turn(text: str, names: Sequence[str]) -> Check | Unusable:
    sayings = _find_sayings(text, names)
    medium = next((value for name, said in sayings if not name and (value := _medium(said))), "")
    told = [(name, three) for name, said in sayings if name and (three := _three(said)) is not None]
    if not told and not medium:
        return unusable(Reason.REFUSAL if says_sorry(text) else Reason.BAD_ANSWER, text)
    return Check(medium=medium, verdicts=tuple(_verdict(name, told) for name in names))


def _verdict(name: str, told: Sequence[tuple[str, tuple[bool, ...]]]) -> Verdict:
    said = [three for of, three in told if of == name] or [(False, False, False)]
    visible, real, sounding = (all(column) for column in zip(*said, strict=True))
    return Verdict(concept=name, visible=visible, real=real, sounding=sounding)


def _three(value: str) -> tuple[bool, bool, bool] | None:
    """Visible, real and sounding; what is not said is False, and None where nothing is."""
    if _FORM.search(value):
        return None
    answers = [word.lower() in _YES for word in _SAID.findall(value)]
    plain = _PLAIN.fullmatch(value.strip()) is not None
    found: dict[int, bool] = {}
    for match in _OF_ONE.finditer(value):
        yes = plain or (match[3] or "").lower() in _YES
        found.setdefault(_ASKED[match[2].lower()], yes and not match[1])
    if found:
        return found.get(0, False), found.get(1, False), found.get(2, False)
    if len(answers) == 3:
        return answers[0], answers[1], answers[2]
    return (False, False, False) if answers == [False] or _ABSENT.search(value) else None


def _medium(said: str) -> str:
    """The medium that words name: of `photo of a statue` the statue, and of the whole list said back none."""
    words = tokenize(said.partition(" not ")[0])
    media = [medium for medium, own in _MEDIA.items() if not own.isdisjoint(words)]
    if len(media) > 2:
        return ""
    return next((medium for medium in media if medium != "photo"), "".join(media))


def _find_sayings(text: str, names: Sequence[str]) -> list[tuple[str, str]]:
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
        elif sayings and sayings[-1][0] and _OF_ONE.match(text):
            sayings[-1] = (sayings[-1][0], f"{sayings[-1][1]}, {text}")
        elif _MEDIUM_SENTENCE.match(text):
            sayings.append(("", text))
    return sayings


def _one_a_line(text: str, names: Sequence[str]) -> str:
    """A new line before each name that follows an answer on the same line."""
    known = "|".join(re.escape(name) for name in sorted(names, key=len, reverse=True))
    before = "|".join(("yes", "no", *_MEDIA))
    return re.sub(
        rf"((?:\b(?:{before})\b[.;,)]?|[.;)])\s++)(?=(?:the |an? )?(?:{known})\s*:)", r"\1\n", text, flags=re.I
    )


def _known(raw: str, names: Sequence[str]) -> str:
    """The name that is meant, empty where it is none of them."""
    return next((name for name in names if same_name(raw[:100], name)), "")
