import io
import json
import tarfile
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sonify.errors import InputError
from sonify.media.audio import UnreadableSound
from sonify.rows import Reason
from sonify.sources.sounds import list_sounds, open_sound, opening
from sonify.sources.sounds.forms import MAX_RECORD_BYTES
from sonify.sources.sounds.opening import CellReader
from tests.builders import write_sounds, write_tar
from tests.processes import run_python
from tests.sources.recordings import audio_of, listed, put, real_recording


def folder_source(path, **settings):
    return {"kind": "folder", "path": path, **settings}


def test_a_folder_with_metadata_hands_on_every_field(tmp_path):
    write_sounds(tmp_path, {"b.wav": "a dog", "a.flac": "rain"})
    first, second = list_sounds(audio_of(folder_source(tmp_path)))
    assert (first.file, first.text, first.licence, first.attribution) == ("a.flac", "rain", "CC0-1.0", "by 1")
    assert (second.key, second.recording) == ("folder/b.wav", "folder/b.wav")


def test_a_folder_without_metadata_is_described_by_its_names(tmp_path):
    (tmp_path / "dogs").mkdir()
    (tmp_path / "dogs" / "big_bark-2.wav").write_bytes(b"")
    (tmp_path / "readme.txt").write_text("no sound")
    (ref,) = list_sounds(audio_of(folder_source(tmp_path)))
    assert (ref.text, ref.licence) == ("dogs big bark", "unknown")


def test_recordings_that_share_an_upload_say_so(tmp_path):
    for name in ("a.wav", "b.wav"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "metadata.csv").write_text("file,text,recording\na.wav,x,upload 7\nb.wav,y,upload 7\n")
    refs = list(list_sounds(audio_of(folder_source(tmp_path, name="mine"))))
    assert {ref.recording for ref in refs} == {"mine/upload 7"}


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


def archives_source(path, **settings):
    return {"kind": "webdataset", "path": path, **settings}


def as_json(record):
    return json.dumps(record).encode()


@pytest.fixture
def archives(test_data, tmp_path):
    sound = [real_recording(test_data, n) for n in range(3)]
    write_tar(tmp_path / "part" / "0.tar", {"1.flac": sound[0], "1.json": as_json(LAION), "2.flac": sound[1]})
    write_tar(
        tmp_path / "part" / "1.tar", {"a/1.wav": real_recording(test_data, 3, "wav"), "a/1.txt": b" rain\n on tin "}
    )
    return tmp_path


def test_members_are_listed_with_what_stands_beside_them(archives):
    refs = listed(archives_source(archives, licence="CC-BY-4.0"))

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
    (ref,) = listed(archives_source(tmp_path, name="mine")).values()
    assert (ref.text, ref.licence, ref.attribution, ref.recording) == expected


def test_one_archive_is_a_corpus_too(archives):
    source = archives_source(archives / "part" / "0.tar")
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
    refs = listed(archives_source(tmp_path))
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

    refs = listed(archives_source(tmp_path))

    reasons = sorted(ref.refused for ref in refs.values())
    assert reasons == ["", "", "damaged_archive", "damaged_archive", *["duplicate_key"] * 2, *["unsupported"] * 2]
    assert [file for file, ref in refs.items() if not ref.refused] == ["0.tar/1.flac", "0.tar/2.flac"]


def test_a_member_is_opened_again_after_its_archive_was_replaced(archives, test_data):
    source = archives_source(archives)
    sources = audio_of(source).sources
    assert open_sound(sources, "webdataset", "part/0.tar/2.flac") == real_recording(test_data, 1)
    other = real_recording(test_data, 7)
    write_tar(archives / "part" / "0.tar", {"0.flac": other, "2.flac": other})
    assert open_sound(sources, "webdataset", "part/0.tar/2.flac") == other


def test_a_member_that_is_gone_or_too_large_is_refused(archives, monkeypatch):
    sources = audio_of(archives_source(archives)).sources
    with pytest.raises(UnreadableSound) as gone:
        open_sound(sources, "webdataset", "part/0.tar/9.flac")
    assert gone.value.reason == Reason.UNREADABLE
    monkeypatch.setattr(opening, "MAX_SOUND_BYTES", 1000)
    with pytest.raises(UnreadableSound) as large:
        open_sound(sources, "webdataset", "part/0.tar/1.flac")
    assert large.value.reason == Reason.TOO_LARGE


def test_a_folder_without_an_archive_is_an_error(tmp_path):
    with pytest.raises(InputError, match="holds no recording"):
        listed(archives_source(tmp_path))


AUDIO = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def tables_source(path, **settings):
    return {"kind": "parquet", "path": path, **settings}


def write_table(path, cells, row_group_size=3, audio_type=AUDIO, **columns):
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.table(
        {"audio": pa.array(cells, audio_type), "text": [f"text {n}" for n in range(len(cells))], **columns}
    )
    pq.write_table(table, path, row_group_size=row_group_size)
    return path


@pytest.fixture
def recordings(test_data):
    return [real_recording(test_data, n) for n in range(8)]


def open_all(source):
    sources = audio_of(source).sources
    return [open_sound(sources, "parquet", file) for file in listed(source)]


def refusal(source, file):
    with pytest.raises(UnreadableSound) as caught:
        open_sound(audio_of(source).sources, "parquet", file)
    return caught.value.reason


def test_a_file_that_hugging_face_wrote_is_read(recordings, tmp_path, test_data):
    files = [str(put(tmp_path / "in" / f"{n}.flac", data)) for n, data in enumerate(recordings)]
    rows = {"audio": files, "caption": [f"sound {n}" for n in range(8)], "license": ["by"] * 8, "uploader": ["mia"] * 8}
    dataset = datasets.Dataset.from_dict(rows).cast_column("audio", datasets.Audio(decode=False))
    dataset = dataset.map(lambda row: {"audio": {"bytes": Path(row["audio"]["path"]).read_bytes(), "path": None}})
    (tmp_path / "data").mkdir()
    dataset.to_parquet(tmp_path / "data" / "train-00000-of-00001.parquet")
    source = tables_source(tmp_path / "data", text_column="caption")

    refs = list(listed(source).values())

    assert [ref.file for ref in refs] == [f"train-00000-of-00001.parquet/row-{n:06d}" for n in range(8)]
    assert [ref.text for ref in refs] == [f"sound {n}" for n in range(8)]
    assert {(ref.licence, ref.attribution) for ref in refs} == {("by", "mia")}
    assert open_all(source) == recordings


def test_cells_are_read_in_any_order(recordings, tmp_path):
    path = write_table(tmp_path / "a.parquet", [{"bytes": data, "path": "x"} for data in recordings])
    reader = CellReader(path, "audio")
    for row in (0, 1, 5, 7, 2, 2, 0, 6):
        assert reader.read(row)["bytes"] == recordings[row], row


def test_the_source_says_the_licence_where_the_table_does_not(recordings, tmp_path):
    captions = pa.array([["first", "second"], [], None])
    write_table(tmp_path / "a.parquet", [{"bytes": recordings[0]}] * 3, id=[7, 8, 9], captions=captions)
    refs = list(listed(tables_source(tmp_path, licence="CC-BY-NC-4.0", text_column="captions")).values())
    assert [ref.text for ref in refs] == ["first", "", ""]
    assert [ref.recording for ref in refs] == ["parquet/7", "parquet/8", "parquet/9"]
    assert {ref.licence for ref in refs} == {"CC-BY-NC-4.0"}


def test_a_path_is_relative_to_the_table_and_leads_nowhere_else(recordings, tmp_path):
    put(tmp_path / "secret.flac", recordings[0])
    inside = put(tmp_path / "data" / "sounds" / "1.flac", recordings[1])
    names = ["sounds/1.flac", "../secret.flac", str(inside), "https://example.org/1.flac", "sounds/2.flac", ".", None]
    write_table(tmp_path / "data" / "a.parquet", [{"path": name} for name in names])
    source = tables_source(tmp_path / "data")
    refs = list(listed(source))

    assert open_sound(audio_of(source).sources, "parquet", refs[0]) == inside
    assert [refusal(source, file) for file in refs[1:]] == [
        *[Reason.UNSUPPORTED] * 3,
        Reason.MISSING,
        Reason.UNSUPPORTED,
        Reason.MISSING,
    ]


@pytest.mark.parametrize("audio_type", [pa.binary(), pa.large_binary()])
def test_a_column_of_plain_bytes_is_read(recordings, tmp_path, audio_type):
    write_table(tmp_path / "a.parquet", recordings, audio_type=audio_type)
    assert open_all(tables_source(tmp_path / "a.parquet")) == recordings


def test_a_column_that_is_not_there_is_an_error_that_names_those_that_are(recordings, tmp_path):
    write_table(tmp_path / "a.parquet", [{"bytes": recordings[0]}])
    with pytest.raises(InputError, match=r"text_column = 'caption', but .*a\.parquet has the columns audio, text"):
        listed(tables_source(tmp_path, text_column="caption"))


def test_a_column_that_cannot_hold_sounds_is_an_error(tmp_path):
    cells = [{"array": [0.5], "sampling_rate": 16000}]
    decoded = pa.struct([("array", pa.list_(pa.float32())), ("sampling_rate", pa.int64())])
    write_table(tmp_path / "a.parquet", cells, audio_type=decoded)
    with pytest.raises(InputError, match=r"expected a Hugging Face audio column .* found struct<array"):
        listed(tables_source(tmp_path))


def test_a_link_beside_the_table_leads_nowhere_else(recordings, tmp_path):
    secret = put(tmp_path / "secret.flac", recordings[0])
    write_table(tmp_path / "data" / "a.parquet", [{"path": "link.flac"}])
    (tmp_path / "data" / "link.flac").symlink_to(secret)
    assert refusal(tables_source(tmp_path / "data"), "a.parquet/row-000000") == Reason.UNSUPPORTED


def test_a_damaged_file_is_counted_and_a_damaged_page_refuses_its_row(recordings, tmp_path):
    path = write_table(tmp_path / "a.parquet", [{"bytes": data} for data in recordings], row_group_size=1)
    put(tmp_path / "b.parquet", path.read_bytes()[:-100])
    put(tmp_path / "c.parquet", b"no table")
    column = pq.read_metadata(path).row_group(2).column(0)
    data = bytearray(path.read_bytes())
    data[column.data_page_offset : column.data_page_offset + 40] = b"\xff" * 40
    path.write_bytes(data)
    source = tables_source(tmp_path)

    refs = listed(source)

    assert [file for file, ref in refs.items() if ref.refused == "damaged_archive"] == ["b.parquet", "c.parquet"]
    assert refusal(source, "a.parquet/row-000002") == Reason.UNREADABLE
    assert open_sound(audio_of(source).sources, "parquet", "a.parquet/row-000003") == recordings[3]


def test_a_row_that_is_no_longer_there_is_refused(recordings, tmp_path):
    write_table(tmp_path / "a.parquet", [{"bytes": recordings[0]}])
    assert refusal(tables_source(tmp_path), "a.parquet/row-000007") == Reason.UNREADABLE


READ_ALL = """
import sys
from pathlib import Path
from sonify.sources.sounds.opening import CellReader
from tests.processes import peak_kib
reader = CellReader(Path(sys.argv[1]), "audio")
before = peak_kib()
assert sum(len(reader.read(row)["bytes"]) for row in range(int(sys.argv[2]))) == int(sys.argv[3])
print((peak_kib() - before) // 1024)
"""


def test_memory_follows_the_row_group_and_not_the_file(tmp_path):
    rows, size, in_group = 64, 1 << 20, 4
    noise = np.random.default_rng(0).bytes(size)
    cells = [{"bytes": noise[n:] + noise[:n]} for n in range(rows)]
    write_table(tmp_path / "a.parquet", cells, row_group_size=in_group)
    done = run_python(READ_ALL, tmp_path / "a.parquet", rows, rows * size)
    # as it is stored and unpacked, and the cell; with a single row group 143 MB were measured
    assert int(done.stdout) < 4 * in_group + 16, done.stdout


def test_metadata_meets_sounds_in_any_spelling_and_says_what_meets_nothing(tmp_path, caplog):
    root = tmp_path / "sounds"
    for name in ("d/a.WAV", "b.flac", "c.mp3"):
        put(root / name, b"")
    rows = './d/a.wav,a dog,CC0,"Mia, me"\nsounds\\b,a cat,by,Jo\n,,,\nx.wav,rain,by,Jo\n,,,\n'
    (root / "metadata.csv").write_text(f"File,Text,LICENCE,attribution\n{rows}")
    refs = listed(folder_source(root))
    assert {file: (ref.text, ref.licence, ref.attribution) for file, ref in refs.items()} == {
        "b.flac": ("a cat", "by", "Jo"),
        "c.mp3": ("c", "unknown", ""),
        "d/a.WAV": ("a dog", "CC0", "Mia, me"),
    }
    assert caplog.messages == [
        "metadata.csv: 1 row names no file (first: 'x.wav'), 1 recording has no row (first: 'c.mp3')"
    ]


@pytest.mark.parametrize(
    ("tables", "said"),
    [
        (["metadata.csv", "metadata.parquet"], "metadata.parquet: not read, metadata.csv is in the folder itself"),
        (["metadata.csv", "d/metadata.csv"], "d/metadata.csv: not read, metadata.csv is in the folder itself"),
        (
            ["metadata.xlsx", "d/metadata.csv"],
            "d/metadata.csv and 1 more: not read, one is that is called metadata.csv",
        ),
        (["metadata.csv"], None),
    ],
)
def test_metadata_that_is_not_read_is_said(tmp_path, caplog, tables, said):
    put(tmp_path / "d/a.wav", b"")
    for table in tables:
        (tmp_path / table).write_text("filename,text\nd/a.wav,a dog\n")
    (ref,) = listed(folder_source(tmp_path)).values()
    assert ref.text == ("a dog" if tables[0].endswith(".csv") else "d a")
    assert [message.startswith(said) for message in caplog.messages] == [True] * bool(said)


def test_metadata_that_names_no_sound_is_an_error(tmp_path):
    put(tmp_path / "d/a.wav", b"")
    (tmp_path / "metadata.csv").write_text("file_name;text\nx.wav;a dog\n")
    with pytest.raises(InputError, match=r"metadata\.csv: none of its 1 rows .* such as 'd/a\.wav', found 'x\.wav'"):
        listed(folder_source(tmp_path))


@pytest.mark.parametrize("name", ["1.caption", "1.TXT", "1.desc.txt", "1.Json"])
def test_a_text_of_any_ending_stands_beside_a_member(tmp_path, name):
    data = b'{"text": "a dog"}' if name.endswith("n") and "J" in name else b"a dog"
    write_tar(tmp_path / "0.tar", {"1.audio.flac" if "desc" not in name else "1.flac": b"", name: data})
    assert [ref.text for ref in listed(archives_source(tmp_path)).values()] == ["a dog"]


def test_a_path_in_a_table_of_sounds_may_be_spelt_otherwise(recordings, tmp_path):
    inside = put(tmp_path / "sounds" / "1.FLAC", recordings[1])
    write_table(tmp_path / "a.parquet", [{"path": name} for name in ("./sounds/1.FLAC", "sounds\\1.flac")])
    assert open_all(tables_source(tmp_path)) == [inside, inside]


def test_what_systems_leave_in_archives_is_no_sound(test_data, tmp_path):
    sound = real_recording(test_data, 0)
    write_tar(tmp_path / "0.tar", {"._1.flac": b"x", "__MACOSX/1.flac": b"x", "1.flac": sound, "1.txt": b"rain"})
    assert [ref.text for ref in listed(archives_source(tmp_path)).values()] == ["rain"]
