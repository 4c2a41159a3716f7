import io
import json
import tarfile

import pytest

from sonify.errors import InputError
from sonify.media.audio import UnreadableSound
from sonify.rows import Reason
from sonify.sources.sounds import open_sound, opening
from sonify.sources.sounds.webdataset import MAX_RECORD_BYTES
from tests.fakes import write_tar
from tests.sources.recordings import audio_of, listed, real_recording

# as LAION-Audio writes them
LAION = {
    "text": ["A dog barks twice", "dog"],
    "tag": ["dog", "bark"],
    "original_data": {
        "title": "dogs",
        "license": "http://creativecommons.org/publicdomain/zero/1.0/",
        "username": "mia",
    },
}


def source_of(path, **settings):
    return {"kind": "webdataset", "path": path, **settings}


def as_json(record):
    return json.dumps(record).encode()


@pytest.fixture
def corpus(test_data, tmp_path):
    sound = [real_recording(test_data, n) for n in range(3)]
    write_tar(tmp_path / "part" / "0.tar", {"1.flac": sound[0], "1.json": as_json(LAION), "2.flac": sound[1]})
    write_tar(
        tmp_path / "part" / "1.tar", {"a/1.wav": real_recording(test_data, 3, "wav"), "a/1.txt": b" rain\n on tin "}
    )
    return tmp_path


def test_members_are_listed_with_what_stands_beside_them(corpus):
    refs = listed(source_of(corpus, licence="CC-BY-4.0"))

    assert list(refs) == ["part/0.tar/1.flac", "part/0.tar/2.flac", "part/1.tar/a/1.wav"]
    first, second, third = refs.values()
    assert (first.text, first.attribution) == ("A dog barks twice", "mia")
    assert first.licence == "http://creativecommons.org/publicdomain/zero/1.0/"
    assert (second.text, second.licence, second.attribution) == ("", "CC-BY-4.0", "")
    assert (third.text, third.recording) == ("rain on tin", "webdataset/part/1.tar/a/1.wav")


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        ({"caption": "a bell", "licence": "CC0", "author": "x"}, ("a bell", "CC0", "x", "mine/0.tar/1.flac")),
        ({"text": [], "tags": ["wind", "trees"]}, ("wind, trees", "unknown", "", "mine/0.tar/1.flac")),
        ({"text": None, "id": 180913, "license": "by"}, ("", "by", "", "mine/180913")),
        ({"text": "t", "id": "Yb0RFKhbpFJA.wav"}, ("t", "unknown", "", "youtube/b0RFKhbpFJA")),
        ({"text": "t", "ytid": "b0RFKhbpFJA"}, ("t", "unknown", "", "youtube/b0RFKhbpFJA")),
        ({"text": "\ud800 half", "author": {"a": 1}}, ("? half", "unknown", "", "mine/0.tar/1.flac")),
        ({"text": "x" * 10_000}, ("x" * 4096, "unknown", "", "mine/0.tar/1.flac")),
    ],
)
def test_records_of_many_makers_are_read(test_data, tmp_path, record, expected):
    write_tar(tmp_path / "0.tar", {"1.flac": real_recording(test_data, 0), "1.json": as_json(record)})
    (ref,) = listed(source_of(tmp_path, name="mine")).values()
    assert (ref.text, ref.licence, ref.attribution, ref.recording) == expected


def test_one_archive_is_a_corpus_too(corpus):
    source = source_of(corpus / "part" / "0.tar")
    assert list(listed(source)) == ["0.tar/1.flac", "0.tar/2.flac"]
    assert isinstance(open_sound(audio_of(source).sources, "webdataset", "0.tar/2.flac"), bytes)


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("1.json", b"[1, 2]"),
        ("1.json", b'{"text": "cut'),
        ("1.json", b'{"a":' * 100_000),
        ("1.json", b'{"text": "' + b"x" * MAX_RECORD_BYTES + b'"}'),
        ("1.txt", b"\xff\xfe"),
    ],
)
def test_a_record_that_is_none_refuses_its_sound_only(test_data, tmp_path, name, data):
    sound = real_recording(test_data, 0)
    write_tar(tmp_path / "0.tar", {"1.flac": sound, name: data, "2.flac": sound, "2.txt": b"fine"})
    refs = listed(source_of(tmp_path))
    assert {file: ref.refused for file, ref in refs.items()} == {"0.tar/1.flac": "bad_caption", "0.tar/2.flac": ""}


def test_duplicates_links_odd_names_and_damage_are_counted(test_data, tmp_path):
    sound = real_recording(test_data, 0)
    with tarfile.open(tmp_path / "0.tar", "w") as archive:
        for name in ("1.flac", "1.flac", "1.flac", b"\xff.flac".decode("utf-8", "surrogateescape"), "2.flac"):
            header = tarfile.TarInfo(name)
            header.size = len(sound)
            archive.addfile(header, io.BytesIO(sound))
        link = tarfile.TarInfo("3.flac")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    whole = (tmp_path / "0.tar").read_bytes()
    (tmp_path / "1.tar").write_bytes(whole[: len(sound) // 2])
    (tmp_path / "2.tar").write_bytes(b"<html>404</html>")

    refs = listed(source_of(tmp_path))

    reasons = sorted(ref.refused for ref in refs.values())
    assert reasons == ["", "", "damaged_archive", "damaged_archive", *["duplicate_key"] * 2, *["unsupported"] * 2]
    assert [file for file, ref in refs.items() if not ref.refused] == ["0.tar/1.flac", "0.tar/2.flac"]


def test_a_member_is_opened_again_after_its_archive_was_replaced(corpus, test_data):
    source = source_of(corpus)
    sources = audio_of(source).sources
    assert open_sound(sources, "webdataset", "part/0.tar/2.flac") == real_recording(test_data, 1)
    other = real_recording(test_data, 7)
    write_tar(corpus / "part" / "0.tar", {"0.flac": other, "2.flac": other})
    assert open_sound(sources, "webdataset", "part/0.tar/2.flac") == other


def test_a_member_that_is_gone_or_too_large_is_refused(corpus, monkeypatch):
    sources = audio_of(source_of(corpus)).sources
    with pytest.raises(UnreadableSound) as gone:
        open_sound(sources, "webdataset", "part/0.tar/9.flac")
    assert gone.value.reason == Reason.UNREADABLE
    monkeypatch.setattr(opening, "MAX_SOUND_BYTES", 1000)
    with pytest.raises(UnreadableSound) as large:
        open_sound(sources, "webdataset", "part/0.tar/1.flac")
    assert large.value.reason == Reason.TOO_LARGE


def test_a_folder_without_an_archive_is_an_error(tmp_path):
    with pytest.raises(InputError, match="holds no recording"):
        listed(source_of(tmp_path))
