import csv
from pathlib import Path

import numpy as np
import pytest

import sonify.captions
from sonify.captions.kinds import are_related, breadth, find_kinds, is_event, likeness, load_kinds, load_roles, places
from sonify.captions.ontology import class_ids_by_name
from sonify.captions.words import tokenize


def named(text):
    return [load_kinds()[mention.kind].name for mention in find_kinds(tokenize(text))]


def fit(asked, heard):
    by_name = class_ids_by_name()
    return likeness()[places()[by_name[asked]], places()[by_name[heard]]]


@pytest.mark.parametrize(
    ("text", "kinds"),
    [
        ("two eiders", ["Duck"]),
        ("a cocker spaniel", ["Dog"]),
        ("a sloop", ["Sailboat, sailing ship"]),
        ("horse flies", ["Fly, housefly"]),
        ("a bassoon beside a viola", ["Bassoon", "Violin, fiddle"]),
        ("a hot dog", []),  # our table's words go before WordNet's
        ("the seminar was above average", []),
        ("washing machine and conveyor belt", ["washing machine", "machine"]),  # what our table tells apart
    ],
)
def test_words_are_known_by_their_kind(text, kinds):
    assert named(text) == kinds


def test_a_word_below_a_class_is_told_from_the_class_itself():
    assert [mention.below for mention in find_kinds(["mallards", "ducks"])] == [True, False]


def test_people_and_places_are_told_apart():
    roles = load_roles()
    assert (roles["plumber"], roles["plumbers"], roles["meadow"]) == ("person", "person", "place")
    assert "spaniel" not in roles


def test_a_kind_fits_what_is_above_it_and_little_the_other_way():
    assert fit("Dog", "Dog") == 1
    assert fit("Dog", "Bark") > 0.9
    assert 0.5 < fit("Bark", "Dog") < fit("Dog", "Bark")
    assert fit("Animal", "Bark") < 0.6  # one of very many
    assert fit("Dog", "Animal") < 0.2
    assert fit("Goose", "Vehicle horn, car horn, honking") == 0


def test_kinds_that_share_their_sounds_or_their_mechanism_are_alike():
    assert fit("Goat", "Sheep") == pytest.approx(0.8)  # both bleat, and do nothing else
    assert 0 < fit("Dog", "Cat") < 0.2  # of eleven sounds they share one
    assert fit("Truck", "Engine") == pytest.approx(0.8)
    assert fit("Vehicle horn, car horn, honking", "Engine") == 0
    assert fit("Ambulance (siren)", "Siren") > 0.8  # its name says which of its parents it is


def test_likeness_is_a_share_and_relation_goes_both_ways():
    found = likeness()
    assert found.shape == (len(load_kinds()),) * 2
    assert found.min() == 0
    assert found.max() == 1
    assert np.all(np.diag(found) == 1)
    by_name = class_ids_by_name()
    dog, bark, cow = by_name["Dog"], by_name["Bark"], by_name["Moo"]
    assert are_related(dog, bark)
    assert are_related(bark, dog)
    assert not are_related(dog, cow)


def test_sounds_of_many_things_are_events():
    by_name = class_ids_by_name()
    assert all(is_event(by_name[name]) for name in ("Buzz", "Howl", "Creak"))
    assert not any(is_event(by_name[name]) for name in ("Bark", "Choir", "Church bell", "Engine"))


def test_breadth_counts_a_kind_and_all_below_it():
    by_name = class_ids_by_name()
    assert breadth()[by_name["Bark"]] == 1
    assert breadth()[by_name["Wind"]] == 4


def test_the_tables_name_classes_of_the_ontology():
    folder = Path(sonify.captions.__file__).parent
    with (folder / "kinds.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["class"] for row in rows} <= {*class_ids_by_name(), "person", "place"}
    assert len({row["class"] for row in rows}) == len(rows)
    assert (folder / "kinds.csv").stat().st_size < 500_000
    with (folder / "likeness.csv").open(newline="") as file:
        likes = [(row["class"], row["like"]) for row in csv.DictReader(file)]
    assert {name for pair in likes for name in pair} <= class_ids_by_name().keys()
    assert len(set(likes)) == len(likes)
