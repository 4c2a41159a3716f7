"""A run directory in a store: the same files, the same promises, against a real S3-compatible server on loopback."""

import json
import os
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest
from upath import UPath

from sonify import layout
from sonify.engine import lease
from sonify.engine.job import Task, run_task
from sonify.errors import InputError, WorkError
from sonify.io.commits import DamagedRecord, read_commit, write_commit
from sonify.io.places import files_below, read_whole, size_of
from sonify.io.write import create_if_absent
from sonify.report.gallery import build_gallery
from sonify.report.status import read_status
from sonify.report.verify import verify
from sonify.running import run
from sonify.stages.table import stages_of
from tests.builders import hash_run, small_config, small_input
from tests.servers import running_store

ROOT = Path(__file__).parents[2]

DRIVER = """
import sys
from pathlib import Path
from sonify.running import run
from tests.builders import small_config
run(small_config(Path(sys.argv[1]), run_dir=sys.argv[2]))
"""


@pytest.fixture
def store(monkeypatch):
    monkeypatch.setattr(lease, "LOOK_SEC", 0.05)
    monkeypatch.setattr(lease, "STALE_SEC", 0.3)
    with running_store(monkeypatch) as started:
        started.put("bucket", {"first": b""})
        yield started


@pytest.fixture
def interruptible():
    """A process that was begun in the background ignores SIGINT, until it says otherwise as the command line does."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("store")
    small_input(root, photos=12)
    return root


@pytest.fixture(scope="module")
def expected(root):
    config = small_config(root, run="here")
    run(config)
    return hash_run(config.run_dir)


def config_of(root, name, **sections):
    return small_config(root, run_dir=f"s3://bucket/{name}", **sections)


def test_a_run_in_a_store_has_the_bytes_of_one_on_a_disk(store, root, expected):
    config = config_of(root, "run")
    run(config)
    assert hash_run(config.run_dir) == expected
    assert not [name for name in files_below(config.run_dir) if name.startswith(layout.TEMPORARY)]
    assert size_of(config.run_dir / layout.LOCK) is None


def test_a_finished_run_in_a_store_does_nothing(store, root):
    config = config_of(root, "run")
    run(config)
    before = store.objects_written
    run(config)
    written = store.objects_written - before
    assert written == 1 + 2  # the lock, and run.json for the configuration and for the models


def test_status_verify_and_gallery_read_a_store(store, root, tmp_path):
    config = config_of(root, "run")
    run(config)
    status = read_status(config.run_dir)
    assert [(stage.stage, stage.units_to_do) for stage in status.stages if stage.units_to_do] == []
    assert verify(config.run_dir).damage == ()
    with pytest.raises(InputError, match="--out"):
        build_gallery(config.run_dir)
    assert (build_gallery(config.run_dir, out=tmp_path / "gallery") / "index.html").is_file()


def test_damage_in_a_store_is_found_and_done_again(store, root, expected):
    config = config_of(root, "run")
    run(config)
    shard = next(name for name in expected if name.endswith(".tar"))
    (config.run_dir / shard).write_bytes(read_whole(config.run_dir / shard)[:-1] + b"x")
    commit = next(name for name in expected if name.startswith("commits/pair"))
    (config.run_dir / commit).write_bytes(b"{}")
    found = verify(config.run_dir, repair=True)
    assert sorted(damage.path for damage in found.damage) == sorted([shard, commit])
    run(config)
    assert hash_run(config.run_dir) == expected


@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("what", ["shards/", "commits/render"])
def test_killed_at_a_write_to_a_store_the_resumed_run_is_the_same(store, root, expected, what, moment):
    command = [sys.executable, "-c", DRIVER, str(root), "s3://bucket/run"]
    driver = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL)
    killed = threading.Event()

    def kill(environ):
        if what in environ["PATH_INFO"] and not killed.is_set():
            killed.set()
            os.kill(driver.pid, signal.SIGKILL)
            driver.wait()

    setattr(store, f"{moment}_write", kill)
    driver.wait(120)
    assert killed.is_set()
    setattr(store, f"{moment}_write", lambda _environ: None)
    config = config_of(root, "run")
    assert verify(config.run_dir).damage == ()  # and the dead driver's lock is taken over
    run(config)
    assert hash_run(config.run_dir) == expected


def test_a_store_that_fails_in_the_middle_leaves_units_undone_and_rejects_nothing(store, root, expected):
    config = config_of(root, "run")
    store.before_write = lambda environ: "shards/" in environ["PATH_INFO"]  # refused
    with pytest.raises(WorkError, match="given up"):
        run(config)
    assert not [name for name in files_below(config.run_dir) if name.startswith(("commits/render", "rejects"))]
    store.before_write = lambda _environ: False
    run(config)
    assert hash_run(config.run_dir) == expected


def test_a_unit_whose_files_are_lost_is_committed_again(store, root, expected):
    config = config_of(root, "run")
    run(config)
    shard = next(name for name in expected if name.endswith(".tar"))
    (config.run_dir / shard).unlink()
    commit = next(name for name in expected if name.startswith("commits/render"))
    record = read_commit(config.run_dir / commit).commit
    other = replace(record, files=tuple(replace(file, sha256="0" * 64) for file in record.files))
    (config.run_dir / commit).unlink()
    write_commit(config.run_dir, other)  # as of a model that said something else the first time
    run(config)
    assert hash_run(config.run_dir) == expected


def test_a_worker_that_comes_late_leaves_the_files_that_are_committed(store, root, expected):
    config = config_of(root, "run")
    run(config)
    stage = next(stage for stage in stages_of(config) if stage.name == "render")
    commit = read_commit(config.run_dir / next(n for n in expected if n.startswith("commits/render"))).commit
    before = store.objects_written
    task = Task(stage="render", part="", unit=commit.unit, digest=stage.digest, inputs={}, rows_expected=None)
    assert run_task(config.run_dir, stage.load(), task, {}) == commit
    assert store.objects_written == before


def test_a_lock_that_cannot_be_given_back_does_not_hide_how_the_command_ended(store):
    place = UPath("s3://bucket/run/lock", use_listings_cache=False)
    with pytest.raises(WorkError, match="the cause"), lease.hold(place):  # noqa: PT012 - as in a command
        store.serves_objects = 0
        raise WorkError("the cause")


def test_a_commit_is_created_only_if_absent(store):
    place = UPath("s3://bucket/commits/x.json")
    assert create_if_absent(place, b"one")
    assert create_if_absent(place, b"one")  # a request whose answer was lost
    assert not create_if_absent(place, b"two")
    assert read_whole(place) == b"one"


def test_another_result_for_a_committed_unit_is_refused(store, root):
    config = config_of(root, "run")
    run(config)
    name = next(name for name in files_below(config.run_dir) if name.startswith("commits/render"))
    commit = read_commit(config.run_dir / name).commit
    write_commit(config.run_dir, commit)
    with pytest.raises(WorkError, match="another worker committed"):
        write_commit(config.run_dir, replace(commit, files=()))


def test_a_holder_that_lives_keeps_the_run_directory(store, monkeypatch):
    monkeypatch.setattr(lease, "BEAT_SEC", 0.1)
    place = UPath("s3://bucket/run/lock", use_listings_cache=False)
    with (
        lease.hold(place),
        pytest.raises(InputError, match="another command is at work"),
        lease.hold(place),
    ):
        pass
    assert size_of(place) is None


def test_a_holder_that_loses_the_lock_is_interrupted(store, monkeypatch, interruptible):
    monkeypatch.setattr(lease, "BEAT_SEC", 0.1)
    place = UPath("s3://bucket/run/lock", use_listings_cache=False)
    waiting = threading.Event()
    with pytest.raises(KeyboardInterrupt), lease.hold(place):  # noqa: PT012 - it comes while we work
        place.write_bytes(json.dumps({"holder": "another", "host": "there", "pid": 1, "beat": 1}).encode())
        waiting.wait(20)
    assert size_of(place) is not None  # it is the other's


def test_a_store_that_refuses_for_a_while_does_not_cost_the_lock(store, monkeypatch):
    monkeypatch.setattr(lease, "BEAT_SEC", 0.05)
    monkeypatch.setattr(lease, "STALE_SEC", 60.0)
    place = UPath("s3://bucket/run/lock", use_listings_cache=False)
    refusals: list[str] = []
    with lease.hold(place):
        store.before_write = lambda environ: refusals.append(environ["PATH_INFO"]) or len(refusals) < 4
        first = read_whole(place)
        for _ in range(200):
            if len(refusals) > 4 and read_whole(place) != first:
                break
            threading.Event().wait(0.05)
        assert read_whole(place) != first  # it beats again
    assert size_of(place) is None


def test_a_holder_that_cannot_keep_its_lock_stops(store, monkeypatch, interruptible):
    monkeypatch.setattr(lease, "BEAT_SEC", 0.05)
    place = UPath("s3://bucket/run/lock", use_listings_cache=False)
    waiting = threading.Event()
    with pytest.raises(KeyboardInterrupt), lease.hold(place):  # noqa: PT012 - it comes while we work
        store.before_write = lambda _environ: True
        waiting.wait(20)


def test_a_missing_bucket_is_named(store, root):
    with pytest.raises(InputError, match="no such bucket"):
        run(small_config(root, run_dir="s3://nowhere/run"))


def test_a_damaged_record_in_a_store_is_named(store):
    place = UPath("s3://bucket/commits/bad.json")
    place.write_bytes(b"{}")
    with pytest.raises(DamagedRecord):
        read_commit(place)


def test_two_ray_workers_write_to_a_store(store, root, expected):
    config = config_of(root, "run", engine={"kind": "ray", "workers": 2})
    run(config)
    assert hash_run(config.run_dir) == expected
