import csv
import shutil

import pytest

from sonify.errors import InputError
from sonify.media.audio import read_header
from sonify.sources.sounds import open_sound
from tests.fakes import write_tar
from tests.sources.recordings import audio_of, listed, put, real_recording

SEGMENTS = "eval_segments.head.original_form.csv"
# of the published list: each id with one of the ways in which its file is named
NAMED = {
    "--4gqARaEJE": "--4gqARaEJE.wav",
    "--BfvyPmVMo": "Y--BfvyPmVMo.wav",
    "-0BIyqJj9ZU": "-0BIyqJj9ZU_30.flac",
    "-0Gj8-vB1q4": "-0Gj8-vB1q4_30000_40000.flac",
    "-0RWZT-miFs": "eval/Y-0RWZT-miFs_420.000_430.000.flac",
    "-0CamVQdP_Y": "eval/-0CamVQdP_Y_000000.flac",
}


@pytest.fixture
def corpus(test_data, tmp_path):
    for name in ("class_labels_indices.csv", SEGMENTS):
        shutil.copy(test_data / "formats/audioset" / name, tmp_path / name)
    for number, file in enumerate(NAMED.values()):
        put(tmp_path / "audio" / file, real_recording(test_data, number, file.rpartition(".")[2]))
    return tmp_path


def source_of(corpus, segments=SEGMENTS, **settings):
    labels = corpus / "class_labels_indices.csv"
    return {
        "kind": "audioset",
        "path": corpus / "audio",
        "segments": corpus / segments,
        "labels": labels,
        **settings,
    }


def segment_rows(test_data):
    with (test_data / "formats/audioset" / SEGMENTS).open() as file:
        return [line for line in file if not line.startswith("#")]


def test_every_segment_is_listed_and_found_by_every_name_that_files_have(corpus, test_data):
    refs = listed(source_of(corpus))

    assert len(refs) == len(segment_rows(test_data)) == 57
    assert {ref.recording: ref.file for ref in refs.values() if not ref.refused} == {
        f"youtube/{youtube_id}": file for youtube_id, file in NAMED.items()
    }
    assert {ref.refused for ref in refs.values()} == {"", "missing"}


def test_labels_become_their_names_and_licence_and_attribution_reach_every_row(corpus):
    refs = listed(source_of(corpus))

    # "/m/068hy,/m/07q6cd_,/m/0bt9lr,/m/0jbk": one name has commas itself
    assert refs["--4gqARaEJE.wav"].text == "Domestic animals, pets, Squeak, Dog, Animal"
    assert refs["Y--BfvyPmVMo.wav"].text == "Hammer"
    for ref in refs.values():
        youtube_id = ref.recording.removeprefix("youtube/")
        assert ref.attribution == f"https://youtu.be/{youtube_id}"
        assert ref.licence == "YouTube (research only, no redistribution)"
        assert ref.text


def test_a_missing_segment_keeps_a_name_of_its_own_until_its_file_comes(corpus, test_data):
    before = listed(source_of(corpus))
    missing = next(ref for ref in before.values() if ref.refused)
    youtube_id = missing.recording.removeprefix("youtube/")

    put(corpus / "audio" / f"{youtube_id}.wav", real_recording(test_data, 9, "wav"))
    after = listed(source_of(corpus))

    assert missing.file.startswith(f"{youtube_id}_")
    assert set(after) - set(before) == {f"{youtube_id}.wav"}
    assert after[f"{youtube_id}.wav"].refused == ""


@pytest.mark.parametrize("head", ["", "YTID,start_seconds,end_seconds,positive_labels\n"])
def test_copies_without_the_comment_lines_say_the_same(corpus, test_data, head):
    (corpus / "copy.csv").write_text(head + "".join(segment_rows(test_data)))
    assert listed(source_of(corpus, "copy.csv")) == listed(source_of(corpus))


def test_copies_without_the_space_and_without_quotes_say_the_same(corpus, test_data):
    rows = list(csv.reader(segment_rows(test_data), skipinitialspace=True))
    (corpus / "tight.csv").write_text("".join(f'{",".join(row[:3])},"{row[3]}"\r\n' for row in rows))
    (corpus / "bare.csv").write_text("".join(",".join(row) + "\n" for row in rows))
    assert listed(source_of(corpus, "tight.csv")) == listed(source_of(corpus, "bare.csv")) == listed(source_of(corpus))


def test_two_segments_of_one_video_find_their_own_files(corpus, test_data):
    lines = [f'abc-_123456, {start}.000, {start + 10}.000, "/m/0jbk"\n' for start in (0, 30, 120)]
    (corpus / "two.csv").write_text("".join(lines))
    for start in (0, 30):
        put(corpus / "audio" / f"abc-_123456_{start}.flac", real_recording(test_data, start))

    refs = listed(source_of(corpus, "two.csv"))

    assert {file: ref.refused for file, ref in refs.items()} == {
        "abc-_123456_0.flac": "",
        "abc-_123456_30.flac": "",
        "abc-_123456_120000_130000": "missing",
    }


def test_sounds_in_archives_are_found_by_id_and_opened(corpus, test_data):
    shutil.rmtree(corpus / "audio")
    data = {n: real_recording(test_data, n) for n in range(2)}
    members = {"audio/eval/--4gqARaEJE.flac": data[0], "audio/eval/--BfvyPmVMo.flac": data[1]}
    write_tar(corpus / "audio" / "eval00.tar", members)

    refs = listed(source_of(corpus))

    sources = audio_of(source_of(corpus)).sources
    found = [ref for ref in refs.values() if not ref.refused]
    assert [ref.file for ref in found] == [f"eval00.tar/{name}" for name in members]
    assert [open_sound(sources, "audioset", ref.file) for ref in found] == list(data.values())
    assert read_header(open_sound(sources, "audioset", found[0].file)).container == "FLAC"


def test_a_line_that_is_no_segment_is_counted_and_the_others_stay(corpus):
    with (corpus / SEGMENTS).open("a") as file:
        file.write("short, 1, 2, /m/0jbk\n\n../../../etc, 0.000, 1.000, /m/0jbk\n-6JnAxTXAp_, soon, later, /m/0jbk\n")
    refs = listed(source_of(corpus))
    assert sorted(file for file, ref in refs.items() if ref.refused == "unreadable") == [
        f"{SEGMENTS}:{line}" for line in (61, 63, 64)
    ]
    assert len(refs) == 60


def test_no_segment_at_all_with_a_file_is_an_error_that_names_one(corpus):
    shutil.rmtree(corpus / "audio")
    (corpus / "audio").mkdir()
    with pytest.raises(InputError, match=r"none of the 57 .* expected files such as --4gqARaEJE\.wav"):
        listed(source_of(corpus))


def test_tables_that_are_something_else_are_named(corpus, test_data):
    wrong = source_of(corpus) | {"labels": test_data / "formats/esc50/esc50.csv"}
    with pytest.raises(InputError, match="expected AudioSet's class_labels_indices"):
        listed(wrong)
    (corpus / "other.csv").write_text("index,mid,display_name\n0,/m/xyz,Thing\n")
    with pytest.raises(InputError, match="has no name for any label"):
        listed(source_of(corpus) | {"labels": corpus / "other.csv"})
