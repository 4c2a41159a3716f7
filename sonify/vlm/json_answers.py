"""What an answer to the JSON question means: concepts with what was told of each, or why there are none.

Pure and strict, and never raises. The server may have held the model to the schema, or said so and not done it: of an
answer in another form is read what is there, and what is no JSON at all is read by `answers`, as text. What is told in
a wrong type or beyond its bounds is not told; a box that reaches a little beyond the image ends at its edge. A concept
that the token limit cut is left out whole, for what it lacks would be taken for not said.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice

from sonify.captions.words import tokenize
from sonify.rows import Concept, Reason
from sonify.vlm.answers import (
    Parsed,
    clean_caption,
    clean_description,
    is_example,
    key_of,
    parse_concepts,
    split_prominence,
    spoken_lines,
    without_lines,
)
from sonify.vlm.questions import JSON_PROMPT
from sonify.vlm.repair import MAX_ANSWER_CHARS, MAX_DEPTH, Unusable, is_looping, json_values, plain, unusable
from sonify.vlm.thinking import answer_in
from sonify.vlm.vocabulary import (
    BOX_KEYS,
    CAPTION_KEYS,
    DESCRIPTION_KEYS,
    NAME_KEYS,
    PROMINENCE_KEYS,
    PROMINENCES,
    SILENT,
    UNSEEN,
    clean_name,
    is_foreign,
    is_heading,
    same_name,
    says_sorry,
    words_of,
)

# Rises with every change that can change a result, as `PARSER_VERSION` does.
JSON_PARSER_VERSION = 1
# A hundred concepts in form, with every description as long as it may be; what is behind is read as if it were cut.
MAX_JSON_CHARS = 64_000
MAX_TOLD = 1_000
MAX_TEXT_CHARS = 1_000
# How far beyond the edge, in shares of the image, a box may reach and still be one that is a little too large.
OVERSHOOT = 0.05

_PRESENCES = {
    "visible": "visible", "seen": "visible", "present": "visible", "on screen": "visible", "in frame": "visible",
    "implied": "implied", "hidden": "implied", "inferred": "implied", "occluded": "implied", "not visible": "implied",
    "off screen": "off_screen", "offscreen": "off_screen", "off-screen": "off_screen", "off camera": "off_screen",
    "off-camera": "off_screen", "outside": "off_screen", "out of frame": "off_screen", "absent": "off_screen",
}  # fmt: skip
_PRESENCE_KEYS = words_of("presence visibility")
_SOUNDING_KEYS = words_of("sounding audible") | {"sounding now", "is sounding", "makes sound", "makes a sound"}
_CONFIDENCE_KEYS = words_of("confidence certainty probability")
_NO = words_of("false no silent inaudible")
_PROMPT_LINES = spoken_lines(JSON_PROMPT)


def parse_json(answer: str, max_concepts: int, finished: bool = True, *, english: bool = True) -> Parsed | Unusable:
    """Read an answer to the JSON question.

    At most `max_concepts` of what sounds and is not said to be elsewhere are kept, and as many of the rest.

    Args:
        finished: False where the token limit cut the answer.
        english: False where another language was asked for.
    """
    said = answer_in(answer, finished)
    if said is None:
        return _read_text(answer, max_concepts, finished, english=english)
    values, told = _values(said)
    if not told:
        own = without_lines(said, _PROMPT_LINES) if len(said) <= MAX_ANSWER_CHARS else said
        if said.strip() and not own:
            return Unusable(reason=Reason.BAD_ANSWER, detail="repeats the prompt")
        values, told = _values(own)
        if not told:
            return _without_concepts(own, values) or _read_text(own, max_concepts, finished, english=english)
    concepts = _kept((_concept(one, english=english) for one in told), max_concepts)
    words = "; ".join(f"{concept.concept} {concept.description}" for concept in concepts)
    if english and is_foreign(tokenize(words)):
        return unusable(Reason.BAD_ANSWER, f"another language: {words}")
    if not concepts:
        return unusable(Reason.LOOPING if is_looping(said[:MAX_ANSWER_CHARS]) else Reason.BAD_ANSWER, said)
    return Parsed(caption=_caption(values), concepts=concepts)


def _without_concepts(said: str, values: Sequence[object]) -> Unusable | None:
    """What JSON says in which nothing is named: an empty list, its beginning, the schema; None for anything else."""
    if [] in values or any(isinstance(value, dict) and _list_is_empty(value) for value in values):
        if sum(map(said.count, "[{")) > sum(map(said.count, "]}")):
            return Unusable(reason=Reason.BAD_ANSWER, detail="ends before the first concept, see max_new_tokens")
        return unusable(Reason.REFUSAL if says_sorry(_caption(values)) else Reason.NO_CONCEPTS, said)
    return unusable(Reason.BAD_ANSWER, f"repeats the schema: {said}") if any(map(_is_schema, values)) else None


def _read_text(said: str, max_concepts: int, finished: bool, *, english: bool) -> Parsed | Unusable:
    """Read what is not in the form as answers in plain lines are read."""
    parsed = parse_concepts(said, max_concepts, None, finished, english=english)
    if isinstance(parsed, Unusable):
        return parsed
    # JSON of another shape may hold, in its escapes, what plain text never does
    concepts = tuple(replace(concept, description=_line(concept.description)) for concept in parsed.concepts)
    return Parsed(caption=_line(parsed.caption), concepts=concepts)


def _values(said: str) -> tuple[list[object], list[dict[str, object]]]:
    """The objects and lists of a text, and those objects in them that name a thing.

    As JSON has them, else what can be told of JSON that is cut or badly written.
    """
    text = said[:MAX_JSON_CHARS]
    try:
        value, end = _DECODER.raw_decode(text, max(text.find("{"), 0))
    except (ValueError, RecursionError):
        value, end = None, 0
    # what goes on behind an object is a list's rest, or another answer
    rest = json_values(text[end:] if isinstance(value, dict) else text, whole=True)
    values = [value, *rest] if isinstance(value, dict) else list(rest)
    return values, list(islice((told for value in values for told in _told_in(value)), MAX_TOLD))


_DECODER = json.JSONDecoder(parse_constant=lambda _name: None)  # NaN and infinity are nothing that is told


def _told_in(value: object, depth: int = 0) -> Iterator[dict[str, object]]:
    """The objects that name a thing, wherever they stand; keys in one form."""
    if depth > MAX_DEPTH:
        return
    if isinstance(value, list):
        for item in value:
            yield from _told_in(item, depth + 1)
    elif isinstance(value, dict):
        told = {key_of(str(key)[:100]): inner for key, inner in value.items()}
        if _text(told, NAME_KEYS):
            yield told
        else:
            yield from _told_in(list(value.values()), depth + 1)


def _list_is_empty(value: dict[str, object]) -> bool:
    return not value or any(inner in ([], {}, None) for inner in value.values())


def _is_schema(value: object) -> bool:
    return isinstance(value, dict) and {"type", "properties"} <= value.keys()


def _caption(values: Sequence[object]) -> str:
    for value in values:
        if isinstance(value, dict):
            told = {key_of(str(key)[:100]): inner for key, inner in value.items()}
            if caption := _text(told, CAPTION_KEYS):
                return clean_caption(caption)
    return ""


def _text(told: Mapping[str, object], keys: frozenset[str]) -> str:
    """The first text under one of the keys: one line, without what no table can hold."""
    texts = (value for key, value in told.items() if key in keys and isinstance(value, str))
    return next((line for text in texts if (line := _line(text))), "")


def _line(text: str) -> str:
    return " ".join(plain(text[:MAX_TEXT_CHARS]).split())


def _concept(told: Mapping[str, object], *, english: bool) -> Concept | None:
    raw_name, level_of_name = split_prominence(_text(told, NAME_KEYS))
    raw_description, level = split_prominence(_text(told, DESCRIPTION_KEYS))
    name = clean_name(raw_name, english=english)
    description = clean_description(raw_description, english=english)
    sounding = _sounding(told) and not SILENT.search(raw_description)
    if description is None and not sounding:
        description = ""
    if not name or is_heading(name) or description is None or is_example(name, description) or is_looping(description):
        return None
    presence = _presence(told)
    if presence in ("", "visible") and UNSEEN.search(f"{raw_name}; {raw_description}"):
        presence = "off_screen"
    box = _box(next((value for key, value in told.items() if key in BOX_KEYS), None))
    return Concept(
        concept=name,
        description=description,
        prominence=PROMINENCES.get(key_of(_text(told, PROMINENCE_KEYS)), level or level_of_name),
        area=round((box[2] - box[0]) * (box[3] - box[1]), 6) if box else 0.0,
        presence=presence,
        sounding=sounding,
        confidence=_share(next((value for key, value in told.items() if key in _CONFIDENCE_KEYS), None)),
        box=box,
    )


def _presence(told: Mapping[str, object]) -> str:
    said = _PRESENCES.get(key_of(_text(told, _PRESENCE_KEYS)), "")
    if said or "visible" not in told:
        return said
    return {"True": "visible", "False": "implied"}.get(str(told["visible"])[:10], "")


def _sounding(told: Mapping[str, object]) -> bool:
    values = [value for key, value in told.items() if key in _SOUNDING_KEYS]
    return not any(value is False or (isinstance(value, str) and key_of(value[:100]) in _NO) for value in values)


def _is_bool(value: object) -> bool:
    return value is True or value is False


def _number(value: object) -> float | None:
    """A number as JSON has it; a text, however it looks, is none."""
    if _is_bool(value) or not isinstance(value, int | float):
        return None
    try:
        return float(value)
    except OverflowError:
        return None


def _share(value: object) -> float:
    number = _number(value)
    return round(number, 4) if number is not None and 0 <= number <= 1 else 0.0


def _box(value: object) -> tuple[float, ...]:
    """Left, top, right and bottom as shares of the image; empty where it is no box inside of it.

    It was asked for in thousandths; one whose numbers are all at most 1 is in shares. Pixels cannot be told from
    thousandths while they are below 1000.
    """
    corners = [_number(each) for each in value] if isinstance(value, list) and len(value) == 4 else []
    numbers = [number for number in corners if number is not None]
    if len(numbers) != 4:
        return ()
    unit = 1.0 if max(numbers) <= 1 else 1000.0
    shares = [number / unit for number in numbers]
    if min(shares) < -OVERSHOOT or max(shares) > 1 + OVERSHOOT:
        return ()
    left, top, right, bottom = (round(min(max(share, 0.0), 1.0), 4) for share in shares)
    return (left, top, right, bottom) if left < right and top < bottom else ()


def _kept(concepts: Iterator[Concept | None], max_concepts: int) -> tuple[Concept, ...]:
    """Each name once, in the answer's order; so many that may be heard, and as many others."""
    kept: list[Concept] = []
    room = {True: max_concepts, False: max_concepts}
    for concept in concepts:
        if concept is None:
            continue
        place = next((n for n, old in enumerate(kept) if same_name(old.concept, concept.concept)), None)
        if place is None and room[concept.is_claimed] > 0:
            room[concept.is_claimed] -= 1
            kept.append(concept)
        elif place is not None and concept.is_claimed == kept[place].is_claimed:
            kept[place] = _merged(kept[place], concept)
        elif place is not None and concept.is_claimed and room[True] > 0:
            room[True], room[False] = room[True] - 1, room[False] + 1
            kept[place] = replace(concept, concept=kept[place].concept)
    return tuple(kept)


def _merged(old: Concept, new: Concept) -> Concept:
    """A concept with what another of the same name says more."""
    larger = new if new.area > old.area else old
    return replace(
        old,
        description=old.description or new.description,
        prominence=old.prominence or new.prominence,
        confidence=max(old.confidence, new.confidence),
        area=larger.area,
        box=larger.box,
    )
