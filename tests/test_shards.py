"""Rendered shards as a training loop reads them: whole, once, in order, and nothing in them is run."""

import io
import json
import logging
import os
import pickle
import shutil
import tarfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import asdict
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from torch.utils.data import DataLoader

import sonify
from sonify import layout
from sonify.dataset.format import PublishedShard
from sonify.engine.record import require_record
from sonify.errors import InputError, WorkError
from sonify.io.commits import canonical_json, seal_record
from sonify.io.write import digest_open, sha256_of
from sonify.media.audio import decode_flac, decode_mono_flac, encode_flac
from sonify.media.mixing import pcm_sha256
from sonify.media.pixels import decode_square
from sonify.report.verify import verify as verify_run
from sonify.rows import Render
from sonify.running import run
from sonify.shards import MAX_SOUND_BYTES, open_shards
from sonify.stores import to_place
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
    [
        *({"split": split} for split in ("vali", None)),
        *({"image": size} for size in (0, True)),
        *({"shuffle": samples} for samples in (-1, 1.5, True)),
        *({"node": node} for node in ((2, 2), (0,), 5, ("0", "1"), (0, 1, 2), (True, 2))),
        {"check": "none"},
        {"seed": None},
    ],
    ids=str,
)
def test_what_is_no_option_is_refused(made, options):
    with refused(next(iter(options))):
        open_shards(made, **options)


@pytest.mark.parametrize("epoch", [2**63, -1, 1.5, "1", None])
def test_what_is_no_epoch_is_refused(made, epoch):
    shards = open_shards(made)
    with refused("set_epoch"):
        shards.set_epoch(epoch)
    shards.set_epoch(2**63 - 1)


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
from torch import distributed
from torch.utils.data import DataLoader
import sonify

def take(samples):
    worker = torch.utils.data.get_worker_info().id
    return [(sample.key, worker) for sample in samples]

def read(run_dir, meeting, rank, method):
    shards = sonify.open_shards(run_dir, shuffle=8, seed=3)
    distributed.init_process_group("gloo", init_method=f"file://{meeting}", rank=int(rank), world_size=2)
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
    code = "import sys; sys.path.insert(0, sys.argv[1]); import reading; reading.read(*sys.argv[2:])"
    arguments = [(tmp_path, made, tmp_path / "meeting", rank, method) for rank, method in enumerate(("fork", "spawn"))]
    with ThreadPoolExecutor(2) as pool:  # they meet once the shards are open
        told = [json.loads(done.stdout) for done in pool.map(lambda given: run_python(code, *given), arguments)]
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


def test_variables_name_the_node(made, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    shares: list[list[str]] = []
    for rank in (0, 1):
        monkeypatch.setenv("RANK", str(rank))
        shares.append(keys(open_shards(made)))
    assert all(shares)
    assert sorted(shares[0] + shares[1]) == sorted(keys_in(made))
    monkeypatch.delenv("RANK")
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert keys(open_shards(made)) == keys_in(made)


def test_variables_of_others_do_not_name_a_worker(made, monkeypatch):
    monkeypatch.setenv("WORKER", "1")
    monkeypatch.setenv("NUM_WORKERS", "2")
    assert keys(open_shards(made)) == keys_in(made)


@pytest.mark.parametrize(
    ("rank", "world"),
    [
        *((rank, "2") for rank in ("5", "2", "-1", "x", "1" * 5000, None)),
        *(("0", world) for world in ("0", "-1", "x", "", None)),
        *[("", ""), (None, ""), ("3", None)],
    ],
)
def test_variables_that_name_no_node_are_refused(made, monkeypatch, rank, world):
    for name, value in (("RANK", rank), ("WORLD_SIZE", world)):
        if value is None:
            monkeypatch.delenv(name, raising=False)
        else:
            monkeypatch.setenv(name, value)
    with refused("RANK .*WORLD_SIZE .*node="):
        open_shards(made)
    assert keys(open_shards(made, node=(0, 1))) == keys_in(made)


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
    with refused("expected .* bytes, it is .*; `[^`]*verify [^`]*--repair` withdraws it$", WorkError):
        open_shards(folder)


def test_a_changed_byte_is_found_before_the_first_sample(folder):
    tar = first_tar(folder)
    data = bytearray(tar.read_bytes())
    data[5] ^= 1  # of a name
    tar.write_bytes(data)
    with refused("another sha256", WorkError):
        next(iter(open_shards(folder, check="hash")))


def test_an_archive_that_is_changed_between_two_passes_is_found(folder, monkeypatch):
    hashed: list[str] = []
    monkeypatch.setattr("sonify.shards.digest_open", lambda file: hashed.append(file.name) or digest_open(file))
    shards = open_shards(folder, check="hash")
    assert keys(shards) == keys(shards) == keys_in(folder)
    assert sorted(map(Path, hashed)) == sorted((folder / "shards/train").glob("*.tar"))  # each once
    tar = first_tar(folder)
    before = tar.stat()
    data = bytearray(tar.read_bytes())
    data[data.index(b"JFIF") + 12] ^= 1  # density: the picture is the same
    tar.write_bytes(data)
    os.utime(tar, ns=(before.st_atime_ns, before.st_mtime_ns))
    with refused("another sha256", WorkError):
        next(iter(shards))


def reseal(record: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change a record as somebody does who can also seal it."""
    found = json.loads(record.read_bytes())
    found.pop("record_sha256")
    change(found)
    record.write_bytes(seal_record(found))


@pytest.mark.parametrize("digest", [None, 5, "", "a" * 5000, "../../../x", "..", "a\0b", "A", "*"])
def test_a_digest_that_is_none_is_an_error(folder, digest):
    reseal(folder / "run.json", lambda run: run["stages"]["render"].update(digest=digest))
    with refused("run.json: damaged .*render.*verify .*--repair", WorkError):
        open_shards(folder)
    assert [damage.path for damage in verify_run(folder, repair=True).damage] == ["run.json"]
    assert not (folder / "run.json").exists()


@pytest.mark.parametrize("stages", [None, [], {"render": None}])
def test_stages_that_are_none_are_an_error(folder, stages):
    reseal(folder / "run.json", lambda run: run.update(stages=stages))
    with refused("its stages are none", WorkError):
        open_shards(folder)


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
@pytest.mark.parametrize("name", ["run.json", "commits/render/*/000000.json"])
def test_a_record_that_is_no_file_is_an_error(folder, make, name):
    (record,) = folder.glob(name)
    record.unlink()
    make(record)
    with refused(f"{record}: expected a file of the run", WorkError):
        open_shards(folder)


@pytest.mark.parametrize("path", ["shards/train/000001.tar", "../../etc/passwd", "shards/train/../train/000000.tar"])
def test_a_commit_that_names_the_file_of_another_is_an_error(folder, path):
    def name_another(commit: dict[str, Any]) -> None:
        next(file for file in commit["files"] if file["path"].startswith("shards/"))["path"] = path

    (commit,) = folder.glob("commits/render/*/000000.json")
    reseal(commit, name_another)
    with refused(f"000000.json: names '{path}'.*verify .*--repair", WorkError):
        open_shards(folder)


def copies_of(made: Path, folder: Path, prefix: str = "shards/") -> Path:
    shutil.copytree(made / "shards", folder / prefix)
    return folder


@pytest.mark.parametrize("prefix", ["", "shards/"])
def test_copies_of_shards_open_without_their_run(made, tmp_path, prefix):
    copies_of(made, tmp_path / "copy", prefix)
    assert keys(open_shards(tmp_path / "copy")) == keys_in(made)
    with refused("needs the sha256"):
        open_shards(tmp_path / "copy", check="hash")
    with refused(f"holds archives itself: open {tmp_path}/copy with split='train'"):
        open_shards(tmp_path / "copy" / prefix / "train")
    (tmp_path / "copy" / prefix / "train").rename(tmp_path / "mine")
    with refused("holds archives itself: put them into a folder train/"):
        open_shards(tmp_path / "mine")
    with refused("expected a run, or archives as shards/train"):
        open_shards(tmp_path)


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
    with refused("expected .* bytes, it is 512 bytes long; get it again$", WorkError):
        open_shards(copy)


@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo, lambda path: path.symlink_to("nowhere")])
def test_a_list_that_is_no_file_is_no_lack_of_one(made, tmp_path, make):
    make(copies_of(made, tmp_path / "copy") / "shards/shards.parquet")
    with refused("shards.parquet: "):
        open_shards(tmp_path / "copy")


def test_a_list_whose_values_may_lack_is_refused_for_that(made, tmp_path):
    copy = copies_of(made, tmp_path / "copy")
    rows = [asdict(row) for row in list_as_published(copy, "shards/")]
    pq.write_table(pa.Table.from_pylist(rows), copy / "shards/shards.parquet")
    with refused(r"expected the columns path \(string not null\), .*found path \(string\), "):
        open_shards(copy)


def test_shards_stream_from_a_store_into_workers(made, store):
    files = {path.relative_to(made).as_posix(): path.read_bytes() for path in made.rglob("*") if path.is_file()}
    store.put("bucket", {f"run/{name}": data for name, data in files.items()})
    shards = sonify.open_shards("s3://bucket/run/", check="hash")
    loader = DataLoader(shards, batch_size=None, num_workers=2)
    assert sorted(sample.key for sample in loader) == sorted(keys_in(made))
    assert keys(shards) == keys_in(made)
    name = "shards/train/000000.tar"
    place = to_place(f"s3://bucket/run/{name}")
    assert not isinstance(place, Path)
    place.fs.pipe_file(place.path, files[name][:-1] + b"x")
    with refused("another sha256", WorkError):
        next(iter(shards))


def test_copies_stream_from_the_hub_into_workers(made, tmp_path, monkeypatch):
    copy = copies_of(made, tmp_path / "copy")
    list_as_published(copy, "shards/")
    with running_dataset_hub(monkeypatch, copy):
        shards = open_shards("hf://datasets/me/set", check="hash")
        loader = DataLoader(shards, batch_size=None, num_workers=2)
        assert sorted(sample.key for sample in loader) == sorted(keys_in(made))
        with refused("open hf://datasets/me/set with split='train'"):
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
    "sound has bytes behind it": (
        {FLAC: encode_flac(as_pcm(tone(seconds=0.5)), 16_000) + bytes(40_000)},
        "8000 frames",
    ),
    "sound has a rate of none": ({FLAC: encode_flac(as_pcm(tone(seconds=0.5)), 96_000)}, "frames of 96000 Hz"),
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


def write_holes(folder: Path, sizes: dict[str, int]) -> None:
    """An archive of a whole sample, and one whose members claim sizes and hold nothing on the disk."""
    tar = write_shard(folder, sample_members("a"))
    end = boundaries(tar)[-1]
    with tar.open("r+b") as file:
        for ending, size in sizes.items():
            header = tarfile.TarInfo(f"b.{ending}")
            header.size = size
            file.seek(end)
            file.write(header.tobuf())
            end = file.tell() - -size // 512 * 512
        file.truncate(end + 1024)


MANY = {f"s{n}.flac": 5 << 20 for n in range(52)}
LARGE: dict[str, tuple[dict[str, int], str]] = {
    "a record": ({"json": 1 << 40}, "json has 1099511627776 bytes"),
    "a record of one scene": ({"s.flac": 9, "json": 1_200_000}, "json has 1200000 bytes"),
    "a record of many scenes": (dict.fromkeys(MANY, 9) | {"json": 5_000_000}, "json has 5000000 bytes"),
    "an image": ({"jpg": 1 << 30}, "jpg has 1073741824 bytes"),
    "a sound": ({"s.flac": 6_000_000}, "s.flac has 6000000 bytes"),
    "sounds together": (MANY, "272629760 bytes of sound"),
    "scenes": ({f"s{n}.flac": 9 for n in range(1001)}, "1001 scenes"),
}


@pytest.mark.parametrize("case", LARGE)
def test_what_is_larger_than_rendering_makes_it_is_refused_unread(tmp_path, case):
    sizes, says = LARGE[case]
    write_holes(tmp_path, sizes)
    with refused(f"sample b: {says}.*it was not opened", WorkError):
        next(iter(open_shards(tmp_path)))


def test_sounds_that_are_small_and_decode_to_much_are_refused(tmp_path, monkeypatch):
    silence = encode_flac(np.zeros(4_000, np.int16), 16_000)
    record = {"key": "a", "split": "train", "scenes": [{"scene": "s0"}, {"scene": "s1"}]}
    more = {"captions__flac": None, "s0__flac": silence, "s1__flac": silence, "json": canonical_json(record).encode()}
    write_shard(tmp_path, sample_members("a", **more))
    assert keys(open_shards(tmp_path)) == ["a"]
    for most, is_read in ((16_000, True), (15_998, False)):  # the bytes of two scenes as PCM
        monkeypatch.setattr("sonify.shards.MAX_SOUNDS_BYTES", most)
        assert 2 * len(silence) < most
        with nullcontext() if is_read else refused("4000 frames", WorkError):
            assert keys(open_shards(tmp_path)) == ["a"]


@pytest.mark.parametrize(("frames", "rate"), [(1, 8_000), (100, 16_000), (160_000, 16_000), (60 * 48_000, 48_000)])
def test_no_sound_that_rendering_can_make_is_too_large(frames, rate):
    noise = np.random.default_rng(0).integers(-32768, 32768, frames).astype(np.int16)
    data = encode_flac(noise, rate)
    assert len(data) > 2 * frames  # nothing is larger
    assert len(data) <= MAX_SOUND_BYTES
    samples, found = decode_mono_flac(data)
    assert found == rate
    assert np.array_equal((samples * 32768).astype(np.int16), noise)
