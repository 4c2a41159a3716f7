"""The recipes of other people's systems, each run whole against a stand-in that behaves like its published entry point.

The systems themselves were never run.
"""

import ast
import csv
import json
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image

from eval.baseline import main
from eval.baselines.recipe import ADAPTERS, CommandRecipe, load_recipe, program_files
from eval.suites.suite import Suite
from sonify.errors import InputError
from sonify.io.write import sha256_of
from tests.eval.baselines.standins import CHECKOUTS, colour_of, tone_of, write_checkout, write_environment
from tests.eval.suites_built import make_suite
from train.manifest import OutsideSettings, read_manifest

SYSTEMS = sorted(CHECKOUTS)
BATCHES = ("audiotoken", "gluegen", "macs", "sound2scene")


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Suite:
    """Three sounds, which no test changes."""
    return make_suite(tmp_path_factory.mktemp("suite"), 3, ("dog", "rain", "train"), others=0, pictures=False)


def tones(suite: Suite) -> list[int]:
    return [tone_of(*soundfile.read(suite.folder / item.sound.file)) for item in suite.items]


def words_for(system: str, folder: Path) -> list[str]:
    write_checkout(system, folder / "checkout")
    environment = folder / "environment"
    return [f"cwd={folder / 'checkout'}", f"interpreter={sys.executable}", f"env.PYTHONPATH={environment}"]


def run(system: str, suite: Suite, folder: Path, *words: str, seeds: int = 2) -> int:
    where = ("--suite", str(suite.folder), "--seeds", str(seeds), "--out", str(folder / "out"))
    return main(["--recipe", system, *where, *words_for(system, folder), *words])


def said(capsys: pytest.CaptureFixture[str]) -> str:
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("eval.baseline: ")]
    assert len(lines) == 1, lines
    return lines[0]


def failures(out: Path) -> list[list[str]]:
    with (out / "failed.csv").open(newline="") as file:
        return list(csv.reader(file))[1:]


def assert_pictures_are_right(suite: Suite, out: Path, pairs: list[tuple[int, int]]) -> None:
    rows = read_manifest(out)
    assert sorted(row.image for row in rows) == [f"images/s{n:03d}-{seed}.png" for n, seed in sorted(pairs)]
    for n, seed in pairs:
        with Image.open(out / f"images/s{n:03d}-{seed}.png") as image:
            pixels = np.asarray(image).astype(int)
        wanted = colour_of(*soundfile.read(suite.folder / suite.items[n].sound.file), seed)
        assert np.abs(pixels - wanted).max() <= 3, (n, seed, pixels[0, 0], wanted)  # MACS writes JPEG


@pytest.mark.parametrize("system", SYSTEMS)
def test_a_system_paints_each_sound_with_each_seed_and_goes_on_after_a_kill(
    system: str, suite: Suite, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The second sound cannot be painted, and at the third all is killed; then that is over."""
    first, second, third = tones(suite)
    environment = write_environment(tmp_path / "environment", bad=f"{second}", stop=f"{third}")
    out = tmp_path / "out"

    assert run(system, suite, tmp_path) == 3

    assert "was ended by a signal" in said(capsys)
    lines = [json.loads(line) for line in (out / "outputs.jsonl").read_text().splitlines()]
    assert {"id": "s000", "seed": 0, "image": "images/s000-0.png"} in lines
    assert not (out / "manifest.jsonl").exists()
    (environment / "stop").write_text("")

    assert run(system, suite, tmp_path) == 0

    assert_pictures_are_right(suite, out, [(0, 0), (0, 1), (2, 0), (2, 1)])
    assert [line[:2] for line in failures(out)] == [["s001", "0"], ["s001", "1"]]
    assert all(f"{second} Hz cannot be painted" in line[2] for line in failures(out))
    assert (out / "log.txt").read_text().splitlines().count(f"painted {first} 0") == 1
    assert not (out / "work").exists()


def test_a_sound_that_cannot_be_painted_does_not_stop_a_folder_that_has_all_others(
    suite: Suite, tmp_path: Path
) -> None:
    environment = write_environment(tmp_path / "environment", bad=f"{tones(suite)[1]}")
    assert run("sound2scene", suite, tmp_path) == 0
    assert run("sound2scene", suite, tmp_path) == 0
    assert [line[:2] for line in failures(tmp_path / "out")] == [["s001", "0"], ["s001", "1"]]
    (environment / "bad").write_text("")
    assert run("sound2scene", suite, tmp_path) == 0
    assert_pictures_are_right(suite, tmp_path / "out", [(n, seed) for n in range(3) for seed in (0, 1)])


def test_a_strip_of_another_form_is_said(suite: Suite, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_environment(tmp_path / "environment")
    words = words_for("sound2scene", tmp_path)
    script = tmp_path / "checkout" / "test.py"
    script.write_text(script.read_text().replace("8 * 130 + 2, 132", "4 * 130 + 2, 262"))
    where = ("--suite", str(suite.folder), "--out", str(tmp_path / "out"))
    assert main(["--recipe", "sound2scene", *where, *words]) == 3
    assert "expected 8 square pictures in a row, found 522 x 262 pixels" in said(capsys)


@pytest.mark.parametrize("system", SYSTEMS)
def test_the_manifest_says_what_is_known_of_a_system(system: str, tmp_path: Path) -> None:
    recipe = load_recipe(system, words_for(system, tmp_path))
    assert isinstance(recipe, CommandRecipe)
    assert recipe.name == system
    assert recipe.repository is not None
    assert recipe.repository.startswith("https://github.com/")
    assert recipe.commit is not None
    assert len(recipe.commit) == 40
    assert recipe.trained_on
    assert recipe.heard is not None
    assert recipe.image_px is not None
    assert recipe.licence
    # the hash of each file that it needs, and of its adapter, is part of what the model is
    files = program_files(recipe, tmp_path)
    assert files.keys() >= {*recipe.needs, "{adapters}/protocol.py"}
    assert sum(name.startswith("{adapters}/") for name in files) == 2


def test_both_weights_of_sonicdiffusion_are_used(suite: Suite, tmp_path: Path) -> None:
    for system, model in (("landscape", "Landscape Model"), ("gh", "Greatest Hits Model")):
        write_environment(tmp_path / system / "environment")
        assert run(f"sonicdiffusion_{system}", suite, tmp_path / system, seeds=1) == 0
        assert (tmp_path / system / "out" / "log.txt").read_text().splitlines().count(model) == 3
        settings = read_manifest(tmp_path / system / "out")[0].settings
        assert isinstance(settings, OutsideSettings)
        assert settings.trained_on == {"landscape": ("landscapes_train", "itw"), "gh": ("greatest_hits",)}[system]


def test_sound2scene_has_eight_pictures_of_a_sound(suite: Suite, tmp_path: Path) -> None:
    write_environment(tmp_path / "environment")
    assert run("sound2scene", suite, tmp_path, "--seed", "6", seeds=4) == 0
    assert_pictures_are_right(suite, tmp_path / "out", [(n, seed) for n in range(3) for seed in (6, 7)])
    assert {line[2] for line in failures(tmp_path / "out")} == {"it makes 8 pictures of a sound: seeds 0 to 7"}
    assert [line[1] for line in failures(tmp_path / "out")] == ["8", "9"] * 3


@pytest.mark.parametrize("system", BATCHES)
def test_a_program_that_cannot_run_at_all_is_not_asked_for_every_sound(
    system: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    suite = make_suite(tmp_path / "suite", 6, ("dog", "rain", "train"), others=0, pictures=False)
    environment = write_environment(tmp_path / "environment")
    (environment / "painting.py").write_text("print('tried', flush=True)\nraise ImportError('no CUDA here')")
    assert run(system, suite, tmp_path, seeds=1) == 3
    assert "the program of the project said: exit code 1: ImportError: no CUDA here" in said(capsys)
    assert (tmp_path / "out" / "log.txt").read_text().count("tried\n") == 4  # all at once, and three alone


def test_sounds_of_another_rate_are_brought_to_the_one_that_a_program_takes_for_granted(tmp_path: Path) -> None:
    write_environment(tmp_path / "environment")
    suite = make_suite(tmp_path / "suite", 2, ("dog", "rain"), others=0, pictures=False)
    for item in suite.items:
        samples, rate_hz = soundfile.read(suite.folder / item.sound.file)
        assert rate_hz == 16_000
        write = [
            sys.executable,
            "-c",
            _WRITE,
            str(ADAPTERS),
            str(suite.folder / item.sound.file),
            str(tmp_path / "x.wav"),
        ]
        subprocess.run(write, check=True)
        resampled, found_hz = soundfile.read(tmp_path / "x.wav")
        assert found_hz == 44_100
        assert len(resampled) / 44_100 == pytest.approx(len(samples) / 16_000, abs=1e-3)
        assert tone_of(resampled, 44_100) == tone_of(samples, 16_000)
        assert np.abs(resampled).max() == pytest.approx(np.abs(samples).max(), rel=0.02)


_WRITE = "import sys; sys.path.insert(0, sys.argv[1]); import protocol; protocol.write_wav(*sys.argv[2:], 44100)"


# --- before anything starts


@pytest.mark.parametrize("system", SYSTEMS)
def test_what_is_missing_of_a_system_is_one_line_before_anything_starts(system: str, tmp_path: Path) -> None:
    words = words_for(system, tmp_path)
    recipe = load_recipe(system, words)
    assert isinstance(recipe, CommandRecipe)
    for left_out, expected in (
        ("interpreter", rf"interpreter: must be set: the Python of the environment that {system} is installed in"),
        ("cwd", rf"cwd: must be set: a checkout of {recipe.repository} at {recipe.commit} \(cwd=DIR\)"),
    ):
        with pytest.raises(InputError, match=expected):
            load_recipe(system, [word for word in words if not word.startswith(left_out)])
    for name in recipe.needs:
        (tmp_path / "checkout" / name).rename(tmp_path / "aside")
        with pytest.raises(InputError, match=rf"needs: no such file: {tmp_path}/checkout/{name}; the recipe's head"):
            load_recipe(system, words)
        (tmp_path / "aside").rename(tmp_path / "checkout" / name)
    with pytest.raises(InputError, match="interpreter: no such file") as error:
        load_recipe(system, [*words, "interpreter=/nowhere/bin/python"])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("packed", [False, True])
def test_a_checkout_at_another_commit_is_refused(packed: bool, suite: Suite, tmp_path: Path) -> None:
    words = words_for("omniflow", tmp_path)
    git = ["git", "-C", str(tmp_path / "checkout"), "-c", "user.name=a", "-c", "user.email=a@example.org"]
    for command in (
        ["init", "-q"],
        ["add", "-A"],
        ["commit", "-qm", "x"],
        *([["pack-refs", "--all"]] if packed else []),
    ):
        subprocess.run([*git, *command], check=True)
    head = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()
    with pytest.raises(
        InputError, match=rf"cwd: expected a checkout of .* at 708849f\S+, found it at {head}: run `git"
    ):
        load_recipe("omniflow", words)
    assert load_recipe("omniflow", [*words, f"commit={head}"])
    subprocess.run([*git, "checkout", "-q", "--detach"], check=True)
    with pytest.raises(InputError, match=rf"found it at {head}"):
        load_recipe("omniflow", words)


@pytest.mark.parametrize("damage", [b"", b"ref: ", b"ref: refs/heads/none", b"\xff\xfe", b"0" * 7, b"ref: ../../x"])
def test_a_checkout_that_does_not_say_its_commit_is_taken(damage: bytes, tmp_path: Path) -> None:
    words = words_for("omniflow", tmp_path)
    (tmp_path / "checkout" / ".git").mkdir()
    (tmp_path / "checkout" / ".git" / "HEAD").write_bytes(damage)
    (tmp_path / "checkout" / ".git" / "packed-refs").write_bytes(b"# pack-refs\n\n^\n")
    assert load_recipe("omniflow", words)


def test_weights_that_were_pinned_are_checked(suite: Suite, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_environment(tmp_path / "environment")
    name = "ckpts/v0.5/transformer/diffusion_pytorch_model.bin"
    assert run("omniflow", suite, tmp_path, f"weights={{{name}: {'0' * 63}a}}") == 2
    assert f"checkout/{name}: expected sha256 {'0' * 63}a, found" in said(capsys)
    pinned = f"weights={{{name}: {sha256_of(tmp_path / 'checkout' / name)}}}"
    assert run("omniflow", suite, tmp_path, pinned) == 0


def test_weights_of_another_model_do_not_go_on_in_its_folder(
    suite: Suite, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_environment(tmp_path / "environment", bad=f"{tones(suite)[1]}")
    assert run("imagebind_unclip", suite, tmp_path, seeds=1) == 0
    words = words_for("imagebind_unclip", tmp_path)
    (tmp_path / "checkout" / ".checkpoints" / "imagebind_huge.pth").write_text("other weights")
    where = ("--suite", str(suite.folder), "--seeds", "1", "--out", str(tmp_path / "out"))
    assert main(["--recipe", "imagebind_unclip", *where, *words]) == 2
    assert "before .checkpoints/imagebind_huge.pth was changed" in said(capsys)


# --- what the adapters stand on


def test_the_adapters_run_where_python_is_old_and_this_package_is_not() -> None:
    scripts = sorted(ADAPTERS.glob("*.py"))
    assert {path.stem for path in scripts} == {"protocol", *SYSTEMS, "sonicdiffusion"} - {
        name for name in SYSTEMS if name.startswith("sonicdiffusion_")
    }
    for path in scripts:
        tree = ast.parse(path.read_text(), feature_version=(3, 8))
        imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
        imported |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
        known = {"protocol", "PIL", "__future__"} | set(sys.stdlib_module_names)
        assert {name.split(".")[0] for name in imported} <= known, path.name
        calls = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
        assert not calls & {
            "removeprefix",
            "removesuffix",
            "is_relative_to",
            "readlink",
            "hardlink_to",
        }  # of 3.9 and 3.10


def test_the_decoder_takes_what_the_adapter_gives_it() -> None:
    """By its source: to import it takes longer than all else here."""
    library = find_spec("diffusers")
    assert library is not None
    assert library.origin is not None
    source = Path(library.origin).parent / "pipelines" / "stable_diffusion" / "pipeline_stable_unclip_img2img.py"
    (call,) = (each for each in functions_in(source) if each.name == "__call__")
    defaults = dict(
        zip([arg.arg for arg in call.args.args][-len(call.args.defaults) :], call.args.defaults, strict=True)
    )
    (given,) = (
        {each.arg: each.value for each in node.keywords}
        for node in ast.walk(ast.parse((ADAPTERS / "imagebind_unclip.py").read_text()))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "unclip"
    )
    assert given.keys() <= defaults.keys()
    for name, value in (("num_inference_steps", 20), ("guidance_scale", 10)):  # its own, as the recipe says
        assert ast.literal_eval(given[name]) == ast.literal_eval(defaults[name]) == value
    recipe = load_recipe("imagebind_unclip", [f"interpreter={sys.executable}", "cwd=.", "needs=[]", "commit=null"])
    assert isinstance(recipe, CommandRecipe)
    assert (recipe.settings.guidance, recipe.settings.steps) == (10, 20)


def functions_in(path: Path) -> Iterator[ast.FunctionDef]:
    return (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.FunctionDef))
