import csv
import random
from collections import Counter
from hashlib import sha256
from importlib.resources import files
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from sonify.captions.sounds import match_sounds
from sonify.captions.words import tokenize
from sonify.rows import Concept, Reason, Verdict
from sonify.vlm.checking import (
    CHECK_VERSION,
    Check,
    check_question,
    ordered_names,
    parse_check,
)
from sonify.vlm.cleaning import Unusable
from sonify.vlm.foils import FOILS, foils_for

NAMES = ("dog", "car", "church organ")
CASES = yaml.safe_load((Path(__file__).parent / "answers" / "checks.yaml").read_text(encoding="utf-8"))


def named(*names):
    return [Concept(concept=name, description="") for name in names]


@pytest.mark.parametrize("case", CASES, ids=[case["id"] for case in CASES])
def test_answers_mean_what_the_corpus_says(case):
    result = parse_check(case["answer"], NAMES)
    if "reason" in case:
        assert isinstance(result, Unusable), result
        assert result.reason == Reason(case["reason"])
        return
    assert isinstance(result, Check), result
    assert result.medium == case["medium"]
    said = ["".join("ny"[word] for word in (v.visible, v.real, v.sounding)) for v in result.verdicts]
    assert said == case["told"]
    assert [verdict.concept for verdict in result.verdicts] == list(NAMES)
    assert [verdict.confirmed for verdict in result.verdicts] == [told == "yyy" for told in case["told"]]


@given(
    st.lists(st.sampled_from(FOILS), min_size=1, max_size=7, unique=True).flatmap(
        lambda names: st.tuples(
            st.just(names),
            st.lists(st.tuples(st.booleans(), st.booleans(), st.booleans()), min_size=len(names), max_size=len(names)),
        )
    ),
    st.sampled_from(("photo", "drawing", "statue", "logo", "screen", "other")),
)
def test_an_answer_in_the_asked_form_is_read_as_it_stands(said, medium):
    names, told = said
    lines = [f"medium: {medium}"]
    for name, three in zip(names, told, strict=True):
        visible, real, sounding = ("yes" if yes else "no" for yes in three)
        lines.append(f"{name}: visible {visible}, real {real}, sounding {sounding}")
    expected = tuple(
        Verdict(concept=name, visible=visible, real=real, sounding=sounding)
        for name, (visible, real, sounding) in zip(names, told, strict=True)
    )
    assert parse_check("\n".join(lines), names) == Check(medium=medium, verdicts=expected)


@given(st.text(max_size=300), st.lists(st.text(max_size=20), max_size=4))
def test_any_text_and_any_names_are_read_without_an_error(answer, names):
    result = parse_check(answer, names)
    assert isinstance(result, Unusable) or [verdict.concept for verdict in result.verdicts] == names


def test_the_question_said_back_confirms_nothing():
    result = parse_check(check_question(NAMES), NAMES)
    assert isinstance(result, Unusable)
    assert result.reason is Reason.BAD_ANSWER


def test_the_question_asks_for_the_medium_first_and_for_every_name_in_order():
    question = check_question(NAMES)
    assert 0 < question.index("medium") < question.index("dog, car, church organ") < question.index("visible yes")


def test_the_version_stands_for_these_words():
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
