import pytest

from sonify.vlm.looping import is_looping

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
