import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sonify.errors import InputError
from sonify.media.audio import UnreadableSound
from sonify.rows import Reason
from sonify.sources.sounds import open_sound
from sonify.sources.sounds.opening import CellReader
from tests.sources.recordings import audio_of, listed, put, real_recording

AUDIO = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def source_of(path, **settings):
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
    source = source_of(tmp_path / "data", text_column="caption")

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
    refs = list(listed(source_of(tmp_path, licence="CC-BY-NC-4.0", text_column="captions")).values())
    assert [ref.text for ref in refs] == ["first", "", ""]
    assert [ref.recording for ref in refs] == ["parquet/7", "parquet/8", "parquet/9"]
    assert {ref.licence for ref in refs} == {"CC-BY-NC-4.0"}


def test_a_path_is_relative_to_the_table_and_leads_nowhere_else(recordings, tmp_path):
    put(tmp_path / "secret.flac", recordings[0])
    inside = put(tmp_path / "data" / "sounds" / "1.flac", recordings[1])
    names = ["sounds/1.flac", "../secret.flac", str(inside), "https://example.org/1.flac", "sounds/2.flac", ".", None]
    write_table(tmp_path / "data" / "a.parquet", [{"path": name} for name in names])
    source = source_of(tmp_path / "data")
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
    assert open_all(source_of(tmp_path / "a.parquet")) == recordings


def test_a_column_that_is_not_there_is_an_error_that_names_those_that_are(recordings, tmp_path):
    write_table(tmp_path / "a.parquet", [{"bytes": recordings[0]}])
    with pytest.raises(InputError, match=r"text_column = 'caption', but .*a\.parquet has the columns audio, text"):
        listed(source_of(tmp_path, text_column="caption"))


def test_a_column_that_cannot_hold_sounds_is_an_error(tmp_path):
    cells = [{"array": [0.5], "sampling_rate": 16000}]
    decoded = pa.struct([("array", pa.list_(pa.float32())), ("sampling_rate", pa.int64())])
    write_table(tmp_path / "a.parquet", cells, audio_type=decoded)
    with pytest.raises(InputError, match=r"expected a Hugging Face audio column .* found struct<array"):
        listed(source_of(tmp_path))


def test_a_link_beside_the_table_leads_nowhere_else(recordings, tmp_path):
    secret = put(tmp_path / "secret.flac", recordings[0])
    write_table(tmp_path / "data" / "a.parquet", [{"path": "link.flac"}])
    (tmp_path / "data" / "link.flac").symlink_to(secret)
    assert refusal(source_of(tmp_path / "data"), "a.parquet/row-000000") == Reason.UNSUPPORTED


def test_a_damaged_file_is_counted_and_a_damaged_page_refuses_its_row(recordings, tmp_path):
    path = write_table(tmp_path / "a.parquet", [{"bytes": data} for data in recordings], row_group_size=1)
    put(tmp_path / "b.parquet", path.read_bytes()[:-100])
    put(tmp_path / "c.parquet", b"no table")
    column = pq.read_metadata(path).row_group(2).column(0)
    data = bytearray(path.read_bytes())
    data[column.data_page_offset : column.data_page_offset + 40] = b"\xff" * 40
    path.write_bytes(data)
    source = source_of(tmp_path)

    refs = listed(source)

    assert [file for file, ref in refs.items() if ref.refused == "damaged_archive"] == ["b.parquet", "c.parquet"]
    assert refusal(source, "a.parquet/row-000002") == Reason.UNREADABLE
    assert open_sound(audio_of(source).sources, "parquet", "a.parquet/row-000003") == recordings[3]


def test_a_row_that_is_no_longer_there_is_refused(recordings, tmp_path):
    write_table(tmp_path / "a.parquet", [{"bytes": recordings[0]}])
    assert refusal(source_of(tmp_path), "a.parquet/row-000007") == Reason.UNREADABLE


READ_ALL = """
import sys
from pathlib import Path
from sonify.sources.sounds.opening import CellReader
from tests.memory import peak_kib
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
    arguments = [str(tmp_path / "a.parquet"), str(rows), str(rows * size)]
    done = subprocess.run([sys.executable, "-c", READ_ALL, *arguments], capture_output=True, text=True, check=True)
    # as it is stored and unpacked, and the cell; with a single row group 143 MB were measured
    assert int(done.stdout) < 4 * in_group + 16, done.stdout
