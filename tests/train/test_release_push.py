"""Weights go to a hub on loopback, and come from one: whole, resumed, refused in one line, and never as code."""

import hashlib
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import soundfile
import torch
from PIL import Image

import train.generate
from sonify.config.loader import make_settings
from sonify.dataset.format import CHECKSUMS, seal
from tests.builders import RATE_HZ, sine
from tests.dataset.hub import Hub, logged_in, plainly
from tests.processes import run_python
from tests.servers import COMMIT, MODEL, ModelHub, running_hub
from tests.tiny_networks import edit_json, write_tiny_pixart
from tests.train.runs import plain_config
from train.averages import Exponential, Held
from train.card import Terms, TrainedOn, make_card
from train.config import TrainConfig
from train.manifest import read_manifest
from train.release import main
from train.released import PIPELINE_CODE, find_release, load_pipeline, pipeline_source

REPO = "me/set"
CHOSEN = "---\nlicense: cc-by-4.0\n---\n"
NOT_CHOSEN = "---\nlicense: other\nlicense_name: not-chosen\n---\n"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_tiny_pixart(tmp_path_factory.mktemp("whole") / "model", clip_seconds=2.0)
    (folder / PIPELINE_CODE).write_bytes(pipeline_source())
    (folder / "README.md").write_text(CHOSEN)
    (folder / "recordings.txt").write_text("a\n")
    seal(folder)
    return folder


@pytest.fixture
def out(whole: Path, tmp_path: Path) -> Path:
    """A release of one's own to break."""
    return Path(shutil.copytree(whole, tmp_path / "model"))


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """Weights go by themselves, as they do at the real one."""
    with logged_in(monkeypatch, tmp_path) as hub, plainly(monkeypatch):
        hub.large = (".safetensors",)
        yield hub


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def run(*words: object) -> int:
    try:
        return main([str(word) for word in words])
    except SystemExit as end:
        return int(end.code or 0)


def said(capsys: pytest.CaptureFixture) -> str:
    """The one line that is said of an error."""
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("train.release:")]
    assert len(lines) == 1, lines
    return lines[0]


def test_all_of_a_release_goes_as_a_model(out: Path, hub: Hub, capsys: pytest.CaptureFixture) -> None:
    assert run("--out", out, "--push", REPO) == 0

    assert hub.files == contents(out)
    assert hub.created[0].get("type", "model") == "model"
    assert hub.committed_to == [f"/api/models/{REPO}/commit/main"]
    assert len(hub.sent_large) == 3
    assert capsys.readouterr().out.splitlines()[-1] == f"{len(hub.files)} files, 0.7 MB, are in {REPO}"

    assert run("--out", out, "--push", REPO) == 0
    assert (len(hub.commits), len(hub.sent_large)) == (1, 3)


def test_a_dry_run_lists_what_would_go_and_asks_nobody(
    out: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.delenv("HF_TOKEN")

    assert run("--out", out, "--push", REPO, "--dry-run") == 0

    assert hub.requests == 0
    *lines, last = capsys.readouterr().out.splitlines()
    assert {tuple(line.split()) for line in lines} == {
        (hashlib.sha256(data).hexdigest(), f"{len(data):,}", name) for name, data in contents(out).items()
    }
    assert last == f"{len(lines)} files, 0.7 MB, would go in {REPO}"


def test_a_push_that_broke_off_goes_on(out: Path, hub: Hub, capsys: pytest.CaptureFixture) -> None:
    hub.closes_after = 2

    assert run("--out", out, "--push", REPO) == 3

    assert "the same command goes on" in said(capsys)
    assert (hub.files, len(hub.stored)) == ({}, 2)
    hub.closes_after = None
    assert run("--out", out, "--push", REPO) == 0
    assert hub.files == contents(out)
    assert len(hub.sent_large) == 3


def test_what_an_older_release_had_leaves_and_what_is_not_ours_stays(out: Path, hub: Hub) -> None:
    older = ("transformer/diffusion_pytorch_model-00001-of-00002.safetensors", "vae/diffusion_pytorch_model.bin")
    older += ("pytorch_model.bin", "training_args.pt")
    others = ("LICENSE", ".gitattributes", "pictures/dog.png")
    hub.files = dict.fromkeys((*older, *others), b"x")

    assert run("--out", out, "--push", REPO) == 0

    assert hub.files == contents(out) | dict.fromkeys(others, b"x")


def test_a_repository_of_somebody_else_is_refused(out: Path, hub: Hub, capsys: pytest.CaptureFixture) -> None:
    hub.refuse = {"/repos/create": 403, "/preupload/": 403}

    assert run("--out", out, "--push", REPO) == 2

    assert "the hub answers 403" in (line := said(capsys))
    assert "is the token allowed to write there?" in line
    assert hub.files == {}


def test_a_private_push_into_a_public_repository_is_refused(out: Path, hub: Hub, capsys: pytest.CaptureFixture) -> None:
    assert run("--out", out, "--push", REPO, "--private") == 2
    assert "it is there and public" in said(capsys)
    hub.private = True
    assert run("--out", out, "--push", REPO, "--private") == 0
    assert hub.created[-1]["visibility"] == "private"


def test_without_a_token_nobody_is_asked(
    out: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.delenv("HF_TOKEN")

    assert run("--out", out, "--push", REPO) == 2

    assert "no token of the hub is here" in said(capsys)
    assert hub.requests == 0


def nothing_there(out: Path) -> str:
    shutil.rmtree(out)
    return "not a released pipeline: no model_index.json in it"


def something_else(out: Path) -> str:
    (out / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
    return "expected a pipeline of kind AudioPixArtPipeline or AudioTokenPipeline, found StableDiffusionPipeline"


def made_by_an_older_version(out: Path) -> str:
    (out / CHECKSUMS).unlink()
    return "`python -m train.release --run R --licence ID --out DIR` makes one"


def nobody_chose(out: Path) -> str:
    (out / "README.md").write_text(NOT_CHOSEN)
    seal(out)
    return "the licence of the weights is not chosen: make the release again with --run R --licence ID"


def pickle_beside(out: Path) -> str:
    (out / "transformer" / "diffusion_pytorch_model.bin").write_bytes(b"x")
    return "transformer/diffusion_pytorch_model.bin: is not of the release"


def hidden_beside(out: Path) -> str:
    (out / ".env").write_text("HF_TOKEN=hf_secret")
    return ".env: is not of the release"


def weights_linked(out: Path) -> str:
    weights = out / "vae" / "diffusion_pytorch_model.safetensors"
    weights.rename(out.parent / "elsewhere")
    weights.symlink_to(out.parent / "elsewhere")
    return "vae/diffusion_pytorch_model.safetensors: is a link"


def folder_linked(out: Path) -> str:
    (out / "more").symlink_to("/etc")
    return "more: is not of the release"


def weights_changed(out: Path) -> str:
    weights = out / "vae" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"?")
    return "vae/diffusion_pytorch_model.safetensors: is not what checksums.sha256 says"


@pytest.mark.parametrize(
    "harm",
    [
        *(nothing_there, something_else, made_by_an_older_version, nobody_chose, pickle_beside, hidden_beside),
        *(weights_linked, folder_linked, weights_changed),
    ],
)
def test_a_folder_that_is_not_a_release_as_it_was_made_is_refused(
    out: Path, hub: Hub, harm: Callable[[Path], str], capsys: pytest.CaptureFixture
) -> None:
    expected = harm(out)
    for words in ((), ("--dry-run",)):
        assert run("--out", out, "--push", REPO, *words) == 2
        assert expected in said(capsys)
    assert hub.requests == 0


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("", "expected a training run to release, or --push REPO"),
        ("--dry-run --run R", "--dry-run: goes with --push REPO"),
        ("--private --run R", "--private: goes with --push REPO"),
        ("--push me/set --licence mit", "--licence: goes with --run"),
        ("--push me/set --step 3", "--step: goes with --run"),
        ("--push me/set --image-licence CC0", "--image-licence: goes with --run"),
        ("--push me/set --run R", "--push: expected --licence ID"),
        ("--push me/set --run R --licence other", "'other': names no licence"),
        ("--push me --run R --licence mit", "--push me: expected a repository such as you/images-from-sounds"),
        ("--push ../x --run R --licence mit", "--push ../x: expected a repository"),
    ],
)
def test_options_that_do_not_fit_are_one_line(
    words: str, expected: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert run("--out", tmp_path / "model", *words.split()) == 2
    assert expected in said(capsys)
    assert not (tmp_path / "model").exists()


# --- and from a hub


@pytest.fixture
def models(out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModelHub]:
    """A hub that has the release as `MODEL`."""
    with running_hub(monkeypatch, tmp_path / "cache", out) as hub:
        yield hub


@pytest.fixture
def sound(tmp_path: Path) -> Path:
    soundfile.write(tmp_path / "a.wav", sine(seconds=2.0), RATE_HZ)
    return tmp_path / "a.wav"


def generate(model: object, sound: Path, out: Path, *words: str) -> int:
    return train.generate.main(
        ["--model", str(model), "--audio", str(sound), "--out", str(out), "--steps", "2", "--device", "cpu", *words]
    )


def test_a_release_of_the_hub_makes_the_same_image_and_is_pinned(
    out: Path, models: ModelHub, sound: Path, tmp_path: Path
) -> None:
    assert generate(MODEL, sound, tmp_path / "theirs", "--seeds", "1") == 0
    assert generate(out, sound, tmp_path / "ours", "--seeds", "1") == 0

    (theirs,), (ours,) = read_manifest(tmp_path / "theirs"), read_manifest(tmp_path / "ours")
    assert (theirs.model, ours.model) == (f"{MODEL}@{COMMIT}", str(out))
    assert theirs.model_sha256 == ours.model_sha256
    images = [Image.open(tmp_path / name / theirs.image) for name in ("theirs", "ours")]
    assert images[0].tobytes() == images[1].tobytes()


def test_no_code_of_a_release_is_fetched(out: Path, models: ModelHub, sound: Path, tmp_path: Path) -> None:
    for code in ("scheduler/evil.py", "transformer/diffusion_pytorch_model.bin", "vae/model.pkl", "None.py"):
        (out / code).write_bytes(b"raise SystemExit(9)")

    assert generate(MODEL, sound, tmp_path / "out.png") == 0

    fetched = {path.rpartition(f"{COMMIT}/")[2] for path in models.asked if "/resolve/" in path}
    assert fetched == {
        "model_index.json",
        "transformer/config.json",
        "transformer/diffusion_pytorch_model.safetensors",
        "vae/config.json",
        "vae/diffusion_pytorch_model.safetensors",
        "scheduler/scheduler_config.json",
        "audio_encoder/config.json",
        "audio_encoder/model.safetensors",
        "feature_extractor/preprocessor_config.json",
    }


@pytest.mark.parametrize("spelt", [MODEL, f"{MODEL}@main", f"{MODEL}@{COMMIT}"])
def test_what_was_fetched_is_pinned_and_needs_no_network(spelt: str, models: ModelHub) -> None:
    fetched = find_release(spelt)
    assert (fetched.model, fetched.identity) == (f"{MODEL}@{COMMIT}", COMMIT)
    assert fetched.path.name == COMMIT
    models.asked.clear()

    assert find_release(spelt) == fetched
    assert find_release(fetched.model) == fetched
    assert models.asked == []


BARE = """
import sys
sys.modules["sonify"] = sys.modules["train"] = None  # whoever imports them now fails
"""


def test_the_lines_of_the_card_work_where_this_package_is_not_installed(
    out: Path, models: ModelHub, sound: Path, tmp_path: Path
) -> None:
    """As they stand in it, from the hub, with a cache of their own."""
    sound.rename(tmp_path / "dog.wav")
    config = make_settings(plain_config(tmp_path), TrainConfig, check_paths=False)
    seen = TrainedOn(step=1, num_images=1, recordings=(), licences={}, lufs=(), networks={})
    terms, held = Terms(licence="mit", repo=MODEL), Held(rule=Exponential(decay=0.9, warmup=True))
    card = make_card(config, seen, {}, held=held, terms=terms, code={}, files_bytes=0)
    (lines,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    lines = lines.replace('pipeline("dog.wav")', 'pipeline("dog.wav", seeds=[3])')
    home = {"HF_ENDPOINT": f"http://127.0.0.1:{models.server_port}", "HF_HOME": str(tmp_path / "home")}
    saved = "images[0].save('dog.png'); print(type(pipeline).__module__)"

    done = run_python(f"{BARE}{lines}{saved}", cwd=tmp_path, env={**os.environ, **home})

    assert done.stdout.startswith("diffusers_modules.local.")
    ours = load_pipeline(out, torch.device("cpu"), torch.float32)
    (expected,) = ours(str(tmp_path / "dog.wav"), seeds=[3]).images
    assert Image.open(tmp_path / "dog.png").tobytes() == expected.tobytes()
    assert any(path.endswith("/pipeline.py") for path in models.asked)


def test_a_folder_of_that_name_wins(
    out: Path, models: ModelHub, sound: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(out, tmp_path / MODEL)

    assert generate(MODEL, sound, tmp_path / "made", "--seeds", "1") == 0

    assert read_manifest(tmp_path / "made")[0].model == str(tmp_path / MODEL)
    assert models.asked == []


def test_another_pipeline_is_refused_before_its_weights_are_fetched(
    out: Path, models: ModelHub, sound: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    something_else(out)

    assert generate(MODEL, sound, tmp_path / "out.png") == 2

    assert (
        "expected a pipeline of kind AudioPixArtPipeline or AudioTokenPipeline, found StableDiffusionPipeline"
        in capsys.readouterr().err
    )
    assert [path for path in models.asked if "/resolve/" in path and "model_index" not in path] == []


def no_index(out: Path) -> str:
    (out / "model_index.json").unlink()
    return "not a released pipeline: no model_index.json in it"


def only_pickled(out: Path) -> str:
    (out / "vae" / "diffusion_pytorch_model.safetensors").rename(out / "vae" / "diffusion_pytorch_model.bin")
    return "vae: expected weights in"


def no_extractor(out: Path) -> str:
    (out / "feature_extractor" / "preprocessor_config.json").unlink()
    return "feature_extractor: expected preprocessor_config.json in it, found none"


def cut_short(out: Path) -> str:
    weights = out / "audio_encoder" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    return "it is cut short"


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ("some-people/another", "the hub has no such model, or wants a login"),
        (f"{MODEL}@v9", f"the hub has {MODEL}, but no revision v9"),
        (f"{MODEL}@", "names no revision; expected a folder, or a hub id"),
        ("model@v1", "model is a folder, which has no revisions"),
        ("runs/smoke/pipeline", "there is no such folder, and it is not a hub id"),
        ("/not/there", "there is no such folder, and it is not a hub id"),
        ("https://huggingface.co/me/set", "there is no such folder, and it is not a hub id"),
        ("\x00", "there is no such folder"),
    ],
)
@pytest.mark.usefixtures("models")
def test_a_model_that_is_nowhere_is_one_line(
    model: str,
    expected: str,
    sound: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    monkeypatch.chdir(tmp_path)

    assert generate(model, sound, tmp_path / "out.png") == 2

    (line,) = (line for line in capsys.readouterr().err.splitlines() if line.startswith("train.generate:"))
    assert expected in line


def leading_out(out: Path) -> str:
    weights = "audio_encoder/model.safetensors"
    (out / f"{weights}.index.json").write_text('{"weight_map": {"a": "../../model.safetensors"}}')
    return "expected the names of files beside it, found '../../model.safetensors'"


def of_too_many_layers(out: Path) -> str:
    edit_json(out / "transformer" / "config.json", lambda config: config.update(num_layers=100_000))
    return "transformer/config.json: expected num_layers of"


def class_of_another(out: Path) -> str:
    (out / "transformer" / "config.json").write_text(f'"{MODEL}"')
    return "transformer/config.json: expected a JSON object, found str"


@pytest.mark.parametrize(
    "harm", [no_index, only_pickled, no_extractor, cut_short, leading_out, of_too_many_layers, class_of_another]
)
def test_what_is_no_whole_release_or_asks_for_more_is_one_line(
    harm: Callable[[Path], str],
    out: Path,
    models: ModelHub,
    sound: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
) -> None:
    expected = harm(out)

    assert generate(MODEL, sound, tmp_path / "out.png") == 2

    (line,) = (line for line in capsys.readouterr().err.splitlines() if line.startswith("train.generate:"))
    assert expected in line
    assert not (tmp_path / "out.png").exists()


def not_a_commit(about: Any) -> Any:
    return about | {"sha": "../../../../evil"} if isinstance(about, dict) else about


def not_a_list(answer: Any) -> Any:
    return {"no": "list"} if isinstance(answer, list) else answer


def out_of_the_folder(answer: Any) -> Any:
    evil = "transformer/diffusion_pytorch_model/../../../../evil.safetensors"
    return [*answer, {**answer[0], "path": evil}] if isinstance(answer, list) else answer


@pytest.mark.parametrize("twist", [not_a_commit, not_a_list, out_of_the_folder])
def test_an_answer_of_the_hub_that_is_none_is_one_line(
    twist: Callable[[Any], Any], models: ModelHub, sound: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    models.twists = twist

    assert generate(MODEL, sound, tmp_path / "out.png") == 2

    (line,) = (line for line in capsys.readouterr().err.splitlines() if line.startswith("train.generate:"))
    assert "what the hub answers is of no use" in line
    assert not [*tmp_path.rglob("*evil*")]


def test_without_a_network_a_line_says_how_to_get_it(
    models: ModelHub, sound: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    models.away = True

    assert generate(MODEL, sound, tmp_path / "out.png") == 2

    error = capsys.readouterr().err
    assert f"{MODEL}: no folder here, not in the hub's cache, and not to be downloaded from here" in error
    assert f"run `hf download {MODEL} --include" in error
