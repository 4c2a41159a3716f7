import csv
import random
import shutil
import sys

import numpy as np
import pytest

from sonify.captions.ontology import class_ids_by_name, load_ontology
from sonify.config import Tagger
from sonify.errors import InputError, WorkError
from sonify.features.taggers import (
    TfliteTagger,
    checked,
    cut_windows,
    fetch_tagger,
    find_class,
    load_tagger,
    match_labels,
)
from sonify.media.clips import cut_recording
from tests.builders import as_pcm, refused, tone, write_csv
from tests.servers import away_from_hub
from tests.tiny_networks import tiny_tagger


@pytest.fixture
def yamnet(test_data):
    folder = test_data / "weights" / "yamnet"
    return Tagger(kind="tagger", model=str(folder / "yamnet.tflite"), labels=folder / "yamnet_class_map.csv")


def with_(yamnet, **fields):
    return Tagger.model_validate(yamnet.model_dump() | {"labels": str(yamnet.labels)} | fields)


@pytest.mark.parametrize(
    ("name", "mid", "found"),
    [
        ("Dog", "", "Dog"),
        ("whatever", "/m/0bt9lr", "Dog"),
        ("Male speech, man speaking", "", "Male speech, man speaking"),
        ("man speaking", "", "Male speech, man speaking"),
        ("Livestock_farm_animals_working_animals", "", "Livestock, farm animals, working animals"),
        ("crying_baby", "", "Baby cry, infant cry"),  # as captions name it
        ("LABEL_17", "", None),
        ("", "", None),
        ("dog and cat", "", None),  # is not one
    ],
)
def test_labels_are_brought_to_the_ontology_by_id_or_name(name, mid, found):
    class_id = find_class(name, mid)
    assert (load_ontology()[class_id].name if class_id else None) == found


def test_every_name_of_the_ontology_is_found_as_itself():
    assert all(find_class(name) == class_id for name, class_id in class_ids_by_name().items())


def test_classes_that_are_none_are_told_once(caplog):
    labels = match_labels(("Dog", "one", "two", "three", "four", "five", "six"), ("",) * 7, "it")
    assert [bool(label.class_id) for label in labels] == [True, *[False] * 6]
    assert caplog.messages == ["it: 6 of its 7 classes are none of the ontology: one, two, three, four, five, ..."]


@pytest.mark.parametrize(
    ("length", "window", "hop", "expected"),
    [
        (10, 4, 2, [(0, 4), (2, 6), (4, 8), (6, 10)]),
        (11, 4, 2, [(0, 4), (2, 6), (4, 8), (6, 10)]),
        (11, 4, 4, [(0, 4), (4, 8), (8, 11)]),
        (9, 4, 4, [(0, 4), (4, 8)]),  # too little is left
        (3, 4, 2, [(0, 3)]),
        (1, 4, 4, [(0, 1)]),
    ],
)
def test_windows_cover_a_sound(length, window, hop, expected):
    pieces = cut_windows(np.arange(length), window, hop)
    assert [(piece[0], piece[-1] + 1) for piece in pieces] == expected


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -0.1, 1.5, 17.0])
def test_what_is_no_score_is_refused(wrong):
    scores = np.full((2, 3), 0.5, np.float32)
    assert np.array_equal(checked(scores), scores)
    scores[1, 2] = wrong
    with pytest.raises(WorkError, match=r"NaN or infinity|scores lie between 0 and 1"):
        checked(scores)


# --- the real YAMNet


def test_yamnet_hears_what_recordings_are(yamnet, test_data):
    tagger = load_tagger(yamnet)
    with (test_data / "sounds" / "metadata.csv").open(newline="") as file:
        rows = [(row["class"], row["file"]) for row in csv.DictReader(file)]
    hits = 0
    for kind, expected in (("dog", "Dog"), ("rain", "Rain"), ("siren", "Siren"), ("toilet_flush", "Toilet flush")):
        files = [test_data / "sounds" / name for its, name in rows if its == kind]
        sounds = [next(cut_recording(file, 16_000, 5.0)).samples for file in files]
        best = [np.argsort(-scores.max(0))[:4] for scores in tagger(sounds)]
        hits += sum(expected in {tagger.labels[n].name for n in some} for some in best)
    assert hits >= 28  # of 32
    assert len(tagger.labels) == 521
    assert all(label.class_id for label in tagger.labels)


def test_a_sound_is_scored_the_same_whatever_comes_before_it(yamnet):
    sounds = [as_pcm(tone(seed)) for seed in range(4)]
    tagger = load_tagger(yamnet)
    forth, back = list(tagger(sounds)), list(tagger(sounds[::-1]))[::-1]
    assert all(np.array_equal(one, other) for one, other in zip(forth, back, strict=True))
    assert forth[0].shape == (9, 521)
    assert next(iter(tagger([sounds[0][:1000]]))).shape == (1, 521)


def test_a_tagger_of_the_same_files_is_the_same_wherever_they_lie(yamnet, tmp_path):
    moved = shutil.copy(yamnet.model, tmp_path / "ear.tflite")
    (one,), (other,) = fetch_tagger(yamnet).values(), fetch_tagger(with_(yamnet, model=str(moved))).values()
    assert one == other


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "expected a CSV of index, mid and display_name"),
        ("index,mid\n0,/m/0bt9lr\n", "expected a CSV of index, mid and display_name"),
        ("index,mid,display_name\n0,/m/0bt9lr,Dog\n2,/m/01yrx,Cat\n", "numbered from 0"),
        ("index,mid,display_name\nx,/m/0bt9lr,Dog\n", "expected a CSV"),
        ("index,mid,display_name\n0,/m/0bt9lr,Dog\n", r"names 1 classes, and the model has outputs of \[1, 521\]"),
        ("index,mid,display_name\n0,a,qwx\n", "none of its 1 classes is one of AudioSet's"),
        ("\xff\xfe\x00", "expected a CSV"),
    ],
)
def test_a_class_map_that_is_none_is_named(yamnet, tmp_path, text, said):
    (tmp_path / "labels.csv").write_bytes(text.encode("latin-1"))
    with refused(said):
        load_tagger(with_(yamnet, labels=str(tmp_path / "labels.csv")))


def test_a_class_map_in_another_order_is_read_by_its_numbers(yamnet, tmp_path):
    with yamnet.labels.open(newline="") as file:
        rows = [(row["index"], row["mid"], row["display_name"]) for row in csv.DictReader(file)]
    random.Random(0).shuffle(rows)
    table = write_csv(tmp_path / "labels.csv", ("index", "mid", "display_name"), rows)
    assert load_tagger(with_(yamnet, labels=str(table))).labels == load_tagger(yamnet).labels


@pytest.mark.parametrize("size", [0, 10, 3000, 1_000_000])
def test_a_file_that_is_cut_short_is_named(yamnet, tmp_path, size):
    with open(yamnet.model, "rb") as whole:
        (tmp_path / "cut.tflite").write_bytes(whole.read()[:size])
    with refused(r"cut\.tflite: LiteRT cannot load it"):
        load_tagger(with_(yamnet, model=str(tmp_path / "cut.tflite")))


def test_a_file_that_is_not_there_is_named(yamnet):
    with refused(r"retrieval\.confirm\.model: no such file: /nowhere/ear\.tflite$"):
        load_tagger(with_(yamnet, model="/nowhere/ear.tflite"))


def test_another_kind_of_tflite_is_named(yamnet, test_data):
    eye = next((test_data / "weights" / "mobilenet_v2").glob("*.tflite"))
    with refused(r"expected one input, a window of float32 samples at 16 kHz"):
        load_tagger(with_(yamnet, model=str(eye)))


def test_without_the_library_one_line_says_how_to_get_it(yamnet, monkeypatch):
    monkeypatch.setitem(sys.modules, "ai_edge_litert", None)
    with refused(r"retrieval\.confirm\.model: the library ai_edge_litert is not installed: run .*tagger"):
        load_tagger(yamnet)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"labels": None}, "a .tflite file says no names: set `labels`"),
        ({"revision": "main"}, "has no revision and runs on a CPU"),
        ({"device": "cuda"}, "has no revision and runs on a CPU"),
        ({"model": "a/b"}, "says its names itself: leave `labels` out"),
        ({"floor": 0.001}, "greater than or equal to 0.01"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(yamnet, fields, said):
    with pytest.raises(ValueError, match=said):
        with_(yamnet, **fields)


# --- networks of transformers


def test_windows_of_a_long_clip_are_heard_each(tmp_path):
    folder = tiny_tagger(tmp_path / "short", ("Dog", "Cat"), max_length=128)  # 1.28 s
    tagger = load_tagger(Tagger(kind="tagger", model=str(folder), device="cpu"))
    sound = as_pcm(tone(0))
    (scores,) = tagger([sound])
    assert scores.shape == (4, 2)
    (first,) = tagger([sound[:20_480]])
    assert np.array_equal(scores[:1], first)
    assert not isinstance(tagger, TfliteTagger)


def test_a_model_that_tells_one_class_from_the_others_gives_shares(tmp_path):
    folder = tiny_tagger(tmp_path / "one", ("Dog", "Cat", "Rain"), problem_type="single_label_classification")
    (scores,) = load_tagger(Tagger(kind="tagger", model=str(folder), device="cpu"))([as_pcm(tone(0))])
    assert scores.sum() == pytest.approx(1, abs=1e-5)


def test_a_hub_id_that_is_not_here_is_named(monkeypatch, tmp_path):
    away_from_hub(monkeypatch, tmp_path)
    with pytest.raises(InputError, match=r"MIT/ast-finetuned.*not in the hub's cache"):
        fetch_tagger(Tagger(kind="tagger"))
