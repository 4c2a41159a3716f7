import random
import re
import time
from itertools import islice
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from sonify.rows import Concept, Reason
from sonify.vlm.answers import Parsed, parse_concepts
from sonify.vlm.repair import Unusable

FOLDER = Path(__file__).parent / "answers"


def load(style):
    return [(style, case) for case in yaml.safe_load((FOLDER / f"{style}.yaml").read_text(encoding="utf-8"))]


CORPUS = [case for style in ("llava", "cogvlm", "qwen", "small", "adversarial") for case in load(style)]


@pytest.mark.parametrize(("style", "case"), CORPUS, ids=[f"{style}: {case['id']}" for style, case in CORPUS])
def test_answers_mean_what_the_corpus_says(style, case):
    size = tuple(case["size"]) if "size" in case else None
    result = parse_concepts(case["answer"], 5, size)
    if "reason" in case:
        assert isinstance(result, Unusable), result
        assert result.reason == Reason(case["reason"])
        assert len(result.detail) <= 80
        return
    assert isinstance(result, Parsed), result
    assert result.caption == case["caption"]
    assert [rounded(concept) for concept in result.concepts] == [Concept(**concept) for concept in case["concepts"]]


def rounded(concept):
    return Concept(
        concept=concept.concept,
        description=concept.description,
        prominence=concept.prominence,
        area=round(concept.area, 6),
    )


def test_the_corpus_is_as_wide_as_it_should_be():
    counts = {style: sum(own == style for own, _ in CORPUS) for style, _ in CORPUS}
    assert sum(counts.values()) - counts["adversarial"] >= 60
    assert counts["adversarial"] >= 15
    assert min(counts.values()) >= 15


CAPTION = "A farmer feeds his animals beside a road."
CONCEPTS = (
    Concept(concept="brown cow", description="sound of a cow mooing", prominence="foreground"),
    Concept(concept="tractor", description="sound of a diesel engine idling", prominence="background"),
    Concept(concept="wind", description="sound of wind in the trees", prominence="ambience"),
)
FORMS = {
    "asked": "{c}: {d} ({p})",
    "title": "{C}: {d} ({p})",
    "bullets": "- {c}: {d} ({p})",
    "stars": "* **{C}**: {d} ({p})",
    "stars around the colon": "* **{C}:** {d} *({p})*",
    "numbers": "{i}. {c}: {d} ({p}).",
    "bold numbers": "**{i}. {C}**: {d} ({p})",
    "brackets": "{i}) {c} - {d} [{p}]",
    "dash": "- {c} — {d} — {p}",
    "article": "The {c}: {d}, {p}",
    "table": "| {C} | {d} | {p} |",
    "headings": "### {i}. {C}\n- Description: {d}\n- Prominence: {p}",
    "fields": "Name: {c}\nDescription: {d}\nProminence: {p}\n",
    "quoted": '"{c}": "{d} ({p})",',
    "spaced": "   {c} :   {d}   (in the {p})   ",
    "name first": "{c} ({p}): {d}",
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "heading", ["", "**Concepts:**\n", "Here are the sounding concepts:\n\n", "## Sounds in the image\n"]
)
def test_the_same_is_read_from_every_form(form, heading):
    lines = [
        FORMS[form].format(i=i, c=c.concept, C=c.concept.title(), d=c.description, p=c.prominence)
        for i, c in enumerate(CONCEPTS, 1)
    ]
    answer = f"Caption: {CAPTION}\n\n{heading}" + "\n".join(lines)
    assert parse_concepts(answer, 5) == Parsed(caption=CAPTION, concepts=CONCEPTS)


@pytest.mark.parametrize("form", FORMS)
def test_an_answer_that_is_cut_anywhere_gives_what_was_said_before(form):
    lines = [
        FORMS[form].format(i=i, c=c.concept, C=c.concept.title(), d=c.description, p=c.prominence)
        for i, c in enumerate(CONCEPTS, 1)
    ]
    answer = f"Caption: {CAPTION}\n" + "\n".join(lines)
    most = 0
    for end in range(answer.index(CAPTION) + len(CAPTION), len(answer)):
        if answer[end - 1].isalnum() and answer[end].isalnum():  # tokens are words, or nearly
            continue
        result = parse_concepts(answer[:end], 5)
        concepts = result.concepts if isinstance(result, Parsed) else ()
        assert [c.concept for c in concepts[:-1]] == [c.concept for c in CONCEPTS[: len(concepts)]][:-1]
        for concept, whole in zip(concepts, CONCEPTS, strict=False):
            # without a description, a name may be cut; a prominence that is cut stays with the description
            assert whole.concept.startswith(concept.concept)
            assert concept.concept == whole.concept or not concept.description
            assert whole.description.startswith(re.split(",| —", concept.description)[0])
        most = max(most, len(concepts))
    assert most == len(CONCEPTS)


NAMES = ("dog", "police car", "woman", "church bell", "bus", "children", "river", "wolf")
SOUNDS = ("sound of rain on a roof", "loud barking", "people talk in a hall", "engine of a truck idling", "it squeaks")


@given(
    st.lists(st.sampled_from(NAMES), min_size=1, max_size=8, unique=True),
    st.lists(
        st.tuples(st.sampled_from(SOUNDS), st.sampled_from(("", "foreground", "ambience"))), min_size=8, max_size=8
    ),
    st.integers(1, 8),
)
def test_an_answer_in_the_asked_form_is_read_as_it_stands(names, told, max_concepts):
    concepts = tuple(
        Concept(concept=name, description=sound, prominence=prominence)
        for name, (sound, prominence) in zip(names, told, strict=False)
    )
    lines = [f"{c.concept}: {c.description}" + f" ({c.prominence})" * bool(c.prominence) for c in concepts]
    result = parse_concepts("\n".join([f"caption: {CAPTION}", *lines]), max_concepts)
    assert result == Parsed(caption=CAPTION, concepts=concepts[:max_concepts])


def assert_sound(result, max_concepts):
    """What holds of every result: nothing in it can break a table, a prompt or a search."""
    if isinstance(result, Unusable):
        assert len(result.detail) <= 80
        assert result.detail.isprintable()
        return
    assert 0 < len(result.concepts) <= max_concepts
    assert len(result.caption) <= 400
    assert result.caption.isprintable()
    for concept in result.concepts:
        assert 0 < len(concept.concept) <= 50
        assert len(concept.concept.split()) <= 5
        assert concept.concept == concept.concept.strip().lower()
        assert len(concept.description) <= 200
        assert (concept.concept + concept.description).isprintable()
        assert concept.prominence in ("", "foreground", "background", "ambience")
        assert 0.0 <= concept.area <= 1.0
    names = [concept.concept for concept in result.concepts]
    assert len(set(names)) == len(names)


PIECES = st.sampled_from([
    "caption: ", "dog", "A cat", ": ", " - ", "\n", "- ", "1. ", "**", "|", "{", "}", "[", "]", '"', "'", ",", "name",
    "(", ")", "sound of a dog barking", "foreground", "none", "silent", "<think>", "</think>", "</s>", "ASSISTANT:",
    "USER:", "\x00", "；", "狗", "description", "bbox_2d", "0.5", "10", ";", "```json", "```", "I'm sorry", "\u202e",
    "\ud800", "e\u0301",
])  # fmt: skip


@settings(max_examples=400)
@given(st.lists(PIECES, max_size=40).map("".join) | st.text(max_size=400), st.integers(1, 6))
def test_any_text_is_read_without_an_error_and_within_bounds(answer, max_concepts):
    result = parse_concepts(answer, max_concepts, (640, 480))
    assert_sound(result, max_concepts)
    assert parse_concepts(answer, max_concepts, (640, 480)) == result


MEGABYTE = 1_000_000
REPEATED = [
    "a", "dog ", "\n", "- ", "1. ", "**", "_", "`", "#", "|", "| a ", "{", "[", "(", '"', "'", "['a", "{'a': ", '["a"',
    ":", "a: ", "dog: sound of a dog\n", "<", "<|", "<|im_start|>", "</s>", "<think>", "</think>", "[[1,2", "[[",
    "<box>", "\x00", "\t", "\r", " ", "\u200b", "\u0301", "\u0327\u0301", "\ufdfa", "狗", "🐕", "(foreground) ",
    "(foreground, ", "; ", "a; ", ". A ", "no ", "no sound ", "USER:", "ASSISTANT:\n", "\\", '"\\', "\ud800", "=",
    "->", "http://", " - ", "caption: ", "1) a 2) b ", "(a", "[ ] ",
]  # fmt: skip


SIZE = 15_900  # what is longer is refused unread


def cpu_sec(answer):
    begin = time.process_time()
    parse_concepts(answer, 5, (640, 480))
    return time.process_time() - begin


@pytest.fixture(scope="module")
def most_sec():
    """Ten times what an ordinary answer of the same length costs here: reading backwards costs a thousand times."""
    ordinary = "".join(f"thing {i}: sound of {i * i} things {chr(97 + i % 26)}\n" for i in range(SIZE))[:SIZE]
    return 10 * min(cpu_sec(ordinary) for _ in range(5))


@pytest.mark.parametrize("piece", REPEATED, ids=ascii)
def test_a_megabyte_of_one_thing_is_refused_unread(piece, most_sec):
    answer = (piece * (MEGABYTE // len(piece) + 1))[:MEGABYTE]
    result = parse_concepts(answer, 5, (640, 480))
    assert isinstance(result, Unusable)
    assert result.reason in (Reason.EMPTY_ANSWER, Reason.LOOPING, Reason.BAD_ANSWER)
    assert cpu_sec(answer) < most_sec


@pytest.mark.parametrize("piece", REPEATED, ids=ascii)
def test_nothing_backtracks_where_a_thing_repeats_but_does_not_loop(piece, most_sec):
    draw = random.Random(0)
    pieces = (piece * draw.randint(1, 9) + draw.choice(["x y ", "q:", "\n", "(", '"k', str(i)]) for i in range(SIZE))
    answer = "".join(islice(pieces, SIZE // len(piece) // 4))[:SIZE]
    assert_sound(parse_concepts(answer, 5, (640, 480)), 5)
    assert cpu_sec(answer) < most_sec


def test_half_a_surrogate_pair_that_an_escape_says_is_left_out():
    result = parse_concepts('{"caption": "a \\ud800 dog", "dog": "sound of a dog \\udfff barking"}', 5)
    dog = Concept(concept="dog", description="sound of a dog barking")
    assert result == Parsed(caption="a dog", concepts=(dog,))


def test_what_stands_before_a_loop_is_not_kept():
    answer = "caption: A dog.\ncat: sound of a cat purring\n" + "dog: sound of a dog barking\n" * 30
    result = parse_concepts(answer, 5)
    assert isinstance(result, Unusable)
    assert result.reason is Reason.LOOPING


def test_a_long_thought_before_the_answer_costs_the_answer_nothing():
    thought = " ".join(f"Perhaps the {i}th thing sounds like thing {i * i}." for i in range(20_000))
    result = parse_concepts(f"<think>{thought}</think>\ncat: sound of a cat purring", 5)
    assert result == Parsed(caption="", concepts=(Concept(concept="cat", description="sound of a cat purring"),))


def test_an_answer_that_goes_on_for_ever_without_a_loop_is_no_answer():
    answer = "".join(f"thing {chr(97 + i % 26)}{i}: sound of {i * i} things\n" for i in range(5_000))
    result = parse_concepts(answer, 5)
    assert isinstance(result, Unusable)
    assert result.reason is Reason.BAD_ANSWER
