import json
import random
import string
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from sonify.rows import Concept, Reason
from sonify.vlm.answers import Parsed, parse_concepts
from sonify.vlm.json_answers import MAX_TOLD, OVERSHOOT, parse_json
from sonify.vlm.questions import concepts_prompt, concepts_schema
from sonify.vlm.repair import Unusable
from tests.builders import told, told_json
from tests.vlm.faulty_server import held_to

DOG = Concept(
    concept="dog",
    description="sound of a dog barking",
    prominence="foreground",
    area=0.5,
    presence="visible",
    confidence=0.75,
    box=(0.0, 0.0, 0.5, 1.0),
)
SAID_OF_DOG = told("dog", "sound of a dog barking")
GULL = told("seagull", "sound of seagulls crying", presence="off_screen", box=[], confidence=0.5)
CAR = told("parked car", "engine at rest", sounding=False)
ANSWER = told_json("A beach.", SAID_OF_DOG, GULL, CAR)
SEEDED = Path(__file__).parent / "answers"


def names(result):
    assert isinstance(result, Parsed), result
    return [concept.concept for concept in result.concepts]


def only(**changes):
    """The one concept of an answer that tells of a dog, and something in another way."""
    result = parse_json(told_json("A beach.", SAID_OF_DOG | changes), 5)
    assert isinstance(result, Parsed), result
    (concept,) = result.concepts
    return concept


def test_an_answer_in_the_asked_form_is_read_as_it_stands():
    result = parse_json(ANSWER, 5)
    assert isinstance(result, Parsed)
    assert result.caption == "A beach."
    dog, gull, car = result.concepts
    assert dog == DOG
    assert (gull.presence, gull.sounding, gull.box, gull.area, gull.confidence) == ("off_screen", True, (), 0.0, 0.5)
    assert (car.presence, car.sounding) == ("visible", False)


FORMS = {
    "fence": f"```json\n{ANSWER}\n```",
    "prose": f"Sure! Here is the JSON:\n\n{ANSWER}\n\nI hope this helps {{or not}}.",
    "reasoning": f"<think>A dog, a cow: {{maybe}}</think>{ANSWER}",
    "indented": json.dumps(json.loads(ANSWER), indent=4),
    "a bare list": json.dumps(json.loads(ANSWER)["concepts"]),
    "lines of objects": "\n".join(map(json.dumps, json.loads(ANSWER)["concepts"])),
    "wrapped": json.dumps({"result": {"answer": json.loads(ANSWER)}}),
    "by presence": json.dumps({"visible": [SAID_OF_DOG, CAR], "off_screen": [GULL]}),
    "trailing commas": ANSWER.replace("}", ",}").replace("]", ",]"),
    "python": repr(json.loads(ANSWER)),
    "more keys": ANSWER.replace('"presence"', '"id": 7, "colour": {"name": 3}, "presence"'),
    "capitals": ANSWER.replace('"name"', '"Name"').replace('"off_screen"', '"Off-Screen"'),
    "spaces of a grammar": ANSWER + "\n" * 3000,
    "twice": ANSWER + "\n" + ANSWER,
}


@pytest.mark.parametrize("form", FORMS)
def test_the_same_is_read_whatever_stands_around_it(form):
    result = parse_json(FORMS[form], 5)
    expected = parse_json(ANSWER, 5)
    assert isinstance(result, Parsed)
    assert isinstance(expected, Parsed)
    assert sorted(result.concepts, key=lambda c: c.concept) == sorted(expected.concepts, key=lambda c: c.concept)


def test_an_answer_that_is_cut_anywhere_keeps_the_concepts_that_are_whole():
    whole = parse_json(ANSWER, 5)
    assert isinstance(whole, Parsed)
    ends = [n for n, char in enumerate(ANSWER, 1) if char == "}"][:3]
    for end in range(1, len(ANSWER)):
        result = parse_json(ANSWER[:end], 5, finished=False)
        kept = result.concepts if isinstance(result, Parsed) else ()
        assert kept == whole.concepts[: sum(at <= end for at in ends)], ANSWER[:end]
        if isinstance(result, Unusable) and end > ANSWER.index("concepts") + 12:
            assert result.reason is Reason.BAD_ANSWER
            assert "max_new_tokens" in result.detail


@pytest.mark.parametrize(
    ("changes", "is_told"),
    [
        ({"confidence": "high"}, {"confidence": 0.0}),
        ({"confidence": 85}, {"confidence": 0.0}),
        ({"confidence": True}, {"confidence": 0.0}),
        ({"confidence": None}, {"confidence": 0.0}),
        ({"confidence": [0.5]}, {"confidence": 0.0}),
        ({"confidence": -0.1}, {"confidence": 0.0}),
        ({"presence": 5}, {"presence": ""}),
        ({"presence": "somewhere"}, {"presence": ""}),
        ({"presence": "Off screen"}, {"presence": "off_screen"}),
        ({"presence": ["visible"]}, {"presence": ""}),
        ({"presence": None, "visible": False}, {"presence": "implied"}),
        ({"presence": None, "visible": True}, {"presence": "visible"}),
        ({"presence": "visible", "description": "sound of a dog that is off camera"}, {"presence": "off_screen"}),
        ({"sounding": "false"}, {"sounding": False}),
        ({"sounding": "no"}, {"sounding": False}),
        ({"sounding": None}, {"sounding": True}),
        ({"sounding": 0}, {"sounding": True}),
        ({"sounding": True, "description": "the dog is silent"}, {"sounding": False}),
        ({"sounding": False, "description": "of the"}, {"sounding": False, "description": ""}),
        ({"prominence": 3}, {"prominence": ""}),
        ({"prominence": "loud"}, {"prominence": ""}),
        ({"prominence": "Ambient"}, {"prominence": "ambience"}),
        ({"description": ["sound"]}, {"description": ""}),
        ({"description": " ".join(f"woof {n * n}" for n in range(200))}, {}),
        ({"name": "The Dog \x00 2"}, {"concept": "dog"}),
    ],
)
def test_what_is_told_in_a_wrong_type_or_beyond_its_bounds_is_not_told(changes, is_told):
    concept = only(**changes)
    assert {key: getattr(concept, key) for key in is_told} == is_told
    assert len(concept.description) <= 200


@pytest.mark.parametrize(
    ("box", "shares"),
    [
        ([0, 0, 1000, 1000], (0.0, 0.0, 1.0, 1.0)),
        ([100, 200, 300, 400], (0.1, 0.2, 0.3, 0.4)),
        ([0.1, 0.2, 0.3, 0.4], (0.1, 0.2, 0.3, 0.4)),
        ([0, 0, 1, 1], (0.0, 0.0, 1.0, 1.0)),
        ([-20, 0, 1030, 500], (0.0, 0.0, 1.0, 0.5)),  # a little beyond the edge
        ([-20 - 1000 * OVERSHOOT, 0, 500, 500], ()),
        ([0, 0, 1280, 960], ()),  # pixels
        ([500, 0, 100, 900], ()),  # inverted
        ([0, 900, 100, 100], ()),
        ([500, 500, 500, 900], ()),  # nothing between
        (["0", "0", "10", "10"], ()),
        ([0, 0, 10], ()),
        ([0, 0, 10, 10, 10], ()),
        ([True, False, 10, 10], ()),
        ([0, 0, None, 10], ()),
        ([[0, 0], [10, 10]], ()),
        ({"x": 0, "y": 0}, ()),
        ("0 0 10 10", ()),
        ([0, 0, 10**400, 10], ()),
    ],
)
def test_a_box_lies_inside_the_image_or_is_not_told(box, shares):
    concept = only(box=box)
    assert concept.box == shares
    area = (shares[2] - shares[0]) * (shares[3] - shares[1]) if shares else 0.0
    assert concept.area == pytest.approx(area)


def test_numbers_that_json_does_not_have_are_not_told():
    answer = '{"caption": NaN, "concepts": [{"name": "dog", "confidence": NaN, "box": [0, -Infinity, 1e999, 3]}]}'
    assert parse_json(answer, 5) == Parsed(caption="", concepts=(Concept(concept="dog", description=""),))


def test_what_is_heard_and_what_is_not_have_room_of_their_own():
    heard = [told(f"{animal}") for animal in ("dog", "cat", "cow", "pig")]
    others = [told(f"{bird}", presence="implied") for bird in ("owl", "crow", "gull", "hen")]
    assert names(parse_json(told_json("x", *others, *heard), 2)) == ["owl", "crow", "dog", "cat"]
    assert names(parse_json(told_json("x", *heard), 2)) == ["dog", "cat"]


def test_a_name_twice_is_one_concept_and_the_one_that_is_heard_counts():
    far, near = told("dogs", "dogs howling", presence="off_screen"), told("a dog", "sound of a dog barking")
    for order in ((far, near), (near, far)):
        result = parse_json(told_json("x", *order), 5)
        assert isinstance(result, Parsed)
        assert [(c.presence, c.description) for c in result.concepts] == [("visible", "sound of a dog barking")]
    larger = told("dog", "", box=[0, 0, 1000, 1000], confidence=0.9) | {"description": ""}
    (dog,) = parse_json(told_json("x", near, larger), 5).concepts  # type: ignore[union-attr]
    assert (dog.area, dog.box, dog.confidence) == (1.0, (0.0, 0.0, 1.0, 1.0), 0.9)
    full = parse_json(told_json("x", told("owl", presence="implied"), told("cat"), told("owl")), 1)
    assert names(full) == ["owl", "cat"]
    assert [c.presence for c in full.concepts] == ["implied", "visible"]  # type: ignore[union-attr]


def test_a_description_that_loops_costs_its_concept_and_no_other():
    loop = told("cow", "moo and on and on " * 50)
    assert names(parse_json(told_json("x", loop, SAID_OF_DOG), 5)) == ["dog"]
    result = parse_json(told_json("x", loop), 5)
    assert isinstance(result, Unusable)
    assert result.reason is Reason.LOOPING


def test_ten_thousand_concepts_are_as_many_as_are_wanted():
    letters = string.ascii_lowercase
    many = [told(f"thing{letters[n % 26]}{letters[n // 26 % 26]}{letters[n // 676]}") for n in range(10_000)]
    assert len(names(parse_json(told_json("x", *many), 5))) == 5
    assert len(names(parse_json(told_json("x", *many), 100))) == 100
    assert MAX_TOLD < 10_000
    assert names(parse_json(told_json("x", *[SAID_OF_DOG] * 10_000), 5)) == ["dog"]


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (told_json("A wall."), Reason.NO_CONCEPTS),
        ('{"caption": "A wall.", "concepts": null}', Reason.NO_CONCEPTS),
        ("[]", Reason.NO_CONCEPTS),
        ("{}", Reason.NO_CONCEPTS),
        ("", Reason.EMPTY_ANSWER),
        (" \n", Reason.EMPTY_ANSWER),
        (told_json("I'm sorry, but I can't help with that."), Reason.REFUSAL),
        ("I'm sorry, but I can't help with that.", Reason.REFUSAL),
        (json.dumps(concepts_schema(5)), Reason.BAD_ANSWER),
        (concepts_prompt(5, "json"), Reason.BAD_ANSWER),
        (concepts_prompt(12, "json", "de").replace("\n", "\n\n").upper(), Reason.BAD_ANSWER),
        (told_json("x", told("狗", "狗在叫")), Reason.BAD_ANSWER),
        (told_json("x", told("dog", "le bruit d'un chien dans la rue et les oiseaux")), Reason.BAD_ANSWER),
        (told_json("x", told("dog", "sound of a dog barking while running in the grass")), Reason.BAD_ANSWER),
        (told_json("x", told("sounds", "of the image")), Reason.BAD_ANSWER),
        ("[" * 100_000, None),
        ('{"a":' * 50_000, None),
        ('{"concepts": [' + "[" * 500 + "]" * 500 + "]}", None),
        ("{" * 16_000, None),
        ('{"a": ' * 20 + ANSWER + "}" * 20, None),
        ('{"a": ' * 900 + "1" + "}" * 900, None),
        ('{"a": ' * 900 + ANSWER + "}" * 900, None),
        ('{"name": ' * 5_000, None),
        (f"<think>{ANSWER}", Reason.BAD_ANSWER),
    ],
    ids=lambda value: ascii(value)[:40],
)
def test_what_names_nothing_has_its_reason(answer, reason):
    result = parse_json(answer, 5)
    assert isinstance(result, Unusable), result
    assert reason is None or result.reason is reason
    assert len(result.detail) <= 80
    assert result.detail.isprintable()


def test_text_is_read_as_text():
    text = "caption: a dog on grass\ndog: sound of a dog barking (foreground)\nrain: rain falling (ambience)"
    assert parse_json(text, 5) == parse_concepts(text, 5)
    assert names(parse_json(json.dumps({"concepts": {"dog": "sound of a dog barking"}}), 5)) == ["dog"]
    assert names(parse_json(concepts_prompt(5, "json") + "\n" + text, 5)) == ["dog", "rain"]


def test_another_language_is_read_where_it_was_asked_for():
    said = told_json("一只狗。", told("狗", "狗在草地上叫的声音"), told("雨", "雨声"), told("狗", "又一只狗"))
    assert isinstance(parse_json(said, 5), Unusable)
    result = parse_json(said, 5, english=False)
    assert isinstance(result, Parsed)
    assert [(c.concept, c.description) for c in result.concepts] == [("狗", "狗在草地上叫的声音"), ("雨", "雨声")]
    german = told_json("Ein Hund.", told("Hund", "Geräusch von einem Hund, der auf der Wiese bellt und das ist laut"))
    assert isinstance(parse_json(german, 5), Unusable)
    assert names(parse_json(german, 5, english=False)) == ["hund"]


@pytest.mark.parametrize(
    "text",
    [
        "caption: Ein Hund auf der Wiese.\nHund: Geräusch von einem Hund, der bellt und das ist laut (foreground)",
        "caption: 一只狗。\n狗：狗在草地上叫的声音 (foreground)",
        "caption: Собака.\n- **Собака**: лай собаки на лугу (foreground)",
    ],
)
def test_another_language_in_plain_lines_is_read_where_it_was_asked_for(text):
    assert isinstance(parse_concepts(text, 5), Unusable)
    result = parse_concepts(text, 5, english=False)
    assert isinstance(result, Parsed)
    (concept,) = result.concepts
    assert concept.description
    assert concept.prominence == "foreground"


def test_what_a_grammar_made_of_the_schema_says_is_read_whole():
    schema = concepts_schema(3)
    said = held_to(schema, json.loads(ANSWER) | {"more": 1})
    assert list(said) == ["caption", "concepts"]
    assert names(parse_json(json.dumps(said), 5)) == ["dog", "seagull", "parked car"]
    assert len(held_to(schema, {"concepts": [SAID_OF_DOG] * 50})["concepts"]) == 6

    def is_strict(part):
        if part["type"] == "object":
            assert part["additionalProperties"] is False
            assert part["required"] == list(part["properties"])
        inner = [*part.get("properties", {}).values(), *([part["items"]] if "items" in part else [])]
        return 1 + sum(map(is_strict, inner))

    assert is_strict(schema) == 12


def assert_sound(result, max_concepts):
    """What holds of every result: nothing in it can break a table, a mix or a search."""
    if isinstance(result, Unusable):
        assert len(result.detail) <= 80
        assert result.detail.isprintable()
        return
    heard = [c for c in result.concepts if c.presence in ("", "visible") and c.sounding]
    assert len(result.concepts) > 0
    assert len(heard) <= max_concepts >= len(result.concepts) - len(heard)
    assert result.caption.isprintable()
    assert len(result.caption) <= 400
    for concept in result.concepts:
        assert 0 < len(concept.concept) <= 50
        assert len(concept.description) <= 200
        assert (concept.concept + concept.description).isprintable()
        assert concept.presence in ("", "visible", "implied", "off_screen")
        assert concept.prominence in ("", "foreground", "background", "ambience")
        assert 0.0 <= concept.area <= 1.0
        assert 0.0 <= concept.confidence <= 1.0
        assert len(concept.box) in (0, 4)
        for low, high in zip(concept.box[:2], concept.box[2:], strict=True):
            assert 0 <= low < high <= 1
    told_names = [concept.concept for concept in result.concepts]
    assert len(set(told_names)) == len(told_names)


LEAVES = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
    | st.sampled_from(("dog", "visible", "implied", "false", "sound of a dog", "\ud800", "狗", "foreground"))
)  # fmt: skip
KEYS = st.sampled_from((*SAID_OF_DOG, "caption", "concepts", "visible", "audible", "thinking", "type", "properties"))
ANY_JSON = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=5) | st.dictionaries(KEYS, inner, max_size=8), max_leaves=40
)


@settings(max_examples=300, deadline=None)
@given(ANY_JSON, st.integers(1, 6), st.booleans())
def test_any_json_is_read_without_an_error_and_within_bounds(value, max_concepts, english):
    result = parse_json(json.dumps(value), max_concepts, english=english)
    assert_sound(result, max_concepts)


@pytest.mark.parametrize("seed", range(40))
def test_a_damaged_answer_is_read_without_an_error_and_within_bounds(seed):
    draw = random.Random(seed)
    for _ in range(20):
        text = list(ANSWER)
        for _ in range(draw.randint(1, 8)):
            at = draw.randrange(len(text))
            text[at : at + draw.choice((0, 1, 1, 9))] = draw.choice([*'"{}[],:\\9-.', "\ud800", "\\ud800", ""])
        assert_sound(parse_json("".join(text), 5, finished=draw.random() < 0.5), 5)


def test_every_answer_of_the_corpus_is_read_in_the_json_form_too():
    cases = [case for path in SEEDED.glob("*.yaml") for case in yaml.safe_load(path.read_text(encoding="utf-8"))]
    assert len(cases) > 100
    for case in cases:
        assert_sound(parse_json(case["answer"], 5), 5)
