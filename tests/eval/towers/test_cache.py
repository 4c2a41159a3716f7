import hashlib
import io
import json
import logging
import multiprocessing
import os
import signal
import time
from collections.abc import Sequence
from multiprocessing.synchronize import Event
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from eval.towers import cache
from eval.towers.cache import Vectors
from eval.towers.tower import Sound, Tower, Way
from sonify.errors import DiskFull, InputError, WorkError
from tests.builders import encoded, picture, refused, sine, write_sound
from tests.processes import run_on_small_disk

WIDTH = 5


class Counting:
    """A tower that sees one number in a picture, a sound or a text, and counts what it was given."""

    def __init__(self, sha256: str = "a" * 64, width: int = WIDTH) -> None:
        self.seen: list[int] = []
        way = Way(preprocessing="none", embed=self._embed)
        self._width = width
        self.tower = Tower(name="counting", model="test", sha256=sha256, images=way, sounds=way, texts=way)

    def _embed(self, inputs: Sequence[object]) -> np.ndarray:
        self.seen.append(len(inputs))
        return np.array([[number(one)] * self._width for one in inputs], np.float32)


def number(one: object) -> float:
    if isinstance(one, Image.Image):
        assert one.mode == "RGB"
        return float(np.asarray(one, np.float64).mean())
    if isinstance(one, Sound):
        return float(np.abs(one.samples_S).sum())
    return float(len(str(one)))


def refuse(_: object) -> np.ndarray:
    raise AssertionError("the network was asked")


def blind(tower: Tower) -> Tower:
    way = Way(preprocessing="none", embed=refuse)
    return Tower(name=tower.name, model="test", sha256=tower.sha256, images=way, sounds=way, texts=way)


def write_pictures(folder: Path, count: int) -> list[tuple[Path, str]]:
    folder.mkdir(exist_ok=True)
    files = []
    for n in range(count):
        path = folder / f"{n}.png"
        path.write_bytes(encoded(Image.new("RGB", (4, 3), (n, 2 * n, 3 * n)), "PNG"))
        files.append((path, hashlib.sha256(path.read_bytes()).hexdigest()))
    return files


def shards(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*/*.npy"))


def test_a_second_call_neither_decodes_nor_asks_the_network(tmp_path):
    files = write_pictures(tmp_path / "pictures", 9)
    first = Vectors(tmp_path / "kept").embed_pictures(Counting().tower, files)
    for path, _ in files:
        path.unlink()
    second = Vectors(tmp_path / "kept").embed_pictures(blind(Counting().tower), files)
    assert first.dtype == second.dtype == np.float32
    assert first.tobytes() == second.tobytes()
    assert first[:, 0].tolist() == [2.0 * n for n in range(9)]


def test_vectors_come_in_the_order_asked_and_twins_are_embedded_once(tmp_path):
    counting, files = Counting(), write_pictures(tmp_path / "pictures", 4)
    asked = [files[n] for n in (3, 1, 3, 0, 1)]
    found = Vectors(tmp_path / "kept").embed_pictures(counting.tower, asked)
    assert found[:, 0].tolist() == [6.0, 2.0, 6.0, 0.0, 2.0]
    assert counting.seen == [3]


def test_only_what_is_missing_is_embedded(tmp_path):
    counting, files = Counting(), write_pictures(tmp_path / "pictures", 6)
    Vectors(tmp_path / "kept").embed_pictures(counting.tower, files[:4])
    found = Vectors(tmp_path / "kept").embed_pictures(counting.tower, files)
    assert counting.seen == [4, 2]
    assert found[:, 0].tolist() == [2.0 * n for n in range(6)]


@pytest.mark.parametrize("on_disk", [True, False])
def test_one_object_asks_once_with_or_without_a_folder(tmp_path, on_disk):
    counting, files = Counting(), write_pictures(tmp_path / "pictures", 3)
    vectors = Vectors(tmp_path / "kept" if on_disk else None)
    for _ in range(2):
        vectors.embed_pictures(counting.tower, files)
    assert counting.seen == [3]
    assert (tmp_path / "kept").exists() == on_disk


def test_another_hash_and_another_preprocessing_are_other_vectors(tmp_path):
    one, other, files = Counting(), Counting(sha256="b" * 64), write_pictures(tmp_path / "pictures", 2)
    Vectors(tmp_path / "kept").embed_pictures(one.tower, files)
    Vectors(tmp_path / "kept").embed_pictures(other.tower, files)
    assert other.seen == [2]
    way = Way(preprocessing="cropped", embed=Counting()._embed)
    cropped = Tower(name="x", model="test", sha256=one.tower.sha256, images=way)
    Vectors(tmp_path / "kept").embed_pictures(cropped, files)
    assert len(shards(tmp_path / "kept")) == 3


def test_sounds_and_texts_are_kept_too(tmp_path):
    path = write_sound(tmp_path / "a.flac", np.stack([sine(seconds=0.1), 0 * sine(seconds=0.1)], axis=1), 44_100)
    files = [(path, hashlib.sha256(path.read_bytes()).hexdigest())]
    counting = Counting()
    heard = Vectors(tmp_path / "kept").embed_sounds(counting.tower, files)
    read = Vectors(tmp_path / "kept").embed_texts(counting.tower, ["dog", "a cat"])
    assert heard[0, 0] == pytest.approx(np.abs(sine(seconds=0.1)).sum() / 2, rel=1e-3)  # the mean of both channels
    assert read[:, 0].tolist() == [3.0, 5.0]
    again = Vectors(tmp_path / "kept")
    assert again.embed_sounds(blind(counting.tower), files).tobytes() == heard.tobytes()
    assert again.embed_texts(blind(counting.tower), ["dog", "a cat"]).tobytes() == read.tobytes()


def test_thousands_of_inputs_are_few_files(tmp_path):
    texts = [f"text {n}" for n in range(5000)]
    Vectors(tmp_path / "kept").embed_texts(Counting().tower, texts)
    assert len(shards(tmp_path / "kept")) == 2
    assert len([path for path in (tmp_path / "kept").rglob("*") if path.is_file()]) == 4


def test_what_takes_long_is_written_on_the_way(tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "SHARD_SEC", 0.0)
    Vectors(tmp_path / "kept").embed_texts(Counting().tower, [f"text {n}" for n in range(600)])
    assert len(shards(tmp_path / "kept")) == 3


def test_what_came_before_an_unreadable_file_is_kept(tmp_path, monkeypatch):
    monkeypatch.setitem(cache.BATCH, "images", 2)
    files = write_pictures(tmp_path / "pictures", 5)
    files[4][0].unlink()
    with refused("4.png: cannot be read"):
        Vectors(tmp_path / "kept").embed_pictures(Counting().tower, files)
    counting = Counting()
    Vectors(tmp_path / "kept").embed_pictures(counting.tower, files[:4])
    assert counting.seen == []


@pytest.mark.parametrize("damage", ["cut", "bit", "gone", "index", "index gone"])
def test_a_damaged_shard_is_said_and_made_again(tmp_path, caplog, damage):
    files = write_pictures(tmp_path / "pictures", 3)
    before = Vectors(tmp_path / "kept").embed_pictures(Counting().tower, files)
    (shard,) = shards(tmp_path / "kept")
    damaged = shard.with_suffix(".json") if damage.startswith("index") else shard
    if damage.endswith("gone"):
        damaged.unlink()
    else:
        data = bytearray(damaged.read_bytes())
        data[len(data) // 2] ^= 1
        damaged.write_bytes(data[:-3] if damage == "cut" else data)
    counting = Counting()
    with caplog.at_level(logging.WARNING):
        again = Vectors(tmp_path / "kept").embed_pictures(counting.tower, files)
    assert counting.seen == [3]
    assert again.tobytes() == before.tobytes()
    assert ("are made again" in caplog.text) == (damage != "index gone")
    caplog.clear()
    Vectors(tmp_path / "kept").embed_pictures(blind(counting.tower), files)
    assert not caplog.text


@pytest.mark.parametrize(("sha256", "preprocessing"), [("b" * 64, "none"), ("a" * 64, "cropped")])
@pytest.mark.parametrize("how", ["folders swapped", "a shard copied"])
def test_vectors_of_another_space_are_never_taken(tmp_path, caplog, how, sha256, preprocessing):
    files = write_pictures(tmp_path / "pictures", 3)
    way = Way(preprocessing=preprocessing, embed=lambda given: -Counting()._embed(given))
    negative = Tower(name="other", model="test", sha256=sha256, images=way)
    before = Vectors(tmp_path / "kept").embed_pictures(Counting().tower, files)
    (one,) = (tmp_path / "kept").glob("[!.t]*")
    Vectors(tmp_path / "kept").embed_pictures(negative, files)
    (two,) = (folder for folder in (tmp_path / "kept").glob("[!.t]*") if folder != one)
    if how == "folders swapped":
        one.rename(tmp_path / "aside")
        two.rename(one)
        (tmp_path / "aside").rename(two)
    else:
        for path in one.iterdir():
            path.unlink()
        for path in two.iterdir():
            (one / path.name).write_bytes(path.read_bytes())
    with caplog.at_level(logging.WARNING):
        assert Vectors(tmp_path / "kept").embed_pictures(Counting().tower, files).tobytes() == before.tobytes()
    assert "of another tower or preprocessing; its vectors are made again" in caplog.text
    assert Vectors(tmp_path / "kept").embed_pictures(negative, files).tobytes() == (-before).tobytes()


@pytest.mark.parametrize(
    "rows",
    [
        np.full((3, WIDTH), np.nan, np.float32),
        np.ones((2, WIDTH), np.float32),
        np.ones((3, WIDTH), np.float64),
        np.ones((3, 0), np.float32),
        np.ones(3, np.float32),
        None,
    ],
)
def test_a_forged_shard_that_agrees_with_itself_is_made_again(tmp_path, caplog, rows):
    files = write_pictures(tmp_path / "pictures", 3)
    before = Vectors(tmp_path / "kept").embed_pictures(Counting().tower, files)
    (shard,) = shards(tmp_path / "kept")
    buffer = io.BytesIO(b"\x93NUMPY\x01\x00\x04\x00{'a\n")  # a header that ends too soon
    if rows is not None:
        np.save(buffer, rows)
    forged = json.loads(shard.with_suffix(".json").read_text())
    forged["sha256"] = hashlib.sha256(buffer.getvalue()).hexdigest()
    listed = json.dumps(forged).encode()
    for path in (shard, shard.with_suffix(".json")):
        path.unlink()
    name = hashlib.sha256(listed).hexdigest()[:32]
    shard.with_name(f"{name}.json").write_bytes(listed)
    shard.with_name(f"{name}.npy").write_bytes(buffer.getvalue())
    with caplog.at_level(logging.WARNING):
        assert Vectors(tmp_path / "kept").embed_pictures(Counting().tower, files).tobytes() == before.tobytes()
    assert "damaged; its 3 vectors are made again" in caplog.text


@pytest.mark.parametrize("ending", ["json", "npy"])
def test_a_pipe_among_the_vectors_is_refused_and_not_waited_for(tmp_path, ending):
    files = write_pictures(tmp_path / "pictures", 1)
    Vectors(tmp_path / "kept").embed_pictures(Counting().tower, files)
    path = shards(tmp_path / "kept")[0].with_suffix(f".{ending}")
    path.unlink()
    os.mkfifo(path)
    with refused(f"{ending}: cannot be read .is no regular file.; choose another folder for the vectors"):
        Vectors(tmp_path / "kept").embed_pictures(Counting().tower, files)


def test_an_index_of_another_version_is_left_alone(tmp_path, caplog):
    files = write_pictures(tmp_path / "pictures", 2)
    Vectors(tmp_path / "kept").embed_pictures(Counting().tower, files)
    (shard,) = shards(tmp_path / "kept")
    listed = json.dumps(json.loads(shard.with_suffix(".json").read_text()) | {"later": 1}).encode()
    later = shard.with_name(f"{hashlib.sha256(listed).hexdigest()[:32]}.json")
    later.write_bytes(listed)
    Vectors(tmp_path / "kept").embed_pictures(blind(Counting().tower), files)
    assert later.exists()
    assert not caplog.text


def embed_until_killed(folder: Path, files: list[tuple[Path, str]], started: Event) -> None:
    cache.SHARD_SEC = 0.0
    cache.BATCH["images"] = 1  # pyright: ignore[reportIndexIssue]
    started.set()
    Vectors(folder).embed_pictures(Counting().tower, files)


def test_a_kill_leaves_no_half_shard(tmp_path, caplog):
    files = write_pictures(tmp_path / "pictures", 80)
    context = multiprocessing.get_context("fork")
    for milliseconds in (5, 20, 40):
        started = context.Event()
        process = context.Process(target=embed_until_killed, args=(tmp_path / "kept", files, started))
        process.start()
        started.wait()
        time.sleep(milliseconds / 1000)
        assert process.pid
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        found = Vectors(tmp_path / "kept").embed_pictures(Counting().tower, files[:milliseconds])
        assert found[:, 0].tolist() == [2.0 * n for n in range(milliseconds)]
    assert not caplog.text


def test_two_processes_at_once_do_not_harm_each_other(tmp_path, caplog):
    files = write_pictures(tmp_path / "pictures", 30)
    context = multiprocessing.get_context("fork")
    both = [
        context.Process(target=embed_until_killed, args=(tmp_path / "kept", files, context.Event())) for _ in range(2)
    ]
    for process in both:
        process.start()
    for process in both:
        process.join()
    assert [process.exitcode for process in both] == [0, 0]
    found = Vectors(tmp_path / "kept").embed_pictures(blind(Counting().tower), files)
    assert found[:, 0].tolist() == [2.0 * n for n in range(30)]
    assert not caplog.text


FULL = """
import sys
from multiprocessing.synchronize import Event
from pathlib import Path
import numpy as np
from eval.towers.cache import Vectors
from eval.towers.tower import Tower, Way
from sonify.errors import DiskFull
way = Way(preprocessing="none", embed=lambda texts: np.ones((len(texts), 1000), np.float32))
tower = Tower(name="wide", model="test", sha256="a" * 64, texts=way)
folder = Path(sys.argv[1]) / "kept"
Vectors(folder).embed_texts(tower, ["first"])
try:
    Vectors(folder).embed_texts(tower, [f"text {n}" for n in range(2000)])
except DiskFull as full:
    print(full)
def refuse(texts):
    raise AssertionError(texts)
blind = Tower(name="wide", model="test", sha256="a" * 64, texts=Way(preprocessing="none", embed=refuse))
assert Vectors(folder).embed_texts(blind, ["first"]).shape == (1, 1000)
assert len(list(folder.rglob("*.npy"))) == 1, list(folder.rglob("*"))
"""


def test_a_full_disk_is_said_and_leaves_what_was_there(tmp_path):
    done = run_on_small_disk(tmp_path / "small", "2m", FULL, tmp_path / "small")
    assert done.returncode == 0, done.stderr
    assert "no space left on the disk" in done.stdout


def test_a_full_disk_is_a_disk_full_here_too(tmp_path, monkeypatch):
    def full(_descriptor: int) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DiskFull, match="no space left"):
        Vectors(tmp_path).embed_texts(Counting().tower, ["a"])


def test_a_place_that_cannot_be_written_is_said(tmp_path):
    (tmp_path / "kept").write_text("a file")
    with refused("kept: cannot be written"):
        Vectors(tmp_path / "kept").embed_texts(Counting().tower, ["a"])


def test_a_file_that_is_not_what_was_listed_is_refused(tmp_path):
    files = write_pictures(tmp_path / "pictures", 1)
    files[0][0].write_bytes(picture())
    with refused("0.png: was changed since it was listed .expected sha256 [0-9a-f]{12}..., found [0-9a-f]{12}...."):
        Vectors(None).embed_pictures(Counting().tower, files)


@pytest.mark.parametrize("data", [b"", b"no picture", encoded(Image.new("RGB", (64, 64)), "PNG")[:60]])
def test_what_is_no_picture_or_sound_is_named(tmp_path, data):
    path = tmp_path / "0.png"
    path.write_bytes(data)
    file = (path, hashlib.sha256(data).hexdigest())
    with refused("0.png: expected a picture, found none that can be read"):
        Vectors(None).embed_pictures(Counting().tower, [file])
    with refused("0.png: expected a sound, found none"):
        Vectors(None).embed_sounds(Counting().tower, [file])


def test_a_sound_of_no_samples_is_refused(tmp_path):
    path = write_sound(tmp_path / "a.flac", np.zeros(0, np.float32))
    with refused("a.flac: expected a sound, found"):
        Vectors(None).embed_sounds(Counting().tower, [(path, hashlib.sha256(path.read_bytes()).hexdigest())])


@pytest.mark.parametrize(
    ("rows", "found"),
    [
        (np.zeros((2, 3), np.float32), r"found \(2, 3\) float32"),
        (np.zeros((1, 3), np.float64), r"found \(1, 3\) float64"),
        (np.zeros(1, np.float32), r"found \(1,\) float32"),
        (np.zeros((1, 0), np.float32), r"found \(1, 0\) float32"),
        ([[1.0]], r"found \(\) list"),
    ],
)
def test_a_tower_of_wrong_shapes_is_refused(rows, found):
    tower = Tower(name="mine", model="m", sha256="c", texts=Way(preprocessing="", embed=lambda _: rows))
    with refused(rf"mine: texts: expected \(1, D\) float32 from the tower, {found}"):
        Vectors(None).embed_texts(tower, ["a"])


def test_numbers_that_are_none_are_never_kept(tmp_path):
    nan = np.full((1, 2), np.nan, np.float32)
    tower = Tower(name="mine", model="m", sha256="c", texts=Way(preprocessing="", embed=lambda _: nan))
    with pytest.raises(WorkError, match="mine: texts: the tower gives NaN"):
        Vectors(tmp_path / "kept").embed_texts(tower, ["a"])
    assert not (tmp_path / "kept").exists()


def test_two_networks_of_one_hash_are_found_out(tmp_path):
    Vectors(tmp_path).embed_texts(Counting().tower, ["a"])
    with refused("two networks go by this hash", InputError):
        Vectors(tmp_path).embed_texts(Counting(width=7).tower, ["a", "b"])


def test_a_tower_without_the_way_is_named():
    deaf = Tower(name="deaf", model="m", sha256="c", texts=Way(preprocessing="", embed=refuse))
    with refused("deaf: takes no sounds"):
        Vectors(None).embed_sounds(deaf, [])


def test_nothing_asked_is_nothing_given():
    assert Vectors(None).embed_texts(Counting().tower, []).shape[0] == 0
