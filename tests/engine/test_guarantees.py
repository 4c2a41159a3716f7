"""What the engine promises: the same bytes, nothing lost, nothing twice, whoever is killed."""

import random
import subprocess
import sys

import pytest

from sonify import layout
from sonify.engine.worker import LocalExecutor
from sonify.errors import InputError, WorkError
from sonify.io.commits import read_commit
from sonify.io.tables import count_rows
from sonify.run import open_run, plan_run, run
from tests.engine.hashing import hash_run
from tests.fakes import picture, small_config, small_input, write_photos


@pytest.fixture
def root(tmp_path):
    photos, _ = small_input(tmp_path, photos=20)
    (photos / "bad.jpg").write_bytes(b"no picture")
    return tmp_path


def ray(workers):
    return {"kind": "ray", "workers": workers}


def commits(run_dir):
    return [read_commit(path).commit for path in sorted((run_dir / layout.COMMITS).rglob("*.json"))]


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


def test_the_order_of_units_does_not_matter(root, monkeypatch):
    run(small_config(root, run="straight"))
    in_order = LocalExecutor.__call__

    def shuffled(self, stage, tasks):
        return in_order(self, stage, random.Random(3).sample(list(tasks), len(tasks)))

    monkeypatch.setattr(LocalExecutor, "__call__", shuffled)
    run(small_config(root, run="shuffled"))
    assert hash_run(root / "shuffled") == hash_run(root / "straight")


@pytest.mark.parametrize("workers", [1, 2, pytest.param(4, marks=pytest.mark.slow)])
def test_any_number_of_ray_workers_gives_the_same_bytes(root, workers):
    run(small_config(root, run="local"))
    run(small_config(root, run="ray", engine=ray(workers)))
    assert hash_run(root / "ray") == hash_run(root / "local")


def test_killed_at_any_step_of_a_commit_the_resumed_run_is_the_same(tmp_path):
    small_input(tmp_path, photos=8, recordings=8)
    (tmp_path / "photos" / "bad.jpg").write_bytes(b"no picture")
    command = [sys.executable, "-m", "tests.engine.kill_matrix", str(tmp_path)]
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
        run(small_config(root, audio={**small_config(root).audio.model_dump(mode="json"), "clip_seconds": 4.0}))


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


def test_a_row_that_raises_is_found_and_rejected(root, monkeypatch):
    from sonify.stages import concepts  # noqa: PLC0415

    inspect = concepts.inspect_image

    def raises(data):
        if data == picture(5) or data == picture(6):
            raise RuntimeError("a decoder's bug")
        return inspect(data)

    monkeypatch.setattr(concepts, "inspect_image", raises)
    counts = run(small_config(root))
    assert counts["concepts/captions"].rejected == {"crashed": 2, "unreadable": 1}
    assert counts["concepts/captions"].balances()


def test_a_unit_that_fails_as_a_whole_is_given_up_and_the_others_go_on(root, monkeypatch):
    from sonify.stages import pair  # noqa: PLC0415

    read = pair.read_scenes

    def fails(config, unit):
        if unit == "000001":
            raise RuntimeError("no such thing")
        return read(config, unit)

    monkeypatch.setattr(pair, "read_scenes", fails)
    with pytest.raises(WorkError, match="1 units were given up"):
        run(small_config(root))
    assert sorted(path.stem for path in (root / "run/pairs").iterdir()) == ["000000", "000002"]
    assert sorted(path.stem for path in (root / "run/renders").iterdir()) == ["000000", "000002"]
    monkeypatch.undo()
    run(small_config(root))
    run(small_config(root, run="straight"))
    assert hash_run(root / "run") == hash_run(root / "straight")


def test_too_many_faults_stop_the_run(tmp_path):
    small_input(tmp_path, photos=0)
    names = {f"{n:04d}.jpg": "a dog barks" for n in range(1200)}
    photos = write_photos(tmp_path / "photos", names)
    for n in range(0, 1200, 10):
        (photos / f"{n:04d}.jpg").write_bytes(b"broken")
    with pytest.raises(WorkError, match=r"faults \(most: unreadable\), above engine.max_fault_ratio"):
        run(small_config(tmp_path))
    assert not (tmp_path / "run" / layout.PAIRS).exists()
    run(small_config(tmp_path, engine={"kind": "local", "max_fault_ratio": 0.2}))


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
    longer = {**small_config(root).audio.model_dump(mode="json"), "clip_seconds": 4.0}
    with pytest.raises(InputError, match="pool was made under another configuration"):
        run(small_config(root, audio=longer), redo="concepts")
    assert hash_run(root / "run") == before


def test_settings_are_compared_even_where_the_record_is_lost(root):
    run(small_config(root))
    (root / "run" / layout.RUN).unlink()
    with pytest.raises(InputError, match="pair was made under another configuration"):
        run(small_config(root, mix={"lufs": [-26.0, -25.0]}))


@pytest.mark.parametrize("trouble", [OSError(24, "Too many open files"), MemoryError()])
def test_the_machines_trouble_leaves_the_unit_undone_and_rejects_nothing(root, monkeypatch, trouble):
    from sonify.stages import render  # noqa: PLC0415

    def fails(*_arguments):
        raise trouble

    monkeypatch.setattr(render, "mix_clips", fails)
    with pytest.raises(WorkError, match="units were given up"):
        run(small_config(root))
    monkeypatch.undo()
    assert run(small_config(root))["render"].rejected == {}


def test_rows_that_fail_in_numbers_are_not_rejected(root, monkeypatch):
    from sonify.stages import render  # noqa: PLC0415

    def fails(*_arguments):
        raise RuntimeError("a bug")

    monkeypatch.setattr(render, "mix_clips", fails)
    monkeypatch.setattr("sonify.engine.worker.MOST_KILLERS", 2)
    with pytest.raises(WorkError, match="units were given up"):
        run(small_config(root))
    monkeypatch.undo()
    assert run(small_config(root))["render"].rejected == {}


def test_a_stage_that_reads_less_than_was_committed_is_found_out(root, monkeypatch):
    from sonify.stages import pair  # noqa: PLC0415

    read = pair.read_scenes
    monkeypatch.setattr(pair, "read_scenes", lambda config, unit: list(read(config, unit))[1:])
    with pytest.raises(WorkError, match="units were given up"):
        run(small_config(root))


def test_a_lost_disk_rejects_nothing(root):
    config = small_config(root)
    run(config, stages=["pool"])
    from sonify.prepare import freeze_images  # noqa: PLC0415

    freeze_images(config.run_dir, config.images, config.seed)
    (root / "photos").rename(root / "elsewhere")
    (root / "photos").mkdir()
    (root / "photos" / "mount point").mkdir()
    for path in (root / "photos").iterdir():
        path.rmdir()
    with pytest.raises((WorkError, InputError)):
        run(config)
    (root / "photos").rmdir()
    (root / "elsewhere").rename(root / "photos")
    assert run(config)["concepts/captions"].rejected == {"unreadable": 1}
