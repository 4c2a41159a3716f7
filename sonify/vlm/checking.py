"""The grounding check: one more question over all concepts of an image and two foils that are not there.

Models name what is not there, and take drawings and statues for what they show; asked of each thing they know better.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from sonify.captions.words import tokenize
from sonify.keys import hash64
from sonify.rows import Reason, Verdict
from sonify.vlm.cleaning import Unusable, read_text, unusable
from sonify.vlm.sayings import MEDIA, OF_ONE, find_sayings
from sonify.vlm.vocabulary import says_sorry

# Rises with every change of the question, of the foils, or of what an answer to it means.
CHECK_VERSION = 1

_QUESTION = (
    "Look at this image again and answer in plain lines. Some of the things named below are not in it.\n"
    "First line: what is the image: photo, drawing, statue (a photo of a statue or a toy), logo or screen (a photo of"
    " one), or other?\n"
    "medium: one of these words\n"
    "Then one line for each of these names, in this order: {names}\n"
    "name: visible yes or no, real yes or no, sounding yes or no\n"
    "visible: it can be seen in the image. real: it is the thing itself and no picture, toy or statue of it."
    " sounding: it is making a sound right now."
)
_MEDIUM_WORDS = {
    "photo": "photo", "photograph": "photo", "photography": "photo", "photographic": "photo", "snapshot": "photo",
    "drawing": "drawing", "painting": "drawing", "illustration": "drawing", "cartoon": "drawing", "sketch": "drawing",
    "comic": "drawing", "anime": "drawing", "render": "drawing", "rendering": "drawing", "clipart": "drawing",
    "artwork": "drawing", "canvas": "drawing", "watercolor": "drawing", "mural": "drawing", "engraving": "drawing",
    "statue": "statue", "sculpture": "statue", "toy": "statue", "figurine": "statue",
    "logo": "logo", "icon": "logo", "emblem": "logo",
    "screen": "screen", "screenshot": "screen", "monitor": "screen",
    "other": "other", "poster": "other", "diagram": "other", "map": "other", "chart": "other", "collage": "other",
}  # fmt: skip
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

    `medium` is one of `MEDIA`; it is empty where the model gave none of these words.
    """

    medium: str
    verdicts: tuple[Verdict, ...]


def ordered_names(concepts: Sequence[str], foils: Sequence[str], key: str, seed: int) -> tuple[str, ...]:
    """Concepts and foils in an order that tells nothing, so that the place of a foil does not give it away."""
    return tuple(sorted([*concepts, *foils], key=lambda name: hash64(seed, "check order", key, name)))


def check_question(names: Sequence[str]) -> str:
    """The question over all names, in their order."""
    return _QUESTION.format(names=", ".join(names))


def parse_check(answer: str, names: Sequence[str]) -> Check | Unusable:
    """Read an answer to `check_question(names)`. A name of which it says nothing, or two things, is not confirmed."""
    turns = read_text(answer)
    if isinstance(turns, Unusable):
        return turns
    results = [_read_turn(turn, names) for turn in turns]
    return next((result for result in results if isinstance(result, Check)), results[0])


def _read_turn(text: str, names: Sequence[str]) -> Check | Unusable:
    sayings = find_sayings(text, names)
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
    for match in OF_ONE.finditer(value):
        yes = plain or (match[3] or "").lower() in _YES
        found.setdefault(_ASKED[match[2].lower()], yes and not match[1])
    if found:
        return found.get(0, False), found.get(1, False), found.get(2, False)
    if len(answers) == 3:
        return answers[0], answers[1], answers[2]
    return (False, False, False) if answers == [False] or _ABSENT.search(value) else None


def _medium(said: str) -> str:
    """The medium that words name: of `photo of a statue` the statue, and of the whole list said back none."""
    media = {_MEDIUM_WORDS[word] for word in tokenize(said.partition(" not ")[0]) if word in _MEDIUM_WORDS}
    others = sorted(media - {"photo"}, key=MEDIA.index)
    if len(media) > 2:
        return ""
    return others[0] if others else "".join(media)
