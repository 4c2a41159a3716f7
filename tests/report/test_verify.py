import shutil

import pytest

from sonify import layout
from sonify.errors import InputError, WorkError
from sonify.report.verify import verify
from sonify.running import run
from tests.builders import hash_run, small_config, small_input


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    root = tmp_path_factory.mktemp("verify")
    photos, _ = small_input(root)
    (photos / "bad.jpg").write_bytes(b"no picture")
    run(small_config(root))
    return root


def committed_files(run_dir):
    return sorted(p for p in run_dir.rglob("*") if p.is_file() and p.name != layout.LOCK)


def test_a_sound_run_has_no_damage(finished):
    result = verify(finished / "run")
    assert result.damage == ()
    assert result.commits == 2 * 1 + 3 * 4  # a unit of sounds in two stages, four of images in three
    assert result.files > result.commits


def test_a_flipped_byte_in_any_file_is_found_and_named(finished, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(finished / "run", copy)
    files = committed_files(copy)
    assert {path.relative_to(copy).parts[0] for path in files} == {
        "run.json", "units", "pool", "concepts", "pairs", "renders", "shards", "rejects", "commits",
    }  # fmt: skip
    for path in files:
        data = path.read_bytes()
        flipped = bytearray(data)
        flipped[len(data) // 3] ^= 4
        path.write_bytes(flipped)
        found = verify(copy).damage
        assert path.relative_to(copy).as_posix() in {damage.path for damage in found}, path
        path.write_bytes(data)


@pytest.mark.parametrize(
    "path",
    [
        "pool/audio/000000.npy",
        "pool/clips/000000.parquet",
        "concepts/captions/000001.parquet",
        "pairs/000002.parquet",
        "shards/train/000001.tar",
        "units/concepts/000001.parquet",
        "run.json",
    ],
)
def test_repair_makes_the_next_run_do_just_that_unit_again(finished, tmp_path, path):
    copy = tmp_path / "run"
    shutil.copytree(finished / "run", copy)
    before = hash_run(copy)
    times = {p: p.stat().st_mtime_ns for p in (copy / layout.COMMITS).rglob("*.json")}
    (copy / path).write_bytes((copy / path).read_bytes()[:-9] + b"different")
    assert [damage.path for damage in verify(copy, repair=True).damage] == [path]
    config = small_config(finished).model_copy(update={"run_dir": copy})
    run(config)
    assert hash_run(copy) == before
    assert verify(copy).damage == ()
    redone = [p for p, time in times.items() if p.stat().st_mtime_ns != time]
    assert len(redone) == (0 if path.startswith(("units", "run.json")) else 1)


def test_a_damaged_commit_is_withdrawn(finished, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(finished / "run", copy)
    before = hash_run(copy)
    record = sorted((copy / layout.COMMITS / "pair").rglob("*.json"))[1]
    record.write_bytes(record.read_bytes().replace(b'"rows_in":8', b'"rows_in":9'))
    assert len(verify(copy, repair=True).damage) == 1
    run(small_config(finished).model_copy(update={"run_dir": copy}))
    assert hash_run(copy) == before


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(InputError, match="not a run"):
        verify(tmp_path)


def garble(path):
    """Bytes in the middle that no format has; the ends, by which libraries know a format, stay."""
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2] + b"no such bytes" + data[len(data) // 2 + 13 :])


@pytest.mark.parametrize("path", ["pool/audio/000000.npy", "pairs/000001.parquet"])
def test_damage_that_a_later_stage_meets_leaves_its_units_undone(finished, tmp_path, path):
    run_dir = tmp_path / "run"
    config = small_config(finished).model_copy(update={"run_dir": run_dir})
    shutil.copytree(finished / "run", run_dir)
    shutil.rmtree(run_dir / "commits" / "render")
    if path.endswith(".npy"):  # whose header is its beginning
        (run_dir / path).write_bytes(b"\x00" * 12 + (run_dir / path).read_bytes()[12:])
    else:
        garble(run_dir / path)
    with pytest.raises(WorkError, match="units were given up"):
        run(config)
    assert verify(run_dir, repair=True).damage != ()
    run(config)
    assert hash_run(run_dir) == hash_run(finished / "run")


def test_a_listing_that_no_commit_vouches_for_is_looked_at_as_well(finished, tmp_path):
    run_dir = tmp_path / "run"
    config = small_config(finished).model_copy(update={"run_dir": run_dir})
    run(config, stages=["pool", "concepts"])
    shutil.rmtree(run_dir / "commits" / "concepts")
    garble(run_dir / "units" / "concepts" / "000002.parquet")
    assert [d.path for d in verify(run_dir, repair=True).damage] == ["units/concepts/000002.parquet"]
    run(config)
    assert hash_run(run_dir) == hash_run(finished / "run")
