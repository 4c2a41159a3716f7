"""What a run shares with evaluation sets is found, listed for exclusion, and nothing else is."""

import csv
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
from PIL import Image

from eval.leakage import DISTANCE, find_leakage, summary, write_leakage
from sonify import running
from sonify.cli import main
from sonify.errors import InputError, WorkError
from sonify.media.likeness import NearHashes, perceptual_hash
from sonify.sources.userfiles import read_exclusions
from sonify.stores import to_run_dir
from tests.builders import encoded, picture, small_config, small_input, tone, write_csv, write_sound, write_tar
from tests.servers import running_store

PHOTOS, RECORDINGS = 12, 8


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("leakage")
    small_input(root, PHOTOS, RECORDINGS)
    write_sound(root / "sounds" / "dog_bark.flac", tone(90))
    with (root / "sounds" / "metadata.csv").open("a", newline="") as file:
        csv.writer(file).writerow(("dog_bark.flac", "dog", "CC0-1.0", "by 9"))
    running.run(small_config(root))
    return root


def evaluation_images(root: Path, tmp_path: Path) -> Path:
    """The run's image 3 in grey at another size, its image 5 as it is in an archive, and one that is nobody's."""
    folder = tmp_path / "images"
    folder.mkdir()
    with Image.open(root / "photos" / "003.jpg") as image:
        (folder / "small.jpg").write_bytes(encoded(image.convert("L").resize((36, 24)), quality=60))
    (folder / "other.jpg").write_bytes(picture(900))
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xff no picture")
    write_tar(folder / "part.tar", {"same.jpg": (root / "photos" / "005.jpg").read_bytes()})
    return folder


def evaluation_sounds(root: Path, tmp_path: Path) -> Path:
    """The pool's recording 2 in another file, one that is named as one of the pool's, a number, and noise."""
    folder = tmp_path / "sounds"
    folder.mkdir()
    samples, rate_hz = soundfile.read(root / "sounds" / "002.flac", dtype="int16")
    soundfile.write(folder / "renamed.wav", samples, rate_hz)
    write_sound(folder / "dog_bark.wav", tone(91))
    write_sound(folder / "004.wav", tone(92))
    (folder / "broken.wav").write_bytes(b"RIFF")
    return folder


def test_images_that_look_the_same_are_found_in_files_and_archives(root: Path, tmp_path: Path) -> None:
    found = find_leakage(root / "run", evaluation_images(root, tmp_path), None)
    assert (found.images_compared, found.evaluation_images, found.unreadable_images) == (PHOTOS, 3, 1)
    assert [(match.image_uri, match.evaluation, match.exact) for match in found.images] == [
        ("003.jpg", "small.jpg", False),
        ("005.jpg", "part.tar/same.jpg", True),
    ]
    assert all(match.distance <= DISTANCE for match in found.images)
    assert found.sounds_compared == 0


def test_recordings_are_found_by_their_samples_and_by_name(root: Path, tmp_path: Path) -> None:
    found = find_leakage(root / "run", None, evaluation_sounds(root, tmp_path))
    assert (found.sounds_compared, found.evaluation_sounds, found.unreadable_sounds) == (RECORDINGS + 1, 4, 1)
    assert [(match.file, match.evaluation, match.by, match.clips) for match in found.sounds] == [
        ("folder/002.flac", "renamed.wav", "samples", 1),
        ("folder/dog_bark.flac", "dog_bark.wav", "name", 1),
    ]
    assert found.images == ()


def test_an_upload_is_known_in_another_collection(tmp_path: Path) -> None:
    small_input(tmp_path, 8, 4)
    (tmp_path / "esc50" / "meta").mkdir(parents=True)
    (tmp_path / "sounds").rename(tmp_path / "esc50" / "audio")
    table = [(f"{n:03d}.flac", 1, 0, "dog", False, 100 + n, "A") for n in range(4)]
    columns = ("filename", "fold", "target", "category", "esc10", "src_file", "take")
    write_csv(tmp_path / "esc50" / "meta" / "esc50.csv", columns, table)
    sources = {"sources": [{"kind": "esc50", "path": str(tmp_path / "esc50")}], "validation": 0}
    running.run(small_config(tmp_path, audio=sources))
    write_sound(tmp_path / "evaluation" / "101.wav", tone(93))
    found = find_leakage(tmp_path / "run", None, tmp_path / "evaluation")
    assert [(match.file, match.recording, match.by) for match in found.sounds] == [
        ("esc50/audio/001.flac", "freesound/101", "upload")
    ]


def test_tables_of_images_and_sounds_are_evaluation_sets_too(root: Path, tmp_path: Path) -> None:
    cells = {
        "images": ("image", (root / "photos" / "001.jpg").read_bytes()),
        "sounds": ("audio", (root / "sounds" / "001.flac").read_bytes()),
    }
    for folder, (column, data) in cells.items():
        (tmp_path / folder).mkdir()
        table = pa.table({column: [{"bytes": data, "path": None}], "text": ["dog"]})
        pq.write_table(table, tmp_path / folder / "test.parquet")
    found = find_leakage(root / "run", tmp_path / "images", tmp_path / "sounds")
    assert [(match.image_uri, match.exact) for match in found.images] == [("001.jpg", True)]
    assert [(match.file, match.by) for match in found.sounds] == [("folder/001.flac", "samples")]


def test_a_run_in_a_store_is_compared_as_one_on_a_disk(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, sounds = evaluation_images(root, tmp_path), evaluation_sounds(root, tmp_path)
    with running_store(monkeypatch) as store:
        store.put("leakage", {})
        running.run(small_config(root).model_copy(update={"run_dir": to_run_dir("s3://leakage/run")}))
        found = find_leakage(to_run_dir("s3://leakage/run"), images, sounds)
    assert found == find_leakage(root / "run", images, sounds)


def test_the_lists_take_out_what_was_found(root: Path, tmp_path: Path) -> None:
    images, sounds = evaluation_images(root, tmp_path), evaluation_sounds(root, tmp_path)
    found = find_leakage(root / "run", images, sounds)
    write_leakage(found, tmp_path / "report")
    report = json.loads((tmp_path / "report" / "report.json").read_text())
    assert [match["evaluation"] for match in report["images"]] == ["small.jpg", "part.tar/same.jpg"]
    assert read_exclusions(tmp_path / "report" / "recordings.txt") == {"folder/002.flac"}
    assert "# folder/dog_bark.flac" in (tmp_path / "report" / "recordings.txt").read_text().splitlines()
    for folder in ("photos", "sounds"):
        shutil.copytree(root / folder, tmp_path / "again" / folder)
    config = small_config(tmp_path / "again", retrieval={"limit": None})
    lists = {"images": tmp_path / "report" / "images.txt", "audio": tmp_path / "report" / "recordings.txt"}
    parts = {name: getattr(config, name).model_copy(update={"exclude": path}) for name, path in lists.items()}
    running.run(config.model_copy(update=parts))
    left = find_leakage(tmp_path / "again" / "run", images, sounds)
    assert left.images == ()
    assert [match.by for match in left.sounds] == ["name"]
    assert (left.images_compared, left.sounds_compared) == (PHOTOS - 2, RECORDINGS)
    assert summary(left).startswith("images: 0 of 10 look like one of 3 (0 are the same file; 1 were unreadable)")


def test_a_line_end_in_a_name_makes_no_line_of_the_list(root: Path, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    shutil.copy(root / "photos" / "003.jpg", tmp_path / "images" / "a\n004_2ejpg.jpg")
    write_leakage(find_leakage(root / "run", tmp_path / "images", None), tmp_path / "report")
    assert read_exclusions(tmp_path / "report" / "images.txt") == {"003_2ejpg"}


@pytest.mark.parametrize("distance", [-1, 65])
def test_a_distance_that_no_hashes_have_is_refused(root: Path, distance: int) -> None:
    with pytest.raises(ValueError, match="expected 0 to 64"):
        find_leakage(root / "run", None, None, distance)


def test_an_empty_set_and_an_empty_run_are_one_line(root: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="expected evaluation images, found none"):
        find_leakage(root / "run", tmp_path, None)
    with pytest.raises(InputError, match="expected evaluation sounds, found none"):
        find_leakage(root / "run", None, tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"run\.json"):
        find_leakage(tmp_path, root / "photos", None)


def test_the_command_says_what_it_found_and_refuses_what_makes_no_sense(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    command = ["leakage", str(root / "run"), "--out", str(tmp_path / "report")]
    assert main([*command, "--images", str(evaluation_images(root, tmp_path))]) == 0
    assert capsys.readouterr().out.startswith("images: 2 of 12 look like one of 3 (1 are the same file")
    assert (tmp_path / "report" / "report.json").is_file()
    for words, message in (([], "expected evaluation sets"), (["--images", str(root), "--distance", "65"], "0 to 64")):
        assert main([*command, *words]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert message in line


def test_the_module_is_the_command(tmp_path: Path) -> None:
    module = [sys.executable, "-m", "eval.leakage", str(tmp_path), "--images", ".", "--out", str(tmp_path)]
    done = subprocess.run(module, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("sonify: ")
    assert len(done.stderr.splitlines()) == 1


def test_a_damaged_shard_is_named(root: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(root / "run", run)
    shard = next((run / "shards").glob("train/*.tar"))
    data = bytearray(shard.read_bytes())
    data[:100] = b"\xff" * 100
    shard.write_bytes(data)
    with pytest.raises(WorkError, match=rf"{shard.name}: damaged"):
        find_leakage(run, root / "photos", None)


def test_the_nearest_hash_is_that_of_a_plain_count() -> None:
    rng = np.random.default_rng(0)
    hashes, queries = (list(rng.integers(0, 256, (size, 8), dtype=np.uint8)) for size in (300, 50))
    for query, (distance, number) in zip(queries, NearHashes(hashes).nearest(queries), strict=True):
        counts = [int(np.bitwise_count(query ^ one).sum()) for one in hashes]
        assert distance == min(counts) == counts[number]
    assert NearHashes(hashes).nearest([]) == []


def test_copies_of_photographs_are_near_and_different_ones_are_not(test_data: Path) -> None:
    files = sorted((test_data / "photos").glob("*.jpg"))[::3]
    assert len(files) > 80
    hashes = [perceptual_hash(file.read_bytes()) for file in files]
    for number, own in enumerate(hashes[:-1]):
        assert NearHashes(hashes[number + 1 :]).nearest([own])[0][0] > DISTANCE + 4
    for file, own in zip(files, hashes, strict=True):
        with Image.open(file) as image:
            half = image.convert("L").resize((image.width // 2, image.height // 2))
        assert NearHashes([own]).nearest([perceptual_hash(encoded(half, quality=50))])[0][0] <= DISTANCE
