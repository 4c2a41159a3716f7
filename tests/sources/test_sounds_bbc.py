import csv
import io
import shutil

import pytest

from sonify.errors import InputError
from tests.sources.recordings import listed, put, real_recording

TABLE = "BBCSoundEffects.csv"


@pytest.fixture
def corpus(test_data, tmp_path):
    shutil.copy(test_data / "formats/bbc" / TABLE, tmp_path / TABLE)
    put(tmp_path / "07076051.wav", real_recording(test_data, 0, "wav"))
    put(tmp_path / "more" / "07076050.WAV", real_recording(test_data, 1, "wav"))
    return tmp_path


def source_of(corpus, **settings):
    return {"kind": "bbc", "path": corpus, **settings}


def test_the_published_table_is_read_whole(corpus):
    refs = listed(source_of(corpus))

    assert len(refs) == 16_011
    assert sorted(file for file, ref in refs.items() if not ref.refused) == ["07076051.wav", "more/07076050.WAV"]
    ref = refs["07076051.wav"]
    assert ref.text == "Two-stroke petrol engine driving small elevator, start, run, stop."
    assert ref.recording == "bbc/07076051"


def test_every_row_has_text_without_edge_spaces_and_the_remarc_terms(corpus):
    for ref in listed(source_of(corpus)).values():
        assert ref.text
        assert ref.text == ref.text.strip()
        assert ref.licence == "RemArc"
        name = ref.recording.removeprefix("bbc/")
        assert ref.attribution == f"BBC Sound Effects, {name}.wav, bbc.co.uk – © BBC"


def test_text_encoded_twice_is_mended_and_other_text_stays(corpus):
    texts = {ref.text for ref in listed(source_of(corpus)).values()}
    assert 'Police whistle: single¨, double¨, treble¨ 1", 2", 4" - 1968 (169A, reprocessed)' in texts
    assert "French Café, atmosphere in a busy popular cafe." in texts


def test_a_copy_without_the_head_says_the_same(corpus, tmp_path):
    head, _, rows = (corpus / TABLE).read_bytes().partition(b"\n")
    assert head.startswith(b'"location"')
    copy = put(tmp_path / "lists" / "copy.csv", rows)
    assert listed(source_of(corpus, table=copy)) == listed(source_of(corpus))


def test_a_row_cannot_name_a_file_elsewhere(corpus, test_data):
    outside = put(corpus.parent / "outside.wav", real_recording(test_data, 2, "wav"))
    buffer = io.StringIO()
    csv.writer(buffer).writerow([f"../{outside.name}", "secret", "1", "", "", "", ""])
    with (corpus / TABLE).open("a") as file:
        file.write(buffer.getvalue())
    assert listed(source_of(corpus))["outside"].refused == "missing"


def test_another_table_is_an_error_that_names_the_columns(corpus, test_data):
    with pytest.raises(InputError, match=r"expected the columns location,description,.* found filename,fold"):
        listed(source_of(corpus, table=test_data / "formats/esc50/esc50.csv"))
    (corpus / "empty.csv").write_text("")
    with pytest.raises(InputError, match="expected the columns"):
        listed(source_of(corpus, table=corpus / "empty.csv"))


def test_a_folder_without_the_table_or_without_sounds_is_an_error(corpus):
    (corpus / "07076051.wav").unlink()
    shutil.rmtree(corpus / "more")
    with pytest.raises(InputError, match=r"none of the 16,011 .* such as 07076051\.wav"):
        listed(source_of(corpus))
    (corpus / TABLE).unlink()
    with pytest.raises(InputError, match=r"expected the BBC's BBCSoundEffects\.csv"):
        listed(source_of(corpus))
