import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sonify.captions.kinds import load_kinds, places
from sonify.retrieval.encoders import query_of
from sonify.retrieval.kinds import DIMENSION, KindsEncoder, Query, are_one_sound, kind_of
from sonify.rows import Concept


def ask(concept):
    name, _, description = concept.partition(": ")
    return query_of(Concept(concept=name, description=description), "description")


def fits(concept, *clips):
    encoder = KindsEncoder()
    return (encoder.ask([ask(concept)]) @ encoder(clips).T)[0]


def best(concept, *clips):
    found = fits(concept, *clips)
    return clips[int(np.argmax(found))] if found.max() > 0.6 else None


@pytest.mark.parametrize(
    ("concept", "right", "wrong"),
    [
        ("wolfhound", "dog", "wolf howling"),
        ("dog barking", "dog", "cat"),
        ("billy goat bleating", "sheep", "cow"),
        ("minibus", "engine", "car horn"),
        ("cab: two angry honks at a crossing", "car horn", "engine"),
        ("cat in a restaurant: soft purr beside the cutlery", "cat", "dishes clattering"),
        ("audience in the stalls: loud applause for the soloist", "clapping", "singing"),
        ("caretaker: rapping on a door", "door knock", "drum"),
        ("tug: thudding diesel engine", "engine", "drum"),
        ("harbour at night: roar of waves against the mole", "sea waves", "lion roaring"),
        ("rusty gate: long creak", "creaking door", "car"),
        ("a jet engine", "airplane", "car horn"),
        ("sparrow", "chirping birds", "crow"),
        ("boat on a lake", "engine", "dog"),
        ("electric bell", "church bells", "dog"),
        ("field at dusk: crickets chirping", "crickets", "chirping birds"),
        ("police siren", "siren", "car"),
        ("creaking wood", "door wood creaks", "chopping wood"),
        ("wine glass: shattering into pieces", "glass breaking", "dishes clattering"),
        ("bath: a sudden gush of water", "pouring water", "rain"),
    ],
)
def test_what_it_is_and_does_finds_its_clip(concept, right, wrong):
    assert best(concept, wrong, right) == right


@pytest.mark.parametrize(
    ("concept", "clips"),
    [
        ("goose honking", ("car horn", "duck quacking")),  # a shared verb is not a shared kind
        ("rain forest orchestra", ("rain", "wind")),
        ("rain barrel", ("rain",)),  # a word before another thing says what that thing is for
        ("hippopotamus", ("dog", "insects", "frog")),  # one of the wild animals, and none of the others
        ("coffee machine", ("washing machine", "clock tick")),
        ("champagne glass: clinking", ("glass breaking",)),  # of one material, and another sound
        ("ram: bleating at a tractor near the stream", ("engine", "stream flowing")),
        ("elephant: trumpeting", ("trumpet",)),
        ("parrot: a creaking call", ("creak", "door creaks")),  # how it sounds, of something else
        ("thing: " + "word " * 250 + "dog", ("dog",)),
        ("xyzzy", ("dog", "rain")),
        ("", ("dog", "")),
        ("Regen auf dem Dach", ("rain", "roof")),
        ("сильный дождь", ("rain", "thunder")),
    ],
)
def test_what_the_pool_has_nothing_for_fits_nothing(concept, clips):
    assert best(concept, *clips) is None


def test_a_clip_of_the_class_above_fits_less_than_one_of_its_own():
    own, above, far = fits("dog barking", "dog barking", "dog", "animal")
    assert own == pytest.approx(1)
    assert own > above > far


def test_a_clip_that_tells_thing_and_sound_apart_is_first_of_the_sound():
    assert fits("creaking", "door wood creaks")[0] > fits("door", "door wood creaks")[0] > 0.5


def test_a_word_of_the_kinds_own_name_says_no_more_of_it():
    clips = ("alarm clock", "fire alarm", "siren", "car alarm")
    assert np.allclose(fits("bedroom: alarm going off", *clips)[:2], fits("alarm", *clips)[:2], atol=0.01)


def test_clips_of_no_known_kind_are_compared_by_words():
    same, part, other = fits("zorbing down a hill", "zorbing down a hill", "zorbing", "quizzing")
    assert same == pytest.approx(1)
    assert 0.3 < part < 0.8
    assert other == 0


def test_what_a_name_leads_into_is_where_it_is():
    assert np.allclose(fits("visitor at the church", "church bells"), 0)


def test_a_query_knows_a_bare_name_from_a_description():
    bare = query_of(Concept(concept="dog", description=""), "description")
    again = query_of(Concept(concept="dog", description="This is a sound of dog"), "description")
    told = query_of(Concept(concept="dog", description="a dog barks"), "description")
    by_name = query_of(Concept(concept="dog", description="a dog barks"), "concept")
    assert bare == again == by_name == Query(name="dog", text="This is a sound of dog", described=False)
    assert told == Query(name="dog", text="a dog barks", described=True)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("motorcycle engine", "engine revving", True),
        ("rain", "rain falling", True),
        ("puppy", "dog: loud barking", True),
        ("church bells", "bell tower", True),
        ("elephant", "monkey", False),  # both wild animals, which is no one sound
        ("dog", "cat", False),
        ("vehicle", "ambulance siren", False),
        ("zorbing", "zorbing", True),
        ("zorbing", "quidditch", False),
    ],
)
def test_two_names_of_one_sound(one, other, same):
    assert are_one_sound(ask(one), ask(other)) is same
    assert are_one_sound(ask(other), ask(one)) is same


TEXTS = st.text(max_size=80) | st.lists(
    st.sampled_from(["dog", "barking", "of", "rain", "on", "in", "wind", "door", "machine", "glass", "the", "ing"]),
    max_size=30,
).map(" ".join)


@given(TEXTS, TEXTS, TEXTS)
def test_any_text_gives_finite_rows(name, description, clip):
    encoder = KindsEncoder()
    rows = encoder.ask([Query(name, description, True), Query(name, description, False)])
    assert rows.shape == (2, DIMENSION)
    assert rows.dtype == np.float32
    assert np.all(np.isfinite(rows))
    assert rows[:, : len(places())].min() >= 0
    assert rows[:, : len(places())].max() <= 1
    assert np.linalg.norm(encoder([clip])[0]) == pytest.approx(1, abs=1e-5) or not encoder([clip]).any()


def test_a_very_long_concept_is_read_from_its_beginning():
    assert best("dog: barking " + "and a cat meowing " * 120, "cat", "dog") == "dog"
    assert best("word " * 400, "dog", "rain") is None


@pytest.mark.parametrize(
    ("name", "description", "expected"),
    [
        ("dog barking in the rain", "", "Bark"),
        ("dog barking in the rain", "a dog barks loudly in heavy rain", "Bark"),
        ("people talking in church", "", "Speech"),
        ("cat sitting on piano", "", "Cat"),
        ("knocking on a door", "", "Knock"),
        ("typing on a keyboard", "", "Computer keyboard"),
        ("music", "the sound of music playing on a stage", "Music"),
        ("music", "loud music of a band", "Music"),
    ],
)
def test_where_something_is_says_not_what_it_is(name, description, expected):
    query = query_of(Concept(concept=name, description=description), "description")
    assert load_kinds()[kind_of(query) or ""].name == expected
