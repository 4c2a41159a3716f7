import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sonify.vlm.repair import is_looping, json_values

ANSWER = (
    "caption: A tram stops at a station while people wait.\n"
    "tram: sound of a tram braking on steel rails (foreground)\n"
    "people: sound of people talking at a station (background)\n"
    "doors: sound of doors sliding open (foreground)\n"
    "wind: sound of wind blowing over a platform (ambience)\n"
)


@pytest.mark.parametrize(
    "text",
    [
        "dog " * 16,
        "the dog and the cat and " * 4,
        "".join(f"{i}. The dog barks.\n" for i in range(1, 7)),
        ANSWER * 4,
        ANSWER + "tram: sound of a tram braking\n" * 4,
        "dog: sound of a dog. " * 5 + "I hope that this helps you with your work today!",
        "!" * 64,
        "狗叫声" * 22,
        "ab" * 40,
        "".join(f"the dog {word} and the dog and the dog and " for word in ("barks", "runs", "sits", "eats")) * 12,
    ],
)
def test_what_is_said_again_and_again_is_a_loop(text):
    assert is_looping(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "dog",
        ANSWER,
        ANSWER * 3,
        "dog dog dog",
        "woof woof woof woof",
        "tram: sound\n" + "-" * 300,
        "| a |" + " " * 300 + "| b |",
        "".join(
            f"{word}: sound of a {word} (foreground)\n"
            for word in ("dog", "cat", "cow", "pig", "hen", "owl", "ram", "ewe")
        ),
        "".join(f'{{"bbox_2d": [{i}, 4, {9 * i}, 80], "label": "person"}},\n' for i in range(30)),
    ],
)
def test_an_ordinary_answer_is_no_loop(text):
    assert not is_looping(text)


TEXTS = st.text(st.characters(exclude_categories=("Cs",)), max_size=12)
VALUES = st.recursive(
    st.none() | st.booleans() | st.floats(-1000, 1000).map(lambda x: round(x, 3)) | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=10,
)


@given(st.dictionaries(TEXTS, VALUES, min_size=1, max_size=4))
def test_json_is_read_as_json_is(value):
    for indent in (None, 2):
        assert list(json_values(json.dumps(value, indent=indent))) == [json.loads(json.dumps(value))]


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("{'a': 'it\\'s', 'b': 'it's', 'c': None,}", [{"a": "it's", "b": "it's", "c": None}]),
        ("[{a: True}, {b: (1, 2.5)},]", [[{"a": True}, {"b": [1.0, 2.5]}]]),
        ('first {"a": 1} then {"b": 2} [not this]', [{"a": 1.0}, {"b": 2.0}]),
        ('{"a": "line\nbreak \\q"}', [{"a": "line\nbreak q"}]),
        ('[{"a": "b"}, {"c": "cut', [[{"a": "b"}, {}]]),
        ('{"a": [1, 2', [{"a": [1.0, 2.0]}]),
        ('{"a": "b", "c"', [{"a": "b"}]),
        ('{"a": , "b": "c"}', [{"b": "c"}]),
        ("[]", [[]]),
        ("no brackets at all", []),
        ("dog [a kind of animal]: barks (loudly)", []),
    ],
)
def test_what_models_write_for_json_is_read_too(text, values):
    assert list(json_values(text)) == values


@given(st.text(alphabet="{}[]()'\":,\\ a1\n", max_size=60))
def test_any_text_is_read_without_an_error(text):
    assert all(isinstance(value, dict | list) for value in json_values(text))
