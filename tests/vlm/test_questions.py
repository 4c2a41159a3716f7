import csv
import random
from collections import Counter
from hashlib import sha256
from importlib.resources import files

import pytest

from sonify.captions.ontology import match_sounds
from sonify.captions.words import tokenize
from sonify.rows import Concept, Reason
from sonify.vlm.answers import parse_concepts
from sonify.vlm.questions import (
    CHECK_VERSION,
    CONCEPTS_PROMPT,
    EXAMPLE_DESCRIPTION,
    EXAMPLE_NAME,
    FOILS,
    PROMPT_VERSION,
    check_question,
    concepts_prompt,
    foils_for,
    ordered_names,
)

NAMES = ("dog", "car", "church organ")


def named(*names):
    return [Concept(concept=name, description="") for name in names]


def test_the_prompt_asks_for_a_caption_and_for_as_many_concepts_as_are_wanted():
    prompt = concepts_prompt(7)
    assert prompt.index("caption:") < prompt.index("at most 7 lines") < prompt.index("name: description")
    assert "visible and present in the image" in prompt
    assert f"{EXAMPLE_NAME}: {EXAMPLE_DESCRIPTION}" in prompt
    assert "{" not in prompt


def test_the_prompt_is_short_enough_for_small_models():
    assert len(concepts_prompt(5).split()) < 140


def test_the_prompt_said_back_is_no_answer():
    for said in (concepts_prompt(5), concepts_prompt(12).replace("\n", "\n\n"), concepts_prompt(5).upper()):
        result = parse_concepts(said, 5)
        assert getattr(result, "reason", result) is Reason.BAD_ANSWER


def test_every_line_of_the_prompt_said_back_is_left_out_of_an_answer():
    for line in concepts_prompt(5).split("\n"):
        result = parse_concepts(f"{line}\ncat: sound of a cat meowing", 5)
        assert [concept.concept for concept in getattr(result, "concepts", ())] == ["cat"], line
        assert getattr(result, "caption", None) == "", line


def test_the_version_of_the_prompt_stands_for_its_words():
    # other words are another prompt: raise PROMPT_VERSION, and write both here
    assert (PROMPT_VERSION, sha256(CONCEPTS_PROMPT.encode()).hexdigest()[:8]) == (1, "4855e1a0")


def test_the_question_asks_for_the_medium_first_and_for_every_name_in_order():
    question = check_question(NAMES)
    assert 0 < question.index("medium") < question.index("dog, car, church organ") < question.index("visible yes")


def test_the_version_of_the_check_stands_for_its_words():
    # another question is another check: raise CHECK_VERSION, and write both here
    assert (CHECK_VERSION, sha256(check_question(("a", "b")).encode()).hexdigest()[:8]) == (1, "52db662d")


def test_foils_depend_on_the_key_and_the_seed_alone():
    concepts = named("dog", "car")
    assert foils_for(concepts, "a", 0) == foils_for(concepts, "a", 0)
    drawn = {foils_for(concepts, f"image{i}", 0) for i in range(50)}
    assert len(drawn) > 25
    assert [foils_for(concepts, f"image{i}", 1) for i in range(50)] != [
        foils_for(concepts, f"image{i}", 0) for i in range(50)
    ]


@pytest.mark.parametrize(
    ("concept", "related"),
    [
        ("puppy", {"lion", "rooster", "donkey", "pig", "crow", "turkey"}),
        ("hen", {"rooster", "turkey", "crow", "owl"}),
        ("acoustic guitar", {"harp", "accordion", "drum kit", "xylophone"}),
        ("bus", {"fire engine", "helicopter", "steam train", "race car"}),
        ("street piano", {"church organ", "harp"}),
        ("old telephone", {"telephone ringing"}),
    ],
)
def test_what_is_related_to_a_concept_is_never_its_foil(concept, related):
    drawn = {foil for i in range(300) for foil in foils_for(named(concept), f"image{i}", 0)}
    assert related <= set(FOILS)
    assert drawn.isdisjoint(related)
    assert len(drawn) > 10


def test_what_a_description_names_is_no_foil_either():
    concepts = [Concept(concept="worker", description="sound of a worker breaking concrete with a jackhammer")]
    drawn = {foil for i in range(300) for foil in foils_for(concepts, f"image{i}", 0)}
    assert "jackhammer" not in drawn


def test_two_foils_are_unlike_each_other_and_each_is_drawn():
    drawn = Counter()
    for i in range(1000):
        first, second = foils_for(named("river"), f"image{i}", 0)
        assert first != second
        assert {first, second} != {"harp", "accordion"}
        drawn.update((first, second))
    assert set(FOILS) - set(drawn) == {"waterfall"}


def test_foils_are_drawn_for_any_set_of_concepts():
    table = files("sonify.captions").joinpath("synonyms.csv").read_text(encoding="utf-8").splitlines()
    known = sorted({row["concept"] for row in csv.DictReader(table)} - {""})
    draw = random.Random(0)
    for count in (1, 5, 20):
        for i in range(50):
            names = draw.sample(known, count)
            foils = foils_for(named(*names), f"image{i}", 0)
            assert len({*foils, *names}) == count + 2
    assert len(set(foils_for(named(*FOILS), "all are taken", 0))) == 2


def test_every_foil_is_a_sound_that_the_ontology_knows():
    # a bird in the image must be able to keep an owl from being its foil
    assert [foil for foil in FOILS if not match_sounds(tokenize(foil))] == []
    assert len(FOILS) == len(set(FOILS)) >= 40


def test_the_order_of_names_is_of_the_key_and_puts_foils_anywhere():
    concepts, foils = ("dog", "car", "man"), ("gong", "owl")
    places = Counter()
    for i in range(200):
        names = ordered_names(concepts, foils, f"image{i}", 0)
        assert sorted(names) == sorted(concepts + foils)
        assert names == ordered_names(concepts[::-1], foils[::-1], f"image{i}", 0)
        places[names.index("owl")] += 1
    assert set(places) == set(range(5))
    assert min(places.values()) > 15
