import io
import shutil
import subprocess
import sys

import pyarrow.parquet as pq
import pytest
import soundfile

from sonify.errors import InputError, WorkError
from sonify.io.tables import read_rows
from sonify.mixing import pcm_sha256
from sonify.publish.publish import PublishOptions, publish
from sonify.publish.rows import CHECKSUMS, PublishedPair
from sonify.run import run
from tests.publish.test_publish import config_of, write_input

ALLOWED = PublishOptions(with_audio=True, only_licences=("BY", "SA"), image_licence="CC BY 4.0")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("audio")
    write_input(root)
    run(config_of(root))
    publish(root / "run", root / "out", ALLOWED)
    return root


def test_the_sounds_are_those_of_the_published_scenes_row_for_row(root):
    tables = sorted((root / "out" / "audio").iterdir())
    assert [path.name for path in tables] == sorted(path.name for path in (root / "out" / "data").iterdir())
    heard = 0
    for path in tables:
        pairs = list(read_rows(root / "out" / "data" / path.name, PublishedPair))
        rows = pq.read_table(path).to_pylist()
        assert [(row["image"], row["scene"]) for row in rows] == [(pair.image, pair.scene) for pair in pairs]
        for row, pair in zip(rows, pairs, strict=True):
            samples, sample_rate_hz = soundfile.read(io.BytesIO(row["audio"]["bytes"]), dtype="int16")
            assert sample_rate_hz == 16000
            assert pcm_sha256(samples) == pair.mix_sha256
            heard += 1
    assert heard == 16  # dog and cat, cat and church bell: 8 of 24 images in 2 scenes


def test_datasets_takes_the_column_for_sound_and_decodes_it(root, tmp_path):
    datasets = pytest.importorskip("datasets")
    files = {split: str(root / "out" / "audio" / f"{split}-*.parquet") for split in ("train", "validation")}
    loaded = datasets.load_dataset("parquet", data_files=files, cache_dir=str(tmp_path))
    assert loaded["train"].features["audio"] == datasets.Audio(sampling_rate=16000)
    decoded = loaded["train"][0]["audio"].get_all_samples()
    assert decoded.sample_rate == 16000
    assert decoded.data.shape == (1, 80000)


def test_the_same_bytes_twice(root, tmp_path):
    publish(root / "run", tmp_path / "out", ALLOWED)
    assert (tmp_path / "out" / CHECKSUMS).read_bytes() == (root / "out" / CHECKSUMS).read_bytes()


def test_sounds_that_may_not_be_passed_on_are_refused_with_what_forbids_it_the_most_frequent_first(root, tmp_path):
    with pytest.raises(InputError) as error:
        publish(root / "run", tmp_path / "out", PublishOptions(with_audio=True, image_licence="CC0"))
    assert (
        "--with-audio: not all of the 48 scenes may be passed on: no redistribution (16), research only (16),"
        " unknown (16), BY-SA with BY-NC-SA (8)" in str(error.value)
    )
    assert "--only-licences" in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_images_without_a_licence_forbid_it_too(root, tmp_path):
    options = PublishOptions(with_audio=True, only_licences=("BY", "unknown"))
    with pytest.raises(InputError, match=r"unknown \(16\);.*the images' licence is 'unknown', which --image-licence"):
        publish(root / "run", tmp_path / "out", options)


def test_a_damaged_archive_is_found(root, tmp_path):
    shutil.copytree(root / "run", tmp_path / "run")
    path = next((tmp_path / "run" / "shards" / "train").iterdir())
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)
    with pytest.raises(WorkError, match="not what was committed"):
        publish(tmp_path / "run", tmp_path / "out", ALLOWED)
    assert not (tmp_path / "out").exists()


FULL = """
import sys
from pathlib import Path
from sonify.errors import DiskFull
from sonify.publish.publish import PublishOptions, publish

options = PublishOptions(with_audio=True, only_licences=("BY", "SA"), image_licence="CC BY 4.0")
try:
    publish(Path(sys.argv[1]), Path(sys.argv[2]), options)
except DiskFull as error:
    print(error)
print(*Path(sys.argv[2]).parent.iterdir())
"""


@pytest.mark.parametrize("size", ["24k", "200k", "700k"])  # in data/, in audio/, and in what follows
def test_a_disk_that_fills_up_is_said_in_one_line_and_nothing_half_is_left(root, tmp_path, size):
    if shutil.which("unshare") is None or subprocess.run(["unshare", "-rm", "true"], check=False).returncode:
        pytest.skip("no user namespaces on this machine: a small disk cannot be made")
    command = f'mount -t tmpfs -o size={size} tmpfs "$0" && exec "$@"'
    arguments = ["unshare", "-rm", "sh", "-c", command, tmp_path, sys.executable, "-c", FULL, root / "run"]
    done = subprocess.run([*arguments, tmp_path / "out"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "free some space" in done.stdout.splitlines()[0]
    assert done.stdout.splitlines()[1:] == [""]
    assert "Traceback" not in done.stderr
