"""What the engine promises: the same bytes, nothing lost, nothing twice, whoever is killed."""

import subprocess
import sys
from dataclasses import replace

import pytest

from sonify import layout
from sonify.engine.worker import MOST_KILLERS
from sonify.errors import InputError, WorkError
from sonify.io.commits import read_commit, write_commit
from sonify.io.tables import count_rows
from sonify.io.write import sha256_of
from sonify.prepare import freeze_images
from sonify.rows import Pair
from sonify.running import open_run, plan_run, run
from sonify.stages import render
from tests.builders import (
    hash_run,
    picture,
    refused,
    run_shuffled,
    small_config,
    small_input,
    stored,
    write_csv,
    write_photos,
    write_table,
)

PAIRED = ["pool", "embeddings", "concepts", "pair"]


@pytest.fixture
def root(tmp_path):
    photos, _ = small_input(tmp_path, photos=20)
    (photos / "bad.jpg").write_bytes(b"no picture")
    return tmp_path


def ray(workers):
    return {"kind": "ray", "workers": workers}


def commits(run_dir, stage=""):
    return [read_commit(path).commit for path in sorted((run_dir / layout.COMMITS / stage).rglob("*.json"))]


def commit_pairs(run_dir, commit, rows):
    """Put other rows into a unit's table of pairs, as if pairing had found them."""
    (file,) = commit.files
    place = write_table(run_dir / file.path, Pair, rows)
    record = replace(file, size_bytes=place.stat().st_size, sha256=sha256_of(place))
    write_commit(run_dir, replace(commit, files=(record,)))


def test_every_stage_balances_and_hands_on_all_its_rows(root):
    config = small_config(root)
    counts = run(config)
    assert counts["concepts/captions"].rows_in == 21
    assert counts["concepts/captions"].rejected == {"unreadable": 1}
    assert counts["pair"].rows_in == counts["concepts/captions"].rows_out
    assert counts["render"].rows_in == counts["pair"].rows_out
    for commit in commits(config.run_dir):
        assert commit.rows.balances()
        for file in commit.files:
            if file.path.startswith(layout.REJECTS):
                assert count_rows(config.run_dir / file.path) == sum(commit.rows.rejected.values())


def test_the_order_of_units_does_not_matter(root):
    run(small_config(root, run="straight"))
    run_shuffled(small_config(root, run="shuffled"))
    assert hash_run(root / "shuffled") == hash_run(root / "straight")


@pytest.mark.parametrize("workers", [1, 2, pytest.param(4, marks=pytest.mark.slow)])
def test_any_number_of_ray_workers_gives_the_same_bytes(root, workers):
    run(small_config(root, run="local"))
    run(small_config(root, run="ray", engine=ray(workers)))
    assert hash_run(root / "ray") == hash_run(root / "local")


def test_killed_at_any_step_of_a_commit_the_resumed_run_is_the_same(tmp_path):
    small_input(tmp_path, photos=8, recordings=8)
    (tmp_path / "photos" / "bad.jpg").write_bytes(b"no picture")
    command = [sys.executable, "-m", "tests.engine.kill_matrix", str(tmp_path), "1"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 50


def test_a_finished_run_does_nothing(root):
    config = small_config(root)
    run(config)
    before = {path: path.stat().st_mtime_ns for path in (config.run_dir / layout.COMMITS).rglob("*.json")}
    run(config)
    assert {path: path.stat().st_mtime_ns for path in (config.run_dir / layout.COMMITS).rglob("*.json")} == before


def test_another_configuration_is_refused_and_the_key_is_named(root):
    run(small_config(root))
    with pytest.raises(InputError, match=r"mix.peak_dbfs was -1.0 then, is -3.0 now.*--redo render"):
        run(small_config(root, mix={"peak_dbfs": -3.0}))
    with pytest.raises(InputError, match=r"pool was made under another.*audio.clip_seconds"):
        run(small_config(root, audio={"clip_seconds": 4.0}))


def test_redo_replaces_a_stage_and_what_depends_on_it(root):
    run(small_config(root))
    before = hash_run(root / "run")
    louder = small_config(root, mix={"lufs": [-26.0, -25.0]})
    run(louder, redo="pair")
    after = hash_run(root / "run")
    changed = {path.partition("/")[0] for path in after if before.get(path) != after[path]}
    assert changed == {"pairs", "renders", "shards", "commits"}
    run(small_config(root, run="fresh", mix={"lufs": [-26.0, -25.0]}))
    assert after == hash_run(root / "fresh")


def test_new_images_are_added_and_nothing_else_is_done_again(root):
    run(small_config(root))
    before = hash_run(root / "run")
    (root / "photos" / "new.jpg").write_bytes(picture(77))
    (root / "photos" / "new.txt").write_text("a dog barks")
    run(small_config(root))
    after = hash_run(root / "run")
    assert {path: after[path] for path in before} == before
    assert "pairs/000003.parquet" in after


def test_new_recordings_ask_for_a_redo_of_the_pairs(root):
    run(small_config(root))
    (root / "sounds" / "new.flac").write_bytes((root / "sounds" / "000.flac").read_bytes())
    with pytest.raises(InputError, match="--redo pair"):
        run(small_config(root))


def test_two_runs_at_once_on_one_directory_are_refused(root):
    with open_run(root / "run"), pytest.raises(InputError, match="another command is at work"):
        run(small_config(root))


def test_planning_writes_nothing(root):
    plans = plan_run(small_config(root, run="never"))
    assert plans[0].stage.name == "pool"
    assert not (root / "never").exists()


def test_a_row_that_raises_is_found_and_rejected(root):
    config = small_config(root)
    run(config, stages=PAIRED)
    commit = commits(config.run_dir, "pair")[0]
    pairs = stored(config.run_dir / layout.PAIRS, Pair)[:8]
    soundless = [replace(pair, sources=()) if n in (5, 6) else pair for n, pair in enumerate(pairs)]  # nobody pairs so
    commit_pairs(config.run_dir, commit, soundless)
    counts = run(config)
    assert counts["render"].rejected == {"crashed": 2}
    assert counts["render"].balances()


def test_a_unit_that_fails_as_a_whole_is_given_up_and_the_others_go_on(root):
    config = small_config(root)
    run(config, stages=PAIRED[:-1])
    table = config.run_dir / layout.concepts("captions", "000001")
    whole = table.read_bytes()
    table.write_bytes(bytes(len(whole)))
    with pytest.raises(WorkError, match="1 units were given up"):
        run(config)
    assert sorted(path.stem for path in (root / "run/pairs").iterdir()) == ["000000", "000002"]
    assert sorted(path.stem for path in (root / "run/renders").iterdir()) == ["000000", "000002"]
    table.write_bytes(whole)
    run(config)
    run(small_config(root, run="straight"))
    assert hash_run(root / "run") == hash_run(root / "straight")


def test_too_many_faults_stop_the_run(tmp_path):
    small_input(tmp_path, photos=0)
    captions = {f"{n:04d}.jpg": "a dog barks" for n in range(1200)}
    write_csv(tmp_path / "photos" / "captions.csv", ("file", "caption"), list(captions.items()))
    for n, name in enumerate(captions):
        (tmp_path / "photos" / name).write_bytes(picture() if n % 10 else b"broken")
    large = {"shard_size": 300}
    with pytest.raises(WorkError, match=r"faults \(most: unreadable\), above engine.max_fault_ratio"):
        run(small_config(tmp_path, images=large))
    assert not (tmp_path / "run" / layout.PAIRS).exists()
    run(small_config(tmp_path, images=large, engine={"max_fault_ratio": 0.2}), stages=PAIRED)


def test_images_without_any_concept_stop_the_run(tmp_path):
    small_input(tmp_path, photos=0)
    write_photos(tmp_path / "photos", {f"{n}.jpg": "a grey wall" for n in range(5)})
    with pytest.raises(WorkError, match="no image has a sounding concept"):
        run(small_config(tmp_path))


def test_images_without_captions_get_a_hint(tmp_path):
    small_input(tmp_path, photos=0)
    write_photos(tmp_path / "photos", {f"{n}.jpg": "" for n in range(5)})
    with pytest.raises(WorkError, match=r"5 no_caption.*put a captions.csv"):
        run(small_config(tmp_path))


def test_a_limit_that_stopped_a_run_stops_it_again(tmp_path):
    small_input(tmp_path, photos=0)
    write_photos(tmp_path / "photos", {f"{n}.jpg": "a grey wall" for n in range(5)})
    for _ in range(2):
        with pytest.raises(WorkError, match="no image has a sounding concept"):
            run(small_config(tmp_path))


def test_a_redo_that_would_not_fit_the_rest_withdraws_nothing(root):
    run(small_config(root))
    before = hash_run(root / "run")
    with pytest.raises(InputError, match="pool was made under another configuration"):
        run(small_config(root, audio={"clip_seconds": 4.0}), redo="concepts")
    assert hash_run(root / "run") == before


def test_settings_are_compared_even_where_the_record_is_lost(root):
    run(small_config(root))
    (root / "run" / layout.RUN).unlink()
    with pytest.raises(InputError, match="pair was made under another configuration"):
        run(small_config(root, mix={"lufs": [-26.0, -25.0]}))


@pytest.mark.parametrize("trouble", [OSError(24, "Too many open files"), MemoryError()])
def test_the_machines_trouble_leaves_the_unit_undone_and_rejects_nothing(root, monkeypatch, trouble):
    def fails(*_arguments):
        raise trouble

    monkeypatch.setattr(render, "mix_clips", fails)
    with pytest.raises(WorkError, match="units were given up"):
        run(small_config(root))
    monkeypatch.undo()
    assert run(small_config(root))["render"].rejected == {}


def test_rows_that_fail_in_numbers_are_not_rejected(root):
    config = small_config(root, images={"shard_size": 32})
    run(config, stages=PAIRED)
    (commit,) = commits(config.run_dir, "pair")
    pairs = stored(config.run_dir / layout.PAIRS, Pair)
    assert len(pairs) > MOST_KILLERS
    commit_pairs(config.run_dir, commit, [replace(pair, sources=()) for pair in pairs])
    with pytest.raises(WorkError, match="units were given up"):
        run(config)
    commit_pairs(config.run_dir, commit, pairs)
    assert run(config)["render"].rejected == {}


def test_a_stage_that_reads_less_than_was_committed_is_found_out(root, caplog):
    config = small_config(root)
    run(config, stages=PAIRED[:-1])
    commit = commits(config.run_dir, "concepts")[0]
    more = replace(commit.rows, rows_in=commit.rows.rows_in + 1, rows_out=commit.rows.rows_out + 1)
    write_commit(config.run_dir, replace(commit, rows=more))
    with pytest.raises(WorkError, match="1 units were given up"):
        run(config)
    assert f"{more.rows_out} rows were committed before, {commit.rows.rows_out} read" in caplog.text


def test_a_lost_disk_rejects_nothing(root):
    config = small_config(root)
    run(config, stages=["pool"])
    freeze_images(config.run_dir, config.images, config.seed)
    (root / "photos").rename(root / "elsewhere")
    (root / "photos").mkdir()  # the place where it was mounted
    with refused("images.path: .*photos holds no .*: nothing to do"):
        run(config)
    (root / "photos").rmdir()
    (root / "elsewhere").rename(root / "photos")
    assert run(config)["concepts/captions"].rejected == {"unreadable": 1}
