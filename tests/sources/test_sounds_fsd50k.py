import csv
import json
import shutil

import pytest

from sonify.errors import InputError
from sonify.sources.sounds import open_sound
from tests.sources.recordings import audio_of, listed, put, real_recording

# as in the published clips info; the licence is a URL, and names hold what people type
ABOUT = {
    "title": 'Guitar "E"\n chord.wav',
    "description": "one chord",
    "tags": ["guitar"],
    "license": "http://creativecommons.org/licenses/by/3.0/",
    "uploader": "ueffects",
}


def rows_of(part, test_data):
    with (test_data / "formats/fsd50k" / f"{part}.head.reconstructed.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def corpus(test_data, tmp_path):
    (tmp_path / "FSD50K.ground_truth").mkdir()
    for part in ("dev", "eval"):
        published = test_data / "formats/fsd50k" / f"{part}.head.reconstructed.csv"
        shutil.copy(published, tmp_path / "FSD50K.ground_truth" / f"{part}.csv")
        names = [row["fname"] for row in rows_of(part, test_data)]
        about = dict.fromkeys(names[:-1], ABOUT)
        put(tmp_path / f"FSD50K.metadata/{part}_clips_info_FSD50K.json", json.dumps(about).encode())
        for number, name in enumerate(names[:-1]):
            put(tmp_path / f"FSD50K.{part}_audio/{name}.wav", real_recording(test_data, number, "wav"))
    return tmp_path


def source_of(corpus, **settings):
    return {"kind": "fsd50k", "path": corpus, **settings}


def test_the_development_part_is_listed_with_labels_from_leaf_to_root(corpus, test_data):
    refs = listed(source_of(corpus))

    assert len(refs) == len(rows_of("dev", test_data)) == 10
    ref = refs["FSD50K.dev_audio/64760.wav"]
    assert ref.text == "Electric guitar, Guitar, Plucked string instrument, Musical instrument, Music"
    assert ref.recording == "freesound/64760"
    assert all("dev_audio" in file for file in refs)


def test_licence_and_uploader_of_each_clip_come_from_the_clips_info(corpus):
    ref = listed(source_of(corpus))["FSD50K.dev_audio/64760.wav"]
    assert ref.licence == "http://creativecommons.org/licenses/by/3.0/"
    assert ref.attribution == 'Guitar "E" chord.wav by ueffects, https://freesound.org/s/64760/'


def test_a_clip_without_a_file_is_missing_and_one_without_info_says_so(corpus, test_data):
    last = rows_of("dev", test_data)[-1]["fname"]
    ref = listed(source_of(corpus))[f"FSD50K.dev_audio/{last}"]
    assert (ref.refused, ref.licence) == ("missing", "unknown")
    assert ref.attribution == f"unknown by unknown, https://freesound.org/s/{last}/"


@pytest.mark.parametrize(("part", "count"), [("eval", 2), ("both", 12)])
def test_the_evaluation_part_comes_only_where_it_is_asked_for(corpus, part, count):
    refs = listed(source_of(corpus, part=part))
    assert len(refs) == count
    assert "FSD50K.eval_audio/37199.wav" in refs


def test_a_clip_is_opened_by_its_path(corpus):
    sources = audio_of(source_of(corpus)).sources
    assert open_sound(sources, "fsd50k", "FSD50K.dev_audio/64760.wav") == corpus / "FSD50K.dev_audio/64760.wav"


def test_the_whole_published_collection_is_read(corpus, test_data):
    shutil.copy(test_data / "formats/fsd50k/collection_dev.csv", corpus / "FSD50K.ground_truth/dev.csv")
    refs = listed(source_of(corpus))
    assert len(refs) == 40_966
    assert sum(not ref.refused for ref in refs.values()) == 9
    assert all("_" not in ref.text for ref in refs.values())


@pytest.mark.parametrize(
    "lost", ["FSD50K.ground_truth/dev.csv", "FSD50K.metadata/dev_clips_info_FSD50K.json"], ids=["labels", "licences"]
)
def test_a_lost_table_is_an_error(corpus, lost):
    (corpus / lost).unlink()
    with pytest.raises(InputError, match=r"expected FSD50K's .*dev\.csv .*dev_clips_info_FSD50K\.json"):
        listed(source_of(corpus))


@pytest.mark.parametrize("data", [b"[1, 2]", b"{", b'{"64760": 7}'])
def test_clips_info_of_another_shape_is_an_error(corpus, data):
    (corpus / "FSD50K.metadata/dev_clips_info_FSD50K.json").write_bytes(data)
    with pytest.raises(InputError, match="expected FSD50K's"):
        listed(source_of(corpus))


def test_no_sound_at_all_is_an_error(corpus):
    shutil.rmtree(corpus / "FSD50K.dev_audio")
    with pytest.raises(InputError, match=r"none of the 10 .* such as FSD50K\.dev_audio/64760\.wav"):
        listed(source_of(corpus))
