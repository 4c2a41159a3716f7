"""Rendered shards as a training loop reads them: whole, once, in order, and nothing in them is run."""

import io
import json
import logging
import os
import pickle
import shutil
import tarfile
from collections.abc import Callable
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from torch.utils.data import DataLoader

import sonify
from sonify import layout
from sonify.dataset.format import PublishedShard
from sonify.engine.record import require_record
from sonify.errors import InputError, WorkError
from sonify.io.commits import canonical_json
from sonify.io.write import sha256_of
from sonify.media.audio import decode_flac, encode_flac
from sonify.media.mixing import pcm_sha256
from sonify.media.pixels import decode_square
from sonify.rows import Render
from sonify.running import run
from sonify.shards import open_shards
from tests.builders import (
    as_pcm,
    members_of,
    picture,
    refused,
    small_config,
    stored,
    tar_bytes,
    tone,
    write_photos,
    write_sounds,
    write_table,
    write_tar,
)
from tests.processes import run_python
from tests.servers import running_dataset_hub, running_store

SCENES = {"captions-0", "captions-1"}


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A run of two scenes and eight units, whose photos have dots, underscores and folders in their names."""
    root = tmp_path_factory.mktemp("shards")
    names = [f"{folder}{n:02d}{tail}.jpg" for folder in ("", "a_b/") for n in range(8) for tail in ("", ".v1_x")]
    write_photos(root / "photos", dict.fromkeys(names, "a dog and a cat"))
    (root / "sounds").mkdir()
    write_sounds(root / "sounds", {f"{n}.flac": "dog" if n % 2 else "cat" for n in range(16)})
    config = small_config(
        root,
        images={"shard_size": 4, "validation": 0.2},
        audio={"validation": 0.5},
        retrieval={"draws": 2},
        concepts={"max_concepts": 1},
    )
    run(config)
    return root / "run"


@pytest.fixture
def folder(made, tmp_path) -> Path:
    """A copy of the run that may be damaged."""
    return Path(shutil.copytree(made, tmp_path / "run"))


@pytest.fixture
def store(monkeypatch):
    with running_store(monkeypatch) as running:
        yield running


def keys_in(place: Path, split: str = "train") -> list[str]:
    return [key for tar in sorted((place / "shards" / split).glob("*.tar")) for key in keys_of_tar(tar)]


def keys_of_tar(tar: Path) -> list[str]:
    with tarfile.open(tar) as archive:
        return [name.removesuffix(".json") for name in archive.getnames() if name.endswith(".json")]


def keys(shards: Any) -> list[str]:
    return [sample.key for sample in shards]


def first_tar(place: Path) -> Path:
    return min((place / "shards/train").glob("*.tar"))


def test_samples_are_what_rendering_made(made):
    members = members_of(made / "shards/train")
    renders = {(row.image, row.scene): row for row in stored(made / layout.RENDERS, Render)}
    seen = 0
    for sample in sonify.open_shards(str(made), check="hash"):
        seen += 1
        assert sample.scenes.keys() == SCENES
        with Image.open(io.BytesIO(members[f"{sample.key}.jpg"])) as image:
            assert isinstance(sample.image, np.ndarray)
            assert np.array_equal(sample.image, np.asarray(image.convert("RGB")))
        assert sample.metadata == json.loads(members[f"{sample.key}.json"])
        for name, sound in sample.scenes.items():
            steps, rate = decode_flac(members[f"{sample.key}.{name}.flac"])
            assert sound.sample_rate_hz == rate == 16_000
            assert sound.samples.dtype == np.float32
            assert np.array_equal(sound.samples, steps / np.float32(32768))
            whole = (sound.samples * 32768).astype(np.int16)
            assert pcm_sha256(whole) == renders[(sample.key, name)].mix_sha256
    assert seen == len(members) // 4 > 16
    assert keys(open_shards(made)) == keys_in(made)
    assert any("_2e" in key and "__" in key and "_2f" in key for key in keys_in(made))


def test_a_split_has_its_own_samples(made):
    held_out = list(open_shards(made, "validation"))
    assert [sample.key for sample in held_out] == keys_in(made, "validation")
    assert {sample.metadata["split"] for sample in held_out} == {"validation"}
    assert held_out
    assert not {sample.key for sample in held_out} & set(keys_in(made))


def test_images_come_as_bytes_or_as_squares(made):
    (plain,) = islice(open_shards(made, image="bytes"), 1)
    assert isinstance(plain.image, bytes)
    assert plain.image == members_of(made / "shards/train")[f"{plain.key}.jpg"]
    stack = np.stack([sample.image for sample in open_shards(made, image=16)])
    assert stack.shape[1:] == (16, 16, 3)
    assert stack.dtype == np.uint8
    assert np.array_equal(stack[0], decode_square(plain.image, 16))  # as the features see it
    stack[0] += 1  # whoever augments writes into it


@pytest.mark.parametrize(
    "options",
    [{"split": "vali"}, {"check": "none"}, {"image": 0}, {"image": True}, {"shuffle": -1}, {"node": (2, 2)}],
    ids=str,
)
def test_what_is_no_option_is_refused(made, options):
    with refused(next(iter(options))):
        open_shards(made, **options)


@pytest.mark.parametrize(
    ("place", "says"),
    [
        ("nowhere", "there is no such folder"),
        ("pipe:touch x", "there is no such folder"),
        ("http://127.0.0.1/x", "expected a path or one of s3://"),
        ("s3://", "expected a bucket"),
        ("", "expected a path or a URL"),
    ],
)
def test_what_is_no_folder_is_refused(place, says, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with refused(says):
        open_shards(place)
    assert list(tmp_path.iterdir()) == []


# --- order


def test_the_order_is_that_of_the_seed_and_the_epoch(made):
    stored_order = keys_in(made)
    orders: dict[tuple[int, int], list[str]] = {}
    for seed in (0, 1):
        shards = open_shards(made, shuffle=6, seed=seed)
        for epoch in (0, 1):
            shards.set_epoch(epoch)
            orders[(seed, epoch)] = keys(shards)
            assert keys(shards) == orders[(seed, epoch)]
            assert sorted(orders[(seed, epoch)]) == sorted(stored_order)
    assert len({tuple(order) for order in (stored_order, *orders.values())}) == 5
    again = open_shards(made, shuffle=6, seed=1)
    again.set_epoch(1)
    sent = pickle.loads(pickle.dumps(again))
    assert keys(again) == keys(sent) == orders[(1, 1)]
    sent.set_epoch(0)
    assert keys(sent) == orders[(1, 0)]
    assert keys(again) == orders[(1, 1)]


def test_archives_are_shuffled_by_seed_and_epoch_too(made):
    orders: list[list[str]] = [keys_in(made)]
    for seed, epoch in ((0, 0), (0, 1), (1, 0)):
        shards = open_shards(made, shuffle=1, seed=seed)  # a buffer of one changes nothing
        shards.set_epoch(epoch)
        orders.append(keys(shards))
    assert len({tuple(order) for order in orders}) == 4


def test_samples_are_mixed_across_archives(made):
    unit_of = {key: tar.stem for tar in (made / "shards/train").glob("*.tar") for key in keys_of_tar(tar)}
    units = [unit_of[key] for key in keys(open_shards(made, shuffle=100))]
    changes = sum(before != after for before, after in pairwise(units))
    assert changes > 2 * len(set(units))


READ = """
import json
import torch
from torch.utils.data import DataLoader
import sonify

def take(samples):
    worker = torch.utils.data.get_worker_info().id
    return [(sample.key, worker) for sample in samples]

def read(run_dir, method):
    shards = sonify.open_shards(run_dir, shuffle=8, seed=3)
    loader = DataLoader(shards, batch_size=2, num_workers=2, collate_fn=take, persistent_workers=method == "fork",
                        multiprocessing_context=method)
    epochs = []
    for epoch in (1, 0, 1) if method == "fork" else (1,):
        shards.set_epoch(epoch)
        epochs.append([one for batch in loader for one in batch])
    print(json.dumps(epochs))
"""


def test_two_nodes_of_two_workers_see_each_sample_once(made, tmp_path):
    (tmp_path / "reading.py").write_text(READ)
    told = []
    for rank, method in enumerate(("fork", "spawn")):
        env = os.environ | {"RANK": str(rank), "WORLD_SIZE": "2"}
        code = "import sys; sys.path.insert(0, sys.argv[1]); import reading; reading.read(*sys.argv[2:])"
        told.append(json.loads(run_python(code, tmp_path, made, method, env=env).stdout))
    everything = sorted(keys_in(made))
    read = [(key, rank, worker) for rank, epochs in enumerate(told) for key, worker in epochs[0]]
    assert sorted(key for key, _, _ in read) == everything
    assert len({(rank, worker) for _, rank, worker in read}) == 4
    assert told[0][0] == told[0][2] != told[0][1]  # workers that live on hear of the epoch
    named: list[list[str]] = []
    for rank in (0, 1):
        shards = open_shards(made, shuffle=8, seed=3, node=(rank, 2))
        shards.set_epoch(1)
        named.append(keys(shards))
    assert sorted(named[0]) == sorted(key for key, _ in told[0][0])  # the same share, read by one worker
    assert sorted(named[0] + named[1]) == everything


def test_more_workers_than_archives_are_an_error_that_says_how_many(made):
    archives = len(list((made / "shards/train").glob("*.tar")))
    with refused(f"^{archives} archives cannot be shared by {archives + 1} nodes with 1 workers each, .*resampled"):
        next(iter(open_shards(made, node=(0, archives + 1))))
    loader = DataLoader(open_shards(made, node=(0, archives)), batch_size=None, num_workers=2)
    with pytest.raises(InputError, match=f"{archives} archives .* {archives} nodes with 2 workers"):
        next(iter(loader))


def test_draws_have_no_end_and_differ_between_nodes_and_seeds(made):
    def drawn(seed: int, node: tuple[int, int] | None) -> list[str]:
        return [s.key for s in islice(open_shards(made, resampled=True, seed=seed, node=node, image="bytes"), 60)]

    ways = [drawn(0, None), drawn(1, None), drawn(0, (0, 100)), drawn(0, (1, 100))]
    assert len({tuple(way) for way in ways}) == 4
    assert drawn(1, None) == ways[1]
    assert all(len(set(way)) < 60 for way in ways)
    loader = DataLoader(open_shards(made, resampled=True), batch_size=None, num_workers=2)
    drawn_by_workers = [sample.key for sample in islice(loader, 60)]
    assert drawn_by_workers[::2] != drawn_by_workers[1::2]
    assert len(keys(open_shards(made, resampled=True).with_epoch(7))) == 7


# --- runs that are not whole, and copies


def test_a_run_half_done_gives_what_is_done_and_says_how_much(folder, caplog):
    record = require_record(folder)
    commits = sorted((folder / "commits/render" / record.stages["render"].digest).iterdir())
    commits[0].unlink()
    left = [
        key for key in keys_in(folder) if key not in keys_of_tar(folder / "shards/train" / f"{commits[0].stem}.tar")
    ]
    with caplog.at_level(logging.WARNING):
        assert keys(open_shards(folder)) == left
    assert f"{len(commits) - 1} of {len(commits)} units are rendered" in caplog.text
    for commit in commits[1:]:
        commit.unlink()
    with refused("has no shards yet"):
        open_shards(folder)


def test_a_run_without_held_out_images_says_so(folder):
    for commit in folder.glob("commits/render/*/*.json"):
        if b"shards/validation" in commit.read_bytes():
            commit.unlink()
    with refused("no samples of split 'validation'.*images.validation"):
        open_shards(folder, "validation")


def test_a_damaged_commit_is_an_error(folder):
    commit = min(folder.glob("commits/render/*/*.json"))
    commit.write_bytes(commit.read_bytes().replace(b'"rows_in":', b'"rows_in": '))
    with refused("verify .*--repair", WorkError):
        open_shards(folder)


@pytest.mark.parametrize("change", [lambda tar: tar.unlink(), lambda tar: os.truncate(tar, 1024)], ids=["gone", "cut"])
def test_sizes_are_compared_at_opening(folder, change):
    change(first_tar(folder))
    with refused("expected .* bytes, it is", WorkError):
        open_shards(folder)


def test_a_changed_byte_is_found_before_the_first_sample(folder):
    tar = first_tar(folder)
    data = bytearray(tar.read_bytes())
    data[5] ^= 1  # of a name
    tar.write_bytes(data)
    with refused("another sha256", WorkError):
        next(iter(open_shards(folder, check="hash")))


def copies_of(made: Path, folder: Path, prefix: str = "shards/") -> Path:
    shutil.copytree(made / "shards", folder / prefix)
    return folder


@pytest.mark.parametrize("prefix", ["", "shards/"])
def test_copies_of_shards_open_without_their_run(made, tmp_path, prefix):
    copies_of(made, tmp_path / "copy", prefix)
    assert keys(open_shards(tmp_path / "copy")) == keys_in(made)
    with refused("needs the sha256"):
        open_shards(tmp_path / "copy", check="hash")
    with refused("expected a run, or archives as shards/train"):
        open_shards(tmp_path / "copy" / prefix / "train")


def list_as_published(folder: Path, prefix: str) -> list[PublishedShard]:
    rows = [
        PublishedShard(
            path=layout.shard(tar.parent.name, tar.stem), split=tar.parent.name, unit=tar.stem, samples=1,
            size_bytes=tar.stat().st_size, sha256=sha256_of(tar), complete=True,
        )
        for tar in sorted((folder / prefix).glob("*/*.tar"))
    ]  # fmt: skip
    write_table(folder / prefix / "shards.parquet", PublishedShard, rows)
    return rows


@pytest.mark.parametrize("prefix", ["", "shards/"])
def test_copies_are_checked_by_the_list_of_a_publication(made, tmp_path, prefix, caplog):
    copy = copies_of(made, tmp_path / "copy", prefix)
    list_as_published(copy, prefix)
    tars = sorted((copy / prefix / "train").glob("*.tar"))
    assert keys(open_shards(copy, check="hash")) == keys_in(made)
    tars[0].rename(tmp_path / "away.tar")
    assert len(keys(open_shards(copy))) == len(keys_in(made)) - len(keys_of_tar(tmp_path / "away.tar"))
    assert f"{len(tars) - 1} of {len(tars)} archives are there" in caplog.text
    shutil.copy(tars[1], copy / prefix / "train/more.tar")
    with refused("more.tar: .*does not list it"):
        open_shards(copy)
    (copy / prefix / "train/more.tar").unlink()
    os.truncate(tars[1], 512)
    with refused("expected .* bytes, it is 512", WorkError):
        open_shards(copy)


def test_shards_stream_from_a_store_into_workers(made, store):
    files = {path.relative_to(made).as_posix(): path.read_bytes() for path in made.rglob("*") if path.is_file()}
    store.put("bucket", {f"run/{name}": data for name, data in files.items()})
    shards = sonify.open_shards("s3://bucket/run/", check="hash")
    loader = DataLoader(shards, batch_size=None, num_workers=2)
    assert sorted(sample.key for sample in loader) == sorted(keys_in(made))
    assert keys(shards) == keys_in(made)


def test_copies_stream_from_the_hub_into_workers(made, tmp_path, monkeypatch):
    copy = copies_of(made, tmp_path / "copy")
    list_as_published(copy, "shards/")
    with running_dataset_hub(monkeypatch, copy):
        shards = open_shards("hf://datasets/me/set", check="hash")
        loader = DataLoader(shards, batch_size=None, num_workers=2)
        assert sorted(sample.key for sample in loader) == sorted(keys_in(made))
        with refused("no samples|there are none"):
            open_shards("hf://datasets/me/set/shards/train")
        with refused("there is no such folder"):
            open_shards("hf://datasets/me/set/nowhere")


# --- archives that nobody vouches for


def sample_members(key: str = "a", split: str = "train", **changed: Any) -> dict[str, bytes]:
    """A whole sample of one scene; `changed` are its members by ending, `None` takes one away."""
    record = {"key": key, "split": split, "scenes": [{"scene": "captions"}]}
    members: dict[str, Any] = {
        "jpg": picture(),
        "captions.flac": encode_flac(as_pcm(tone(seconds=0.5)), 16_000),
        "json": canonical_json(record).encode(),
    }
    members |= {ending.replace("__", "."): data for ending, data in changed.items()}
    return {f"{key}.{ending}": data for ending, data in members.items() if data is not None}


def write_shard(folder: Path, *samples: dict[str, bytes], name: str = "000000") -> Path:
    members = {name: data for sample in samples for name, data in sample.items()}
    return write_tar(folder / "shards/train" / f"{name}.tar", members)


class Bomb:
    """What makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("ending", ["pkl", "pyd", "pth", "pickle", "npy", "captions.flac.pkl", "txt", "JPG", ".flac"])
def test_a_member_that_is_none_of_ours_is_named_and_not_opened(tmp_path, ending):
    bomb = pickle.dumps(Bomb(tmp_path / "made"))
    write_shard(tmp_path, sample_members("a"), sample_members("b") | {f"b.{ending}": bomb})
    with refused(rf"'b\.{ending}' is no member of a sample", WorkError):
        next(iter(open_shards(tmp_path)))
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(
    "name", ["pipe:touch made", "{0..9}", "$HOME", "${WDS_X}", "a::b", "~", "s3:", "%41", "a#?b*["]
)
def test_a_name_is_the_files_own(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WDS_X", "000001")
    write_shard(tmp_path, sample_members("other"), name="000001")
    write_shard(tmp_path, sample_members("mine"), name=name)
    assert sorted(keys(open_shards(tmp_path))) == sorted(keys(open_shards(tmp_path, shuffle=2))) == ["mine", "other"]
    assert set(islice(keys(open_shards(tmp_path, resampled=True).with_epoch(40)), 40)) == {"mine", "other"}
    assert os.listdir(tmp_path) == ["shards"]


def test_a_name_in_a_store_is_the_objects_own(store):
    names = ("pipe:touch made", "{0..9}", "$HOME", "a::b", "%41", "a#?b*[")
    files = {f"set/shards/train/{name}.tar": tar_bytes(sample_members(f"k{n}")) for n, name in enumerate(names)}
    store.put("names", files)
    assert sorted(keys(open_shards("s3://names/set"))) == [f"k{n}" for n in range(len(names))]


def boundaries(tar: Path) -> list[int]:
    """Where a member or its data begin, and where the end marker does."""
    with tarfile.open(tar) as archive:
        found = archive.getmembers()
        last = found[-1]
        return [m.offset for m in found] + [last.offset_data + -(-last.size // 512) * 512]


def test_a_tar_cut_anywhere_gives_no_sample(tmp_path):
    tar = write_shard(tmp_path, sample_members("a"), sample_members("b"))
    whole, cuts = tar.read_bytes(), boundaries(tar)
    assert keys(open_shards(tmp_path)) == ["a", "b"]
    for cut in [*cuts, *(at + 512 for at in cuts[:-1]), *(at + 700 for at in cuts[:-1])]:
        tar.write_bytes(whole[:cut])
        with refused("damaged", WorkError):
            next(iter(open_shards(tmp_path)))


def flac_that_claims(frames: int) -> bytes:
    data = bytearray(encode_flac(as_pcm(tone(seconds=0.5)), 16_000))
    packed = int.from_bytes(data[18:26], "big") >> 36 << 36 | frames  # STREAMINFO: 36 bits of total samples
    data[18:26] = packed.to_bytes(8, "big")
    return bytes(data)


def stereo() -> bytes:
    return encode_flac(np.zeros((800, 2), np.int16), 16_000)


def jpeg_that_claims(side_px: int) -> bytes:
    data = bytearray(picture())
    frame = data.index(b"\xff\xc0")  # SOF0: length, precision, height, width
    data[frame + 5 : frame + 9] = side_px.to_bytes(2, "big") * 2
    return bytes(data)


FLAC = "captions__flac"
WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "no image": ({"jpg": None}, "jpg is there or missing"),
    "no record": ({"json": None}, "json is there or missing"),
    "no scene": ({FLAC: None}, "no sample with a sound"),
    "record is no JSON": ({"json": b"{"}, "json is not JSON"),
    "record is deep": ({"json": b"[" * 100_000}, "json is not JSON"),
    "record is no record": ({"json": b"[]"}, "json is not this sample's record"),
    "record of another": ({"json": b'{"key":"b","split":"train","scenes":[{"scene":"captions"}]}'}, "not this"),
    "record of a split": ({"json": b'{"key":"a","split":"validation","scenes":[{"scene":"captions"}]}'}, "split"),
    "record of scenes": ({"json": b'{"key":"a","split":"train","scenes":[{"scene":"llava"}]}'}, "not this"),
    "image is none": ({"jpg": b"no image"}, "jpg is not a JPEG"),
    "image is another": ({"jpg": picture(image_format="PNG")}, "jpg is not a JPEG"),
    "image is cut": ({"jpg": picture()[:-400]}, "unreadable"),
    "image is too large": ({"jpg": jpeg_that_claims(30_000)}, "too_large"),
    "sound is none": ({FLAC: b"no sound"}, "unreadable: not a FLAC"),
    "sound is cut": ({FLAC: encode_flac(as_pcm(tone(seconds=0.5)), 16_000)[:-300]}, "unreadable"),
    "sound is long": ({FLAC: flac_that_claims(2**36 - 1)}, "68719476735 frames"),
    "sound ends early": ({FLAC: flac_that_claims(9_000)}, "unreadable"),
    "sound is stereo": ({FLAC: stereo()}, "2 channels"),
    "sound is another": ({FLAC: b"RIFF" + bytes(100)}, "not a FLAC"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_with_a_sample_is_said(tmp_path, case):
    changed, says = WRONG[case]
    write_shard(tmp_path, sample_members("a", **changed))
    with refused(f"000000.tar.*{says}", WorkError):
        next(iter(open_shards(tmp_path)))


def test_samples_of_other_members_than_the_first_are_an_error(tmp_path):
    more = sample_members("b") | {"b.llava.flac": encode_flac(as_pcm(tone(seconds=0.5)), 16_000)}
    write_shard(tmp_path, sample_members("a"), more)
    with refused("sample b: llava.flac is there or missing", WorkError):
        next(iter(open_shards(tmp_path)))


def test_a_key_that_comes_twice_is_an_error(tmp_path):
    write_shard(tmp_path, sample_members("aa"), sample_members("b"), {"a/a.jpg": picture()})
    with refused("do not stand together", WorkError):
        next(iter(open_shards(tmp_path)))
    write_shard(tmp_path, sample_members("aa"), {"a/a.jpg": picture()})
    with refused("a member comes twice", WorkError):
        next(iter(open_shards(tmp_path)))


@pytest.mark.parametrize("key", ["..", "a b", "é", ""])
def test_a_key_that_is_none_is_an_error(tmp_path, key):
    write_shard(tmp_path, {f"{key}.jpg": picture()})
    with refused("is no member of a sample", WorkError):
        next(iter(open_shards(tmp_path)))


def test_links_pipes_and_empty_archives_are_errors(tmp_path):
    tar = write_shard(tmp_path, sample_members("a"))
    with tarfile.open(tar, "a") as archive:
        link = tarfile.TarInfo("b.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    with refused("a symbolic link", WorkError):
        next(iter(open_shards(tmp_path)))
    write_shard(tmp_path)
    with refused("no sample", WorkError):
        next(iter(open_shards(tmp_path)))
    tar.unlink()
    os.mkfifo(tar)
    with refused("no regular file"):
        open_shards(tmp_path)


def test_a_large_member_is_refused_unread(tmp_path):
    tar = tmp_path / "shards/train/000000.tar"
    write_shard(tmp_path, sample_members("a"))
    header = tarfile.TarInfo("b.json")
    header.size = 1 << 40
    with tar.open("r+b") as file:
        file.seek(boundaries(tar)[-1])
        file.write(header.tobuf())
        file.truncate(file.tell() + header.size + 1024)  # a hole
    with refused("'b.json' is no member of a sample", WorkError):
        next(iter(open_shards(tmp_path)))
