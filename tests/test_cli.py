import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

import sonify
from sonify.cli import main
from sonify.report.verify import verify
from tests.builders import hash_run, small_config, small_input


@pytest.fixture
def config_file(tmp_path):
    small_input(tmp_path, photos=12)
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(small_config(tmp_path).model_dump(mode="json")))
    return path


@pytest.mark.parametrize("option", ["--jobs", "--record"])
def test_an_empty_folder_name_is_refused_and_not_taken_for_the_working_one(option, capsys):
    with pytest.raises(SystemExit) as raised:
        main(["doctor", option, ""])
    assert raised.value.code == 2
    assert "expected a folder on this machine, found ''" in capsys.readouterr().err


def test_a_record_that_cannot_be_kept_is_refused_before_anything_is_examined(tmp_path, capsys):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "jobs").mkdir()
    assert main(["doctor", "--jobs", str(tmp_path / "jobs"), "--record", str(tmp_path / "pipe")]) == 2
    said = capsys.readouterr()
    assert (said.out, len(said.err.splitlines())) == ("", 1)
    assert (tmp_path / "pipe").is_fifo()


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


def test_a_probe_says_what_the_run_would_cost_and_a_dry_run_says_it_again(config_file, tmp_path, capsys):
    command = ["run", "--config", str(config_file), "--prices", "cpu_hour=0.04,cpu_watts=8,currency=EUR"]
    assert main([*command, "--probe"]) == 0
    probed = capsys.readouterr().out.splitlines()
    assert "# render: 2 units, 1 done, 1 to do, some 0 s at this run's rate" in probed
    heads = next(line.split() for line in probed if "CPU h" in line)
    assert heads == ["#", "GPU", "h", "CPU", "h", "kWh", "EUR", "|", "GPU", "h", "CPU", "h", "kWh", "EUR"]
    cells = next(line.split() for line in probed if line.startswith("# render  "))
    assert cells[2] == "0"
    assert float(cells[5]) == pytest.approx(float(cells[3]) * 0.04, rel=0.01)  # money is hours times the price
    assert main([*command, "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert yaml.safe_load(out)["seed"] == 0  # what follows the configuration are comments
    assert out.splitlines()[-len(probed) :] == probed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run"], "run: expected --config F, or --images DIR and --sounds DIR, found neither; `"),
        (["run", "--images", "photos"], "or --images DIR and --sounds DIR, found --images; `"),
        (["pool", "--sounds", "s", "--out", "x"], "pool: expected --config F, or --images DIR and --sounds DIR, found"),
        (["run", "mine.yaml"], "unknown argument 'mine.yaml': write --config mine.yaml"),
        (["run", "--config", "CONFIG", "/", "/"], "unknown argument '/': a folder; write --images DIR --sounds DIR"),
        (
            ["run", "--config", "nowhere.yaml"],
            "no such file, nor one that comes along (demo, folder, laptop, qwen, sam, sam_laion)",
        ),
        (["run", "--config", "CONFIG", "mixx.lufs=[1,2]"], "mixx: no such key; did you mean mix?"),
        (["run", "--config", "CONFIG", "nonsense"], "unknown argument 'nonsense': expected key=value, such as seed=3"),
        (["run", "--config", "CONFIG", "images.path", "P"], "a key and its value are joined by =: images.path=P"),
        (["run", "images.path", "P", "--config", "CONFIG"], "a key and its value are joined by =: images.path=P"),
        (["run", "--config", "CONFIG", "seed:3"], "a key and its value are joined by =: seed=3"),
        (["run", "--config", "CONFIG", "=3"], "override '=3': expected key=value"),
        (["run", "--config", "CONFIG", "mix.lufs=[-34,", "seed=1"], "quote it for the shell: 'mix.lufs=[-34, -30]'"),
        (["run", "--config", "CONFIG", "audio.sources.path=x"], "found 'path'; did you mean audio.sources.0.path=x?"),
        (["run", "--config", "CONFIG", "audio.sources.3.path=x"], "expected position 0, the only one, found '3'"),
        (["run", "--config", "CONFIG", "--images", "nowhere"], "images.path: no such file or folder: "),
        (
            ["run", "--config", "CONFIG", "--images", "/", "images.path=/"],
            "--images: is images.path, which is given twice",
        ),
        (["run", "--config", "CONFIG", "--out", "x", "run_dir=y"], "--out: is run_dir, which is given twice"),
        (["run", "--config", "CONFIG", "--sounds", ""], "--sounds: expected a folder, found nothing: is a variable"),
        (["run", "--config", "CONFIG", "--redo", "nothing"], "--redo nothing: expected one of pool"),
        (["run", "--config", "CONFIG", "--redo", "rendr"], "; did you mean render?"),
        (["init", "latpop"], "init latpop: expected one of demo, folder, laptop, qwen, sam, sam_laion, "),
        (["eval", "loudnes"], "sonify eval: no such command or study: 'loudnes'; did you mean loudness?"),
        (["run", "--config", "CONFIG", "--redo", "pair", "--dry-run"], "--dry-run: says what is to do as things stand"),
        (["run", "--config", "CONFIG", "--redo", "pair", "--probe"], "--probe: goes on as things stand; leave --redo"),
        (["run", "--config", "CONFIG", "--dry-run", "--probe"], "--dry-run: does nothing, and --probe does one unit"),
        (["run", "--config", "CONFIG", "--prices", "gpu_hour=2"], "--prices: goes with --dry-run or --probe"),
        (["run", "--config", "CONFIG", "--dry-run", "--prices", "gpu_hour"], "--prices: expected gpu_hour=..., "),
        (["pool", "--config", "CONFIG", "--probe", "--prices", "cpu_hour=-1"], "--prices: cpu_hour: input should be"),
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
    ("arguments", "message"),
    [
        (["fly"], "sonify: no such command: 'fly': run, pool, concepts"),
        (["rnu", "--config", "x"], "sonify: no such command: 'rnu'; did you mean run?"),
        (["--verbose", "statsu"], "sonify: no such command: 'statsu'; did you mean status?"),
        (["version"], "sonify: no such command: 'version'; did you mean --version?"),
        (["help", "rnu"], "sonify: no such command: 'rnu'; did you mean run?"),
        (["mine.yaml"], "sonify: mine.yaml: a configuration; expected a command before it: "),
        (["RUN"], "a run; expected a command before it, such as "),
        (["--foo", "leakage"], "sonify: no such option before a command: --foo; expected COMMAND"),
        (["-v"], "sonify: no such option before a command: -v"),
        (["run", "--config"], "sonify run: argument --config: expected one argument"),
        (["run", "--cofnig", "x"], "sonify run: no such option: --cofnig; did you mean --config?"),
        (["run", "--config", "x", "--nonsense"], "sonify run: no such option: --nonsense (see --help)"),
        (["run", "--config", "x", "--images.path", "P"], "sonify run: keys are written without dashes: images.path=P"),
        (["run", "--config", "x", "--seed=3"], "sonify run: keys are written without dashes: seed=3"),
        (["status"], "sonify status: expected RUN: the folder of a run, such as runs/demo (see --help)"),
        (["status", "--jsn", "RUN"], "sonify status: no such option: --jsn; did you mean --json?"),
        (["publish", "RUN"], "sonify publish: expected --out: folder of the publication"),
        (["publish", "RUN", "--out", "s3://b"], "sonify publish: argument --out: expected a folder on this machine"),
        (["leakage", "RUN", "--out", "s3://b"], "sonify leakage: argument --out: expected a folder on this machine"),
        (["leakage"], "sonify leakage: expected RUN: the folder of a run; expected --out: "),
    ],
)
def test_a_wrong_command_is_one_line_and_2(tmp_path, capsys, arguments, message):
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(SystemExit) as stopped:
        main([str(tmp_path) if word == "RUN" else word for word in arguments])
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1


@pytest.mark.parametrize("arguments", [[], ["help"], ["--help"]])
def test_help_is_printed_and_is_no_mistake(capsys, arguments):
    try:
        code = main(arguments)
    except SystemExit as stopped:
        code = stopped.code
    out = capsys.readouterr().out
    assert code == 0
    assert out.startswith("usage: sonify ")
    for command in ("run", "init", "status", "leakage", "train", "generate", "eval", "demo"):
        assert f"\n    {command} " in out


@pytest.mark.parametrize("arguments", [["help", "run"], ["run", "--help"], ["run", "-h"]])
def test_help_of_a_command_names_its_shortcuts(capsys, arguments):
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 0
    out = capsys.readouterr().out
    assert all(option in out for option in ("--images DIR", "--sounds DIR", "--out RUN"))


@pytest.mark.parametrize("place", [0, 1, 3])
def test_more_is_said_wherever_it_is_asked_for(config_file, capsys, monkeypatch, place):
    heard = []
    monkeypatch.setattr("sonify.cli._run", lambda arguments: heard.append(arguments.verbose))
    words = ["run", "--config", str(config_file)]
    assert main(words) == main([*words[:place], "--verbose", *words[place:]]) == 0
    assert heard == [False, True]


def test_the_version_is_said_whatever_follows(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["--version", "leakage"])
    assert stopped.value.code == 0
    assert capsys.readouterr().out == f"sonify {sonify.__version__}\n"


def test_folders_of_ones_own_need_no_configuration(tmp_path, monkeypatch, capsys):
    small_input(tmp_path, photos=4, recordings=4)
    monkeypatch.chdir(tmp_path)
    shortcuts = ["--images", "photos", "--sounds", "sounds", "--out", "runs/x: y"]
    assert main(["run", *shortcuts, "--dry-run", "seed=7"]) == 0
    config = yaml.safe_load(capsys.readouterr().out)
    assert config["run_dir"] == "runs/x: y"
    assert config["seed"] == 7
    assert config["images"] == {**config["images"], "path": str(tmp_path / "photos"), "shard_size": 64}
    assert config["retrieval"]["min_cosine"] == 0.2
    for command in ("pool", "concepts", "pair", "render"):
        assert main([command, *shortcuts, "engine.kind=local"]) == 0
    assert len(list((tmp_path / "runs/x: y/shards").rglob("*.tar"))) == 1


def test_one_option_cannot_name_several_collections(config_file, tmp_path, capsys):
    second = f"{{kind: folder, name: b, path: {tmp_path / 'sounds'}}}"
    sources = f"audio.sources=[{{kind: folder, path: {tmp_path / 'sounds'}}}, {second}]"
    assert main(["run", "--config", str(config_file), sources, "--sounds", str(tmp_path), "--dry-run"]) == 2
    assert "--sounds: is audio.sources.0.path, which is given twice" in capsys.readouterr().err
    raw = yaml.safe_load(config_file.read_text())
    raw["audio"]["sources"].append({**raw["audio"]["sources"][0], "name": "b"})
    config_file.write_text(yaml.safe_dump(raw))
    assert main(["run", "--config", str(config_file), "--sounds", str(tmp_path / "sounds")]) == 2
    assert "--sounds: the configuration has 2 collections; write audio.sources.0.path=DIR" in capsys.readouterr().err


def test_init_writes_a_configuration_that_runs(tmp_path, monkeypatch, capsys):
    small_input(tmp_path, photos=4, recordings=4)
    monkeypatch.chdir(tmp_path)
    assert main(["init"]) == 0
    assert capsys.readouterr().out.startswith("folder.yaml: edit it, then: ")
    assert main(["run", "--config", "folder.yaml", "--dry-run"]) == 0
    assert main(["init"]) == 2
    assert "folder.yaml: is there already and stays as it is" in capsys.readouterr().err
    assert main(["init", "--list"]) == 0
    assert any(line.startswith("train/pixart_b_256 ") for line in capsys.readouterr().out.splitlines())


def test_a_finished_run_says_the_command_to_look_at_it(config_file, tmp_path, caplog):
    caplog.set_level("INFO")
    assert main(["run", "--config", str(config_file), "--out", f"{tmp_path}/my run"]) == 0
    assert f"sonify gallery '{tmp_path}/my run'" in caplog.messages[-1]


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


def test_doctor_says_what_it_finds_and_ends_with_0_or_3(config_file, tmp_path, capsys):
    record = tmp_path / "deep" / "record.json"
    assert main(["doctor", "--config", str(config_file), "--record", str(record)]) == 0
    out = capsys.readouterr().out
    assert out.startswith("ok         input: every place that the configuration names is there")
    assert re.fullmatch(r"\d+ ok, \d+ notes?, 0 faults, \d+ not tried; [\d.]+ s", out.splitlines()[-1])
    assert "\x1b" not in out
    assert json.loads(record.read_text())["findings"][0]["about"] == "input"
    assert [path.name for path in record.parent.iterdir()] == ["record.json"]
    assert main(["doctor", "--config", str(config_file), "images.path=nowhere", "--json"]) == 3
    document = json.loads(capsys.readouterr().out)
    assert document["findings"][0]["outcome"] == "fault"
    assert document.keys() == {"findings", "counts", "versions", "machine", "seconds"}
    assert document["counts"]["fault"] == 1
    assert main(["doctor", "--config", str(config_file), "--compare", str(record)]) == 0
    assert "ok         compared: models and versions are as they were recorded" in capsys.readouterr().out
    assert main(["doctor", "--config", str(config_file), "--compare", str(config_file)]) == 2
    assert "expected a recording of `sonify doctor --record FILE`" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_doctor_takes_the_words_of_the_run_that_it_is_for(tmp_path, capsys):
    small_input(tmp_path, photos=4)
    words = ["--images", str(tmp_path / "photos"), "--sounds", str(tmp_path / "sounds"), "--out", str(tmp_path / "run")]
    assert main(["doctor", *words, "engine.kind=local"]) == 0
    assert "4 images, 16 recordings" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "doctor: expected --config F"),
        (["--config", "nowhere"], "config nowhere: no such file"),
        (["--jobs", "nowhere"], "--jobs nowhere: no such folder"),
        (["--jobs", "tests", "seed=1"], "seed=1 overrides a configuration, and there is none"),
        (["--config", "folder", "--json", "images=[1]"], "images"),
    ],
)
def test_doctor_refuses_what_it_cannot_read(words, message, capsys):
    assert main(["doctor", *words]) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.out == ""


def test_doctor_speaks_in_colours_on_a_terminal_only(config_file):
    ours, theirs = os.openpty()
    command = [sys.executable, "-m", "sonify", "doctor", "--config", str(config_file), "images.path=nowhere"]
    environment = {**os.environ, "TERM": "xterm", "PYTHONPATH": str(Path(sonify.__file__).parents[1])}
    environment.pop("NO_COLOR", None)
    with subprocess.Popen(command, stdout=theirs, env=environment) as doctor:
        os.close(theirs)
        said = b""
        while block := read_terminal(ours):
            said += block
    os.close(ours)
    assert doctor.returncode == 3
    assert re.search(rb"\x1b\[[\d;]*31mfault", said)
    assert b"images.path: no such file or folder" in said


def read_terminal(terminal: int) -> bytes:
    try:
        return os.read(terminal, 65536)
    except OSError:  # nobody writes there any more
        return b""
