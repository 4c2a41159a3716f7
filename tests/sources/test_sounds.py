import json

import pytest

from sonify.config import Audio
from sonify.errors import InputError
from sonify.sources.sounds import list_sounds, open_sound
from tests.fakes import write_sounds


def audio(*sources):
    return Audio.model_validate_json(json.dumps({"sources": list(sources)}))


def folder(path, **settings):
    return {"kind": "folder", "path": str(path), **settings}


def test_a_folder_with_metadata_hands_on_every_field(tmp_path):
    write_sounds(tmp_path, {"b.wav": "a dog", "a.flac": "rain"})
    first, second = list_sounds(audio(folder(tmp_path)))
    assert (first.file, first.text, first.licence, first.attribution) == ("a.flac", "rain", "CC0-1.0", "by 1")
    assert (second.key, second.recording) == ("folder/b.wav", "folder/b.wav")


def test_a_folder_without_metadata_is_described_by_its_names(tmp_path):
    (tmp_path / "dogs").mkdir()
    (tmp_path / "dogs" / "big_bark-2.wav").write_bytes(b"")
    (tmp_path / "readme.txt").write_text("no sound")
    (ref,) = list_sounds(audio(folder(tmp_path)))
    assert (ref.text, ref.licence) == ("dogs big bark", "unknown")


def test_recordings_that_share_an_upload_say_so(tmp_path):
    for name in ("a.wav", "b.wav"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "metadata.csv").write_text("file,text,recording\na.wav,x,upload 7\nb.wav,y,upload 7\n")
    refs = list(list_sounds(audio(folder(tmp_path, name="mine"))))
    assert {ref.recording for ref in refs} == {"mine/upload 7"}


def test_esc50_is_read_from_its_own_table(tmp_path):
    (tmp_path / "meta").mkdir()
    (tmp_path / "meta" / "esc50.csv").write_text(
        "filename,fold,target,category,esc10,src_file,take\n"
        "1-100210-B-36.wav,1,36,vacuum_cleaner,False,100210,B\n"
        "1-100210-A-36.wav,1,36,vacuum_cleaner,False,100210,A\n"
    )
    source = audio({"kind": "esc50", "path": str(tmp_path)})
    first, second = list_sounds(source)
    assert first.text == "vacuum cleaner"
    assert first.recording == second.recording == "freesound/100210"
    assert "100210" in first.attribution
    (tmp_path / "audio").mkdir()
    (tmp_path / "audio" / "1-100210-A-36.wav").write_bytes(b"")
    assert open_sound(source.sources, first.corpus, first.file) == tmp_path / "audio" / "1-100210-A-36.wav"


def test_the_published_esc50_table_is_read(test_data, tmp_path):
    (tmp_path / "meta").mkdir()
    (tmp_path / "meta" / "esc50.csv").write_bytes((test_data / "formats/esc50/esc50.csv").read_bytes())
    refs = list(list_sounds(audio({"kind": "esc50", "path": str(tmp_path)})))
    assert len(refs) == 2000
    assert len({ref.text for ref in refs}) == 50


def test_an_esc50_folder_without_its_table_is_an_error(tmp_path):
    with pytest.raises(InputError, match=r"expected ESC-50's meta/esc50\.csv"):
        list(list_sounds(audio({"kind": "esc50", "path": str(tmp_path)})))


def test_an_empty_pool_is_an_error(tmp_path):
    with pytest.raises(InputError, match="holds no recording"):
        list(list_sounds(audio(folder(tmp_path))))


def test_sources_of_one_name_are_refused(tmp_path):
    with pytest.raises(ValueError, match="two sources are named 'folder'"):
        audio(folder(tmp_path), folder(tmp_path))
