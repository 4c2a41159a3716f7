import csv

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sonify.captions.ontology import (
    AMBIENCE,
    class_ids_by_name,
    find_sounds,
    load_ontology,
    load_patterns,
    names_ambience,
)

# what each ESC-50 class is called by the extractor, for the classes that the photographs show
CALLED = {
    "airplane": {"airplane flying"}, "cat": {"cat meowing"}, "chainsaw": {"chainsaw"},
    "chirping_birds": {"bird chirping", "parrot squawking"}, "church_bells": {"church bells", "chime"},
    "clock_tick": {"clock ticking"}, "cow": {"cow mooing"}, "crackling_fire": {"fire crackling"},
    "dog": {"dog barking"}, "frog": {"frog croaking"}, "hen": {"hen clucking"},
    "insects": {"insects buzzing", "bee buzzing"}, "keyboard_typing": {"keyboard typing"}, "pig": {"pig oinking"},
    "rain": {"rain falling"}, "rooster": {"rooster crowing"}, "sea_waves": {"sea waves"},
    "sheep": {"sheep bleating"}, "siren": {"siren", "ambulance siren", "police siren"},
    "toilet_flush": {"toilet flushing"}, "train": {"train passing"}, "vacuum_cleaner": {"vacuum cleaner"},
    "washing_machine": {"washing machine"},
}  # fmt: skip


def named(name):
    return load_ontology()[class_ids_by_name()[name]]


def test_the_whole_ontology_is_there():
    ontology = load_ontology()
    assert len(ontology) == 632
    assert len(class_ids_by_name()) == 632


def test_ancestors_follow_every_parent():
    bark = named("Bark")
    above = {load_ontology()[class_id].name: steps for class_id, steps in bark.distances.items()}
    assert above["Bark"] == 0
    assert above["Dog"] == 1
    assert above["Animal"] == 3
    ambulance = {load_ontology()[class_id].name for class_id in named("Ambulance (siren)").distances}
    assert {"Siren", "Emergency vehicle"} <= ambulance


def test_groups_are_abstract():
    assert named("Human sounds").abstract
    assert not named("Dog").abstract
    assert named("Waves, surf").alternatives == ("waves", "surf")


def found(caption):
    return [concept.concept for concept in find_sounds(caption)]


@pytest.mark.parametrize(
    ("caption", "sounds"),
    [
        ("A puppy sleeps", ["dog barking"]),
        ("Two dogs barking at the mailman", ["dog barking"]),
        ("a kitten and a hound", ["cat meowing", "dog barking"]),
        ("church bells ringing over the village", ["church bells"]),
        ("women applauding", ["applause"]),
        ("waves crashed on the beach", ["sea waves"]),
        ("a busy street with buses and taxis", ["traffic", "bus", "car passing by"]),
        ("a man plays the acoustic guitar", ["acoustic guitar"]),
        ("an ambulance with its siren on", ["ambulance siren"]),
        ("a grey brick wall", []),
        ("", []),
    ],
)
def test_sounds_are_found_by_name_synonym_and_inflection(caption, sounds):
    assert found(caption) == sounds


@pytest.mark.parametrize(
    "caption",
    [
        "a hot dog with mustard", "the catwalk", "a bird's-eye view", "his train of thought", "a caterpillar",
        "a dog-eared book", "a training session", "a boy waves goodbye", "a plate of french fries", "fried chicken",
        "a toy train", "scarlet carpet", "the engineer's design", "a teddy bear",
    ],
)  # fmt: skip
def test_words_that_only_look_like_a_sound_are_left_alone(caption):
    assert found(caption) == []


def test_the_specific_sound_beats_its_ancestor():
    assert found("a dog, purring cat and a bee among insects") == ["dog barking", "cat purring", "bee buzzing"]


def test_each_sound_comes_once_and_in_the_captions_order():
    assert found("rain, thunder, more rain and a dog") == ["rain falling", "thunderstorm", "dog barking"]


@given(st.text(max_size=400))
def test_any_text_is_answered(caption):
    assert all(concept.concept for concept in find_sounds(caption))


def test_the_table_names_only_classes_that_exist_and_can_sound():
    assert len(load_patterns()) > 1500
    for phrases in load_patterns().values():
        for match in phrases.values():
            assert match is None or match.class_id in class_ids_by_name().values()


def test_precision_and_recall_on_real_photographs(test_data):
    with (test_data / "photos/captions.csv").open() as file:
        captions = {row["file"]: row["caption"] for row in csv.DictReader(file)}
    with (test_data / "photos/sound_class.csv").open() as file:
        classes = {row["file"]: row["sound_class"] for row in csv.DictReader(file)}
    extracted = {file: set(found(captions[file])) for file in classes}
    recalled = sum(bool(extracted[file] & CALLED[classes[file]]) for file in classes)
    right = sum(len(extracted[file] & CALLED[classes[file]]) for file in classes)
    assert recalled / len(classes) >= 0.98
    assert right / sum(map(len, extracted.values())) >= 0.9


@pytest.mark.parametrize(
    "text", ["rain", "wind", "sea waves", "a river", "traffic", "crowd", "fire", "thunder", "crickets"]
)
def test_what_surrounds_is_told_by_its_kind(text):
    assert names_ambience(text)


@pytest.mark.parametrize("text", ["dog", "dog barking in the rain", "hiss", "radio", "applause", "xyzzy", ""])
def test_what_happens_is_not_ambience(text):
    assert not names_ambience(text)


def test_every_kind_of_ambience_is_in_the_ontology():
    assert set(AMBIENCE) <= set(class_ids_by_name())
