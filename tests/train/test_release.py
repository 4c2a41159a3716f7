"""A release holds the averaged weights, a card that tells what was counted, and nothing half-written."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from huggingface_hub import ModelCard

from sonify.dataset.format import CHECKSUMS
from tests.builders import refused
from tests.train.runs import plain_config, training_config, training_input, write_pool
from train.averages import Exponential, Held
from train.checkpoints import Facts, TrainingState, save_checkpoint
from train.config import TrainConfig
from train.frozen import load_networks, make_pipeline
from train.model import init_transformer
from train.release import main, save_release
from train.released import PIPELINE_CODE, load_pipeline, pipeline_source
from train.shards import open_feature_data

CPU = torch.device("cpu")
HELD = Held(rule=Exponential(decay=0.9, warmup=True))
METRICS = [{"step": 2, "loss": 0.75, "mse": 0.5}, {"step": 4, "loss": 0.25, "mse": 0.125, "images_per_sec": 9}]
LICENCES = ["CC0", "CC BY 4.0", "CC0", "CC | odd"]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Networks, a run with features, its pool, and a training run with checkpoints of steps 2 and 4."""
    root = tmp_path_factory.mktemp("root")
    training_input(root)
    config = training_config(root)
    recordings = open_feature_data(config.data).recordings()
    write_pool(root / "data", dict(zip(recordings, LICENCES, strict=False)))
    (root / "run").mkdir()
    (root / "run" / "config.yaml").write_text(yaml.safe_dump(plain_config(root)))
    for line in METRICS:
        step = int(line["step"])
        model, _ = init_transformer(config.model, seed=step)
        ema, _ = init_transformer(config.model, seed=100 + step)
        average = {name: parameter.detach() for name, parameter in ema.named_parameters()}
        bound = {"optimizer": {"ema_decay": 0.9} | ({"ema_warmup": True} if step == 4 else {})}
        facts = Facts(bound=bound, network=dict(model.config), recordings=recordings)
        state = TrainingState(step=step, model=model.state_dict(), ema=average, optimizer={})
        save_checkpoint(root / "run", state, facts, keep=9)
    (root / "run" / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in METRICS))
    return root


def release(root: Path, *words: object) -> int:
    return main([str(word) for word in ("--run", root / "run", *words)])


@pytest.mark.parametrize(("words", "step"), [((), 4), (("--step", 2), 2)])
def test_a_checkpoint_becomes_a_pipeline_with_the_averaged_weights(
    words: tuple, step: int, root: Path, tmp_path: Path
) -> None:
    assert release(root, *words, "--out", tmp_path / "model") == 0

    pipeline = load_pipeline(tmp_path / "model", CPU, torch.float32)
    average, _ = init_transformer(training_config(root).model, seed=100 + step)
    expected = dict(average.named_parameters())
    found = dict(pipeline.transformer.named_parameters())
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert pipeline.audio_encoder is not None
    assert pipeline.config["clip_seconds"] == 5.0
    assert (pipeline.config["level"], pipeline.config["loudness_lufs"]) == ("window", [-32.0, -28.0])
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    suffixes = {path.suffix for path in (tmp_path / "model").rglob("*") if path.is_file()}
    assert suffixes == {".json", ".safetensors", ".md", ".txt", ".yaml", ".py", ".sha256"}
    assert (tmp_path / "model" / PIPELINE_CODE).read_bytes() == pipeline_source()


def test_the_card_tells_what_was_counted(root: Path, tmp_path: Path) -> None:
    assert release(root, "--out", tmp_path / "model") == 0

    card = ModelCard.load(tmp_path / "model" / "README.md")
    metadata = card.data.to_dict()
    assert (metadata["library_name"], metadata["license"]) == ("diffusers", "other")
    assert "audio-to-image" in metadata["tags"]
    text = card.text
    for expected in ("| images | 12 |", "| recordings | 12,", "| CC0 | 2 |", "| CC BY 4.0 | 1 |", "| CC / odd | 1 |"):
        assert expected in text
    assert "| not known | 8 |" in text
    assert "| step | 4 |" in text
    assert "by its weights | 0.25 |" in text
    assert "FID" in text
    assert "not measured" in text
    # 4 steps of 8 images over 12
    assert "| visits of an image, on average | 2.7 |" in text
    assert str(root) not in card.content


def test_the_card_takes_no_training_step_for_an_evaluation(root: Path, tmp_path: Path) -> None:
    assert release(root, "--step", 2, "--out", tmp_path / "model") == 0

    text = (tmp_path / "model" / "README.md").read_text()
    assert "they are not an evaluation" in text
    assert "images a second" not in text
    # 2 steps of 8 images over 12, of a run that was to take 6
    assert "| visits of an image, on average | 1.3 |" in text


def test_the_card_says_how_the_weights_were_averaged_by_what_their_checkpoint_says(root: Path, tmp_path: Path) -> None:
    """The run's configuration of then has no key of the warm-up: the checkpoint of step 2 is as old."""
    for step, how in ((2, "without warm-up"), (4, "with warm-up: at most n / (n + 9) at step n")):
        assert release(root, "--step", step, "--out", tmp_path / "model") == 0
        card = (tmp_path / "model" / "README.md").read_text()
        assert f"The weights are an exponential average, decay 0.9 ({how}), after step {step}." in card


def test_recordings_and_configuration_go_with_it(root: Path, tmp_path: Path) -> None:
    assert release(root, "--out", tmp_path / "model") == 0

    config = training_config(root)
    names = (tmp_path / "model" / "recordings.txt").read_text().splitlines()
    assert names == open_feature_data(config.data).recordings()
    assert len(names) == 12
    stored = yaml.safe_load((tmp_path / "model" / "config.yaml").read_text())
    expected = config.model_dump(mode="json")
    expected |= {"run_dir": "run", "vae": "vae", "ast": "ast", "data": expected["data"] | {"runs": ["data"]}}
    assert stored == expected
    assert TrainConfig.model_validate_json(json.dumps(stored)).model == config.model


def test_a_projectors_recordings_go_with_it_where_they_lie_beside(root: Path, tmp_path: Path) -> None:
    config = training_config(root)
    data = open_feature_data(config.data)
    first = data.recordings()[0]
    beside = tmp_path / "mine" / "recordings.txt"
    beside.parent.mkdir()
    pipeline = make_pipeline(init_transformer(config.model, seed=0)[0], config, load_networks(config), data)
    init = config.model.init.model_copy(update={"projector": beside.with_name("projector.safetensors")})
    began = config.model_copy(update={"model": config.model.model_copy(update={"init": init})})

    for named, heard in ((f"only/heard before\n{first}\n", ["only/heard before"]), (None, [])):
        beside.write_text(named) if named else beside.unlink()
        save_release(tmp_path / "model", pipeline, began, data, METRICS, step=4, held=HELD)
        names = (tmp_path / "model" / "recordings.txt").read_text().splitlines()
        assert names == sorted([*data.recordings(), *heard])
        card = (tmp_path / "model" / "README.md").read_text()
        assert f"| recordings | {12 + len(heard)}, all named" in card
        assert ("its 2 recordings are named" if named else "which recordings it heard is not known") in card
        assert str(tmp_path) not in card + (tmp_path / "model" / "config.yaml").read_text()
    beside.write_bytes(b"\xff")
    with refused("mine/recordings.txt: cannot be read as text"):
        save_release(tmp_path / "model", pipeline, began, data, METRICS, step=4, held=HELD)


def test_no_place_of_the_machine_is_in_it(root: Path, tmp_path: Path) -> None:
    """Not those of the run, nor where its networks were loaded from, which diffusers writes into their files."""
    assert release(root, "--out", tmp_path / "model") == 0

    files = [path for path in (tmp_path / "model").rglob("*") if path.is_file()]
    assert len(files) == 14
    for path in files:
        assert not any(str(place).encode() in path.read_bytes() for place in (root, tmp_path, Path.cwd())), path


def test_a_release_is_sealed_as_sha256sum_does(root: Path, tmp_path: Path) -> None:
    assert release(root, "--out", tmp_path / "model") == 0

    done = subprocess.run(["sha256sum", "--check", "--strict", CHECKSUMS], cwd=tmp_path / "model", check=False)

    assert done.returncode == 0
    assert len((tmp_path / "model" / CHECKSUMS).read_text().splitlines()) == 13


def test_a_release_is_replaced_by_the_next_one(root: Path, tmp_path: Path) -> None:
    out = tmp_path / "model"
    assert release(root, "--step", 2, "--out", out) == 0
    (out / "of-the-old-one.txt").write_text("")

    assert release(root, "--step", 4, "--out", out) == 0

    assert "| step | 4 |" in (out / "README.md").read_text()
    assert not (out / "of-the-old-one.txt").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_what_has_a_list_of_recordings_and_is_no_release_is_not_replaced(root: Path, tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "recordings.txt").write_text("a\n")  # as checkpoints, projectors and kept scenes have
    assert release(root, "--step", 2, "--out", tmp_path / "kept") == 2
    assert [path.name for path in (tmp_path / "kept").iterdir()] == ["recordings.txt"]


def test_a_release_that_fails_leaves_the_one_before(root: Path, tmp_path: Path, monkeypatch) -> None:
    out = tmp_path / "model"
    assert release(root, "--step", 2, "--out", out) == 0
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    config = training_config(root)
    data = open_feature_data(config.data)
    transformer, _ = init_transformer(config.model, seed=0)
    pipeline = make_pipeline(transformer, config, load_networks(config), data)
    pipeline.vae.register_to_config(broken=object())  # not to be written as JSON

    with pytest.raises(TypeError):
        save_release(out, pipeline, config, data, METRICS, step=4, held=HELD)

    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_link_or_a_dot_means_the_folder_behind_it(root: Path, tmp_path: Path, monkeypatch) -> None:
    out = tmp_path / "model"
    assert release(root, "--step", 2, "--out", out) == 0
    (tmp_path / "link").symlink_to(out)

    assert release(root, "--step", 4, "--out", tmp_path / "link") == 0
    assert (tmp_path / "link").is_symlink()
    assert "| step | 4 |" in (out / "README.md").read_text()

    monkeypatch.chdir(out)
    assert release(root, "--step", 2, "--out", ".") == 0
    monkeypatch.chdir(tmp_path)
    assert "| step | 2 |" in (out / "README.md").read_text()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "model"]


FILL_TWO_DISKS = """
import sys
from pathlib import Path
from train.release import main
for full in map(Path, sys.argv[2:]):
    print(main(["--run", sys.argv[1], "--out", str(full / "model")]), list(full.iterdir()))
"""


@pytest.mark.slow
def test_a_full_disk_leaves_nothing(root: Path, tmp_path: Path) -> None:
    """A transformer has 219 kB, an AST 261 kB: on the first disk diffusers fails, on the second transformers."""
    if subprocess.run(["unshare", "-rm", "true"], check=False).returncode:
        pytest.skip("no user namespaces here")
    disks = {tmp_path / "a": 64, tmp_path / "b": 400}
    for disk in disks:
        disk.mkdir()
    mounts = "".join(f'mount -t tmpfs -o size={kilobytes}k tmpfs "{disk}" && ' for disk, kilobytes in disks.items())
    command = ["sh", "-c", mounts + 'exec "$0" "$@"', sys.executable, "-c", FILL_TWO_DISKS, root / "run", *disks]

    done = subprocess.run(["unshare", "-rm", *command], capture_output=True, text=True, check=False)

    assert done.stdout == "3 []\n3 []\n", done.stderr
    said = [line for line in done.stderr.splitlines() if line.startswith("train.release:")]
    assert len(said) == 2
    assert all("no space left on the disk" in line for line in said)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--run", "RUN", "--step", "3", "--out", "OUT"], "no checkpoint of step 3"),
        (["--run", "ELSEWHERE", "--out", "OUT"], "not a training run"),
        (["--run", "RUN", "--out", "OTHER"], "something else than a release"),
        (["--run", "RUN", "--out", "FILE"], "something else than a release"),
        (["--run", "RUN", "--out", "BELOW_FILE"], "cannot be written (Not a directory)"),
        (["--run", "RUN", "--out", "LONG"], "cannot be written (File name too long)"),
        (["--run", "RUN", "--out", "LOOP"], "something else than a release"),
        (["--run", "RUN", "--out", "/"], "something else than a release"),
        (["--run", "RUN", "--step", "x", "--out", "OUT"], "--step"),
    ],
)
def test_wrong_input_is_one_clear_line(
    words: list[str], message: str, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    places = {"RUN": root / "run", "OUT": tmp_path / "out", "ELSEWHERE": tmp_path, "OTHER": tmp_path / "other"}
    places["FILE"] = tmp_path / "file"
    places["FILE"].write_text("")
    places |= {"BELOW_FILE": tmp_path / "file" / "model", "LONG": tmp_path / ("x" * 250), "LOOP": tmp_path / "loop"}
    places["LOOP"].symlink_to(places["LOOP"])
    places["OTHER"].mkdir()
    (places["OTHER"] / "thesis.txt").write_text("years of work")

    try:
        code = main([str(places.get(word, word)) for word in words])
    except SystemExit as end:
        code = end.code

    lines = capsys.readouterr().err.splitlines()
    assert (code, len(lines)) == (2, 1)
    assert message in lines[0]
    assert not places["OUT"].exists()
    assert (places["OTHER"] / "thesis.txt").exists()


def test_a_damaged_checkpoint_is_named(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    shutil.copytree(root / "run", tmp_path / "run")
    ema = tmp_path / "run" / "checkpoints" / "step-00000004" / "ema.safetensors"
    ema.write_bytes(ema.read_bytes()[:-1])

    assert main(["--run", str(tmp_path / "run"), "--out", str(tmp_path / "out")]) == 2

    assert "step-00000004: damaged" in capsys.readouterr().err
