import json
import signal
import subprocess
import sys
import time

import pytest
import yaml

from sonify.cli import main
from sonify.report.verify import verify
from tests.builders import hash_run, small_config, small_input


@pytest.fixture
def config_file(tmp_path):
    small_input(tmp_path, photos=12)
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(small_config(tmp_path).model_dump(mode="json")))
    return path


def test_run_status_verify_and_gallery_end_with_0(config_file, tmp_path, capsys):
    assert main(["run", "--config", str(config_file)]) == 0
    run_dir = str(tmp_path / "run")
    assert main(["status", run_dir, "--json", "--usage"]) == 0
    status = json.loads(capsys.readouterr().out)
    assert [stage["stage"] for stage in status["stages"]] == [
        "pool",
        "embeddings",
        "concepts/captions",
        "pair",
        "render",
    ]
    assert all(stage["units_to_do"] == 0 and stage["units_done"] > 0 for stage in status["stages"])
    assert status["stages"][0]["clips"]["rows_out"] == 16
    assert status["usage"]["draws"] == 12
    assert len(status["comparison"]) == 6
    assert main(["status", run_dir]) == 0
    assert main(["verify", run_dir]) == 0
    assert main(["gallery", run_dir]) == 0
    assert capsys.readouterr().out.splitlines()[-1].endswith("index.html")


def test_single_stages_do_their_part(config_file, tmp_path, capsys):
    for command in ("pool", "concepts", "pair", "render"):
        assert main([command, "--config", str(config_file)]) == 0
    assert main(["run", "--config", str(config_file), f"run_dir={tmp_path / 'whole'}"]) == 0
    assert hash_run(tmp_path / "run") == hash_run(tmp_path / "whole")


def test_a_single_stage_under_other_settings_of_a_later_one_is_refused(config_file, tmp_path, capsys):
    assert main(["run", "--config", str(config_file)]) == 0
    assert main(["pool", "--config", str(config_file), "mix.lufs=[-20,-10]"]) == 2
    assert "pair was made under another configuration: mix.lufs was" in capsys.readouterr().err
    assert main(["status", str(tmp_path / "run")]) == 0


def test_a_stage_before_its_time_says_what_is_missing(config_file, capsys):
    assert main(["pair", "--config", str(config_file)]) == 2
    assert "nothing to work on" in capsys.readouterr().err
    assert main(["concepts", "--config", str(config_file)]) == 0
    for command in ("pair", "render"):
        assert main([command, "--config", str(config_file)]) == 2


def test_a_dry_run_prints_config_and_plan_and_writes_nothing(config_file, tmp_path, capsys):
    assert main(["run", "--config", str(config_file), "mix.lufs=[-34,-30]", "--dry-run", "seed=7"]) == 0
    out = capsys.readouterr().out
    resolved = yaml.safe_load(out)
    assert resolved["mix"]["lufs"] == [-34.0, -30.0]
    assert resolved["seed"] == 7
    assert "# input: 16 recordings, some 16 clips, 12 images" in out
    assert "# render: 2 units, 0 done, 2 to do" in out
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "--config", "nowhere.yaml"], "cannot be read"),
        (["run", "--config", "CONFIG", "mixx.lufs=[1,2]"], "mixx: no such key"),
        (["run", "--config", "CONFIG", "nonsense"], "unknown argument 'nonsense'"),
        (["run", "--config", "CONFIG", "--nonsense"], "unknown argument '--nonsense'"),
        (["run", "--config", "CONFIG", "--redo", "nothing"], "--redo nothing: expected one of pool"),
        (["run", "--config", "CONFIG", "--redo", "pair", "--dry-run"], "--dry-run: says what is to do as things stand"),
        (["run", "--config", "CONFIG", "run_dir=s3://"], "run_dir: expected a bucket behind ://"),
        (["status", "nowhere"], "not a run"),
        (["verify", "nowhere"], "not a run"),
        (["gallery", "nowhere"], "sonify"),
    ],
)
def test_wrong_input_is_one_line_and_2(config_file, capsys, arguments, message):
    assert main([str(config_file) if a == "CONFIG" else a for a in arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["fly"],
        ["run"],
        ["run", "--config"],
        ["publish", "RUN", "--out", "s3://b"],
        ["leakage", "RUN", "--out", "s3://b"],
    ],
)
def test_a_wrong_command_is_one_line_and_2(capsys, arguments):
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_damage_is_3_and_repair_lets_the_next_run_mend_it(config_file, tmp_path, capsys):
    assert main(["run", "--config", str(config_file)]) == 0
    before = hash_run(tmp_path / "run")
    shard = tmp_path / "run/shards/train/000001.tar"
    shard.write_bytes(shard.read_bytes()[:-1] + b"x")
    assert main(["verify", str(tmp_path / "run")]) == 3
    assert "shards/train/000001.tar: another sha256" in capsys.readouterr().out
    assert main(["verify", str(tmp_path / "run"), "--repair"]) == 3
    assert main(["run", "--config", str(config_file)]) == 0
    assert hash_run(tmp_path / "run") == before


@pytest.mark.parametrize("kill", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_ends_with_130_and_resumes(config_file, tmp_path, kill):
    command = [sys.executable, "-m", "sonify", "run", "--config", str(config_file), "engine.kind=ray"]
    running = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    while not (tmp_path / "run" / "run.json").exists() and running.poll() is None:
        time.sleep(0.01)
    running.send_signal(kill)
    _, error = running.communicate()
    assert running.returncode == 130, error
    assert "Traceback" not in error
    assert main(["run", "--config", str(config_file)]) == 0
    assert verify(tmp_path / "run").damage == ()
