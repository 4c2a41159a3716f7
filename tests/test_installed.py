"""Advice as it must be typed; a wheel, in an environment of its own, from any folder."""

import json
import os
import shlex
import subprocess
import sys
import sysconfig
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import pytest
import yaml

from sonify import installed
from sonify.installed import how_to_install, spell, spell_redo, version_of
from tests.builders import small_input
from train.launch import child_command

ROOT = Path(__file__).parents[1]
UV = Path(sys.executable).with_name("uv")


@pytest.fixture
def started(monkeypatch, tmp_path):
    """As if a command had been typed in an empty folder, with nothing on PATH."""

    def start(*argv: object, path: str = "") -> None:
        monkeypatch.setattr(sys, "argv", [str(word) for word in argv])
        monkeypatch.setenv("PATH", path)

    monkeypatch.chdir(tmp_path)
    return start


def test_the_version_of_what_is_not_installed_is_empty():
    assert version_of("numpy")[0].isdigit()
    assert version_of("no-such-library") == ""


def program(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "sonify").touch(mode=0o755)
    return folder / "sonify"


def test_a_script_is_spelled_as_the_shell_finds_it(started, tmp_path):
    script = program(tmp_path / "my env/bin")
    started(script, path=str(script.parent))
    assert spell("status", "runs/mine") == "sonify status runs/mine"
    started(script)
    assert spell("status", "runs/mine") == "'my env/bin/sonify' status runs/mine"
    started("my env/bin/sonify")
    assert spell("status") == "'my env/bin/sonify' status"
    other = program(tmp_path.parent / f"{tmp_path.name} elsewhere/bin")
    started(other, path=str(script.parent))  # another one is found by that name
    assert spell("status") == f"'{other}' status"


def test_a_run_directory_with_blanks_is_quoted(started, tmp_path):
    started(program(tmp_path / "bin"), path=str(tmp_path / "bin"))
    assert spell("verify", Path("my runs/a's"), "--repair") == "sonify verify 'my runs/a'\"'\"'s' --repair"


def test_a_module_is_spelled_with_its_python(started):
    started(ROOT / "sonify/__main__.py", "run")
    assert spell("status") == f"{sys.executable} -m sonify status"
    started(ROOT / "sonify/__main__.py", "run", path=str(Path(sys.executable).parent))
    assert spell("status") == f"{Path(sys.executable).name} -m sonify status"


def test_elsewhere_the_environments_script_is_named(started, monkeypatch, tmp_path):
    """In a notebook, or under `python -m train.pixart`."""
    script = program(tmp_path / "env/bin")
    monkeypatch.setattr(sys, "executable", str(script.with_name("python")))
    started("ipykernel_launcher.py")
    assert spell("status") == "env/bin/sonify status"
    script.unlink()
    assert spell("status") == "env/bin/python -m sonify status"


@pytest.mark.parametrize(
    ("words", "again"),
    [
        (["run", "--config", "my.yaml"], "run --config my.yaml --redo pair"),
        (["pair", "--config", "my.yaml", "seed=3"], "run --config my.yaml seed=3 --redo pair"),
        (["--verbose", "run", "--config", "a b.yaml"], "run --config 'a b.yaml' --redo pair"),
        (["run", "--images", "p", "--sounds", "s", "--dry-run"], "run --images p --sounds s --redo pair"),
        (["run", "--redo", "render", "--config", "my.yaml"], "run --config my.yaml --redo pair"),
        (["run", "--redo=render", "--config=my.yaml", "mix.lufs=[-3,-2]"],
         "run --config=my.yaml 'mix.lufs=[-3,-2]' --redo pair"),
        (["run", "--prices", "cpu_hour=1", "--probe", "--config", "my.yaml", "--prices=p.yaml"],
         "run --config my.yaml --redo pair"),
        (["render", "--from", "pub", "--config", "my.yaml"], "run --config F --redo pair"),
        (["status", "runs/mine"], "run --config F --redo pair"),
        ([], "run --config F --redo pair"),
    ],
)  # fmt: skip
def test_a_stage_is_replaced_by_the_whole_command(started, tmp_path, words, again):
    started(program(tmp_path / "bin"), *words, path=str(tmp_path / "bin"))
    assert spell_redo("pair") == f"sonify {again}"


def test_no_configuration_is_known_outside_of_a_command(started):
    started("ipykernel_launcher.py", "run", "--config", "kernel.json")
    assert spell_redo("pair").endswith("sonify run --config F --redo pair")


def test_a_checkout_is_installed_from_where_it_is(monkeypatch, tmp_path):
    for name in ("Makefile", "pyproject.toml"):
        (tmp_path / name).touch()
    (tmp_path / ".venv").mkdir()
    monkeypatch.setattr(installed, "ROOT", tmp_path)
    monkeypatch.setattr(sys, "prefix", str(tmp_path / ".venv"))
    assert how_to_install("train").startswith(f"`make setup` in {tmp_path}, or `")
    monkeypatch.setattr(sys, "prefix", str(tmp_path / ".venv-light"))
    assert how_to_install("train").startswith(f"`make setup` in {tmp_path}, or `")
    (tmp_path / ".venv/.installed-full").touch()
    assert how_to_install("train").startswith(f"`. {tmp_path}/.venv/bin/activate`, which has everything, or `")
    monkeypatch.setattr(sys, "prefix", str(tmp_path / ".venv"))  # make has nothing to do: it was removed since
    assert not how_to_install("train").startswith("`make")
    monkeypatch.setattr(installed, "ROOT", ROOT)
    monkeypatch.setattr(sys, "prefix", "/somewhere/else")
    assert how_to_install("train").startswith("`")
    words = shlex.split(how_to_install("train").strip("`"))
    assert words[-2:] == ["-e", f"{ROOT}[train]"]
    assert words[:-2] in ([str(installed._spell_path(Path(sys.executable))), "-m", "pip", "install"],
                          ["uv", "pip", "install", "--python", sys.executable])  # fmt: skip


def test_nobody_is_told_to_install_a_release_that_does_not_exist():
    texts = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "configs").rglob("*.yaml")]
    texts += [*(ROOT / "jobs").iterdir(), *(ROOT / "sonify").rglob("*.py"), *(ROOT / "train").glob("*.py")]
    for path in (*texts, *(ROOT / "eval").glob("*.py"), *(ROOT / "benchmarks").rglob("*.py")):
        assert "install 'sonify[" not in path.read_text(), path
        assert 'install "sonify[' not in path.read_text(), path


# --- one FAISS


@pytest.fixture(scope="module")
def faiss_wheels(tmp_path_factory) -> Path:
    """Small wheels under the names of real ones, that lay the same module and a part of their own."""
    folder = tmp_path_factory.mktemp("wheels")
    for name in ("faiss_cpu", "faiss_gpu_cu12", "faiss_haystack"):
        info = f"{name}-1.0.dist-info"
        module = "haystack" if name == "faiss_haystack" else "faiss"
        files = {
            f"{module}/__init__.py": f"NAME = {name!r}\n",
            f"{module}/{name}.py": "",
            f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name.replace('_', '-')}\nVersion: 1.0\n",
            f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        }
        record = "".join(f"{path},,\n" for path in (*files, f"{info}/RECORD"))
        with ZipFile(folder / f"{name}-1.0-py3-none-any.whl", "w") as archive:
            for path, text in {**files, f"{info}/RECORD": record}.items():
                archive.writestr(path, text)
    return folder


class Small:
    """An environment with nothing in it but what is installed here; `sonify` is the checkout's."""

    def __init__(self, folder: Path, wheels: Path, *seed: str) -> None:
        self.python = folder / "my env/bin/python"
        self._wheels = wheels
        subprocess.run([UV, "venv", "--quiet", "--python", sys.executable, *seed, folder / "my env"], check=True)

    def add(self, *names: str) -> "Small":
        for name in names:
            wheel = self._wheels / f"{name}-1.0-py3-none-any.whl"
            self.call(f"uv pip install --quiet --offline --no-deps --python '{self.python}' {wheel}")
        return self

    def call(self, command: str) -> str:
        """A command, as a shell takes it."""
        found = f"{UV.parent}:{os.environ['PATH']}"
        environment = {"PATH": found, "PYTHONPATH": str(ROOT), "HOME": os.environ["HOME"]}
        done = subprocess.run(
            ["sh", "-c", command], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.rstrip("\n")

    def told(self) -> str:
        """What a command of ours would say; nothing where all is well."""
        code = "import sonify.errors as e\ntry: e.require_faiss()\nexcept e.InputError as error: print(error)"
        return self.call(f"'{self.python}' -c '{code}'")

    def steps(self) -> list[str]:
        """The commands in it."""
        return self.told().split("`")[1::2]


@pytest.fixture
def small(tmp_path, faiss_wheels):
    return Small(tmp_path, faiss_wheels)


@pytest.mark.parametrize("name", ["faiss_cpu", "faiss_gpu_cu12"])
def test_one_faiss_of_any_name_will_do(small, name):
    assert small.add("faiss_haystack", name).told() == ""


def test_without_a_faiss_an_extra_is_named(small):
    told = small.add("faiss_haystack").told()
    assert told.startswith("the library faiss is not installed: run `uv pip install --python ")
    assert len(told.splitlines()) == 1
    assert shlex.split(small.steps()[0])[-2:] == ["-e", f"{ROOT}[cpu]"]
    if (sys.platform, os.uname().machine) == ("linux", "x86_64"):
        assert shlex.split(small.steps()[1])[-2:] == ["-e", f"{ROOT}[gpu]"]


def test_two_are_removed_by_the_command_that_is_named(small):
    told = small.add("faiss_cpu", "faiss_gpu_cu12").told()
    assert told.startswith("faiss-cpu and faiss-gpu-cu12 are both in ")
    assert len(told.splitlines()) == 1
    remove, *install = small.steps()
    assert shlex.split(remove)[:3] == ["uv", "pip", "uninstall"]
    assert shlex.split(install[0])[-1] == f"{ROOT}[cpu]"
    small.call(remove)
    assert small.told().startswith("the library faiss is not installed")
    assert small.add("faiss_cpu").told() == ""


def test_what_is_left_when_one_of_two_is_removed_is_no_faiss(small):
    small.add("faiss_cpu", "faiss_gpu_cu12")
    small.call(f"uv pip uninstall --python '{small.python}' faiss-cpu")
    assert small.call(f"'{small.python}' -c 'import faiss; print(faiss.__file__)'") == "None"  # Python takes the folder
    assert small.told().startswith("faiss-gpu-cu12 in ")
    assert "has lost its faiss/__init__.py" in small.told()
    small.call(small.steps()[0])
    assert small.add("faiss_gpu_cu12").told() == ""


def test_the_environments_own_pip_is_named_where_it_has_one(tmp_path, faiss_wheels):
    small = Small(tmp_path, faiss_wheels, "--seed").add("faiss_cpu", "faiss_gpu_cu12")
    remove, *install = small.steps()
    assert shlex.split(remove) == [str(small.python), "-m", "pip", "uninstall", "--yes", "faiss-cpu", "faiss-gpu-cu12"]
    assert shlex.split(install[0])[:4] == [str(small.python), "-m", "pip", "install"]
    small.call(remove)
    assert small.told().startswith("the library faiss is not installed")


def test_a_faiss_without_metadata_and_one_in_another_folder_count(small, tmp_path):
    (tmp_path / "built/faiss").mkdir(parents=True)
    (tmp_path / "built/faiss/__init__.py").touch()
    small.add("faiss_cpu", "faiss_gpu_cu12")
    site = next((tmp_path / "my env/lib").glob("*/site-packages"))
    (site / "built.pth").write_text(f"import sys; sys.path.insert(0, {str(tmp_path / 'built')!r})\n")
    assert small.told() == ""  # found first, and whole


def test_the_demo_runs_in_whichever_environment_is_there(tmp_path):
    for name in ("Makefile", "pyproject.toml", "requirements.lock", "requirements-demo.lock"):
        (tmp_path / name).write_text((ROOT / name).read_text() if name == "Makefile" else "")

    def planned() -> list[str]:
        command = ["make", "--no-print-directory", "-n", "demo"]
        own = {key: value for key, value in os.environ.items() if not key.startswith("MAKE")}  # of a make around it
        done = subprocess.run(command, cwd=tmp_path, env=own, capture_output=True, text=True, check=True)
        return done.stdout.splitlines()

    light = planned()
    assert any("-r requirements-demo.lock" in line for line in light)
    assert light[-1] == ".venv-light/bin/sonify demo"
    assert not any(".venv/" in line for line in light)
    (tmp_path / ".venv").mkdir()
    (tmp_path / ".venv/.installed-full").touch()
    os.utime(tmp_path / ".venv/.installed-full", (0, 0))  # older than the lock: what is there is taken as it is
    assert planned() == [".venv/bin/sonify demo"]


# --- a wheel


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("a wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, ROOT]
    subprocess.run(command, check=True, capture_output=True)
    return next(folder.glob("sonify-*.whl"))


@pytest.fixture(scope="module")
def environment(wheel, tmp_path_factory) -> Path:
    """An environment with the wheel in it; libraries are those of the tests' own, and the checkout is not seen."""
    return make_environment(tmp_path_factory.mktemp("environment") / "env", wheel, Path(sysconfig.get_path("purelib")))


def make_environment(folder: Path, wheel: Path, libraries: Path) -> Path:
    subprocess.run([UV, "venv", "--quiet", "--python", sys.executable, folder], check=True)
    install = [UV, "pip", "install", "--quiet", "--offline", "--no-deps", "--python", folder / "bin/python", wheel]
    subprocess.run(install, check=True)
    site = next((folder / "lib").glob("*/site-packages"))
    (site / "libraries.pth").write_text(f"{libraries}\n")  # behind, and its .pth files do not count
    return folder


def run_in(
    folder: Path, environment: Path, words: Sequence[str], start: str = "script", **variables: str
) -> subprocess.CompletedProcess[str]:
    """A command of the installed `sonify`, as its script or as a module."""
    program = [environment / "bin/sonify"] if start == "script" else [environment / "bin/python", "-m", "sonify"]
    outside: Mapping[str, Any] = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
    return subprocess.run(
        [*program, *words], cwd=folder, env={**outside, **variables}, capture_output=True, text=True, check=False
    )


def test_a_wheel_holds_what_the_packages_read(wheel):
    with ZipFile(wheel) as archive:
        held = set(archive.namelist())
    data = [p for name in installed.PACKAGES for p in (ROOT / name).rglob("*") if p.is_file() and p.suffix != ".pyc"]
    assert {str(path.relative_to(ROOT)) for path in data} <= held
    configs = {f"sonify/{path.relative_to(ROOT)}" for path in (ROOT / "configs").rglob("*.yaml")}
    assert len(configs) >= 7
    assert configs <= held
    assert {name.split("/")[0] for name in held} == {
        "sonify",
        "train",
        "eval",
        f"{wheel.stem.rpartition('-py3')[0]}.dist-info",
    }


def test_a_wheel_runs_from_any_folder(environment, tmp_path):
    small_input(tmp_path, photos=4, recordings=4)
    where = run_in(tmp_path, environment, ["init"])
    assert where.stdout == f"folder.yaml: edit it, then: {environment}/bin/sonify run --config folder.yaml --dry-run\n"
    assert run_in(tmp_path, environment, ["--version"]).stdout.startswith("sonify ")
    shortcuts = ["--images", "photos", "--sounds", "sounds", "--out", "my runs/x"]
    planned = run_in(tmp_path, environment, ["run", "--config", "folder", *shortcuts, "--dry-run"])
    assert planned.returncode == 0, planned.stderr
    config = yaml.safe_load(planned.stdout)
    assert config["run_dir"] == "my runs/x"
    assert config["images"]["path"] == str(tmp_path / "photos")
    assert config["audio"]["sources"][0]["path"] == str(tmp_path / "sounds")
    done = run_in(tmp_path, environment, ["run", *shortcuts, "engine.kind=local"])
    assert done.returncode == 0, done.stderr
    assert f"{environment}/bin/sonify gallery 'my runs/x'" in done.stderr
    assert len(list((tmp_path / "my runs/x/shards").rglob("*.tar"))) == 1
    assert run_in(tmp_path, environment, ["gallery", "my runs/x"]).returncode == 0


def test_a_wheel_says_how_its_own_extras_come(environment, wheel, tmp_path):
    (tmp_path / "site").mkdir()
    (tmp_path / "site/sitecustomize.py").write_text("import sys; sys.modules['torch'] = None")
    told = run_in(tmp_path, environment, ["train", "--config", "smoke"], PYTHONPATH=str(tmp_path / "site"))
    assert told.returncode == 2
    assert len(told.stderr.splitlines()) == 1
    assert told.stderr.startswith("sonify train: the library torch is not installed: run `")
    assert f"'{wheel}[train]'" in told.stderr
    code = "import sonify.installed as i; i._origin = lambda extra: None; print(i.how_to_install('train'))"
    command = [environment / "bin/python", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path, env={"PATH": ""})
    words = shlex.split(done.stdout.strip().strip("`"))
    assert any(word.startswith("torch<") for word in words)  # of `models`, which `train` asks for
    assert any(word.startswith("accelerate") for word in words)
    assert not any("sonify" in word for word in words if word != str(environment / "bin/python"))


def test_a_wheel_without_a_faiss_says_so_before_any_work(wheel, tmp_path):
    (tmp_path / "libraries").mkdir()
    for path in Path(sysconfig.get_path("purelib")).iterdir():
        if not path.name.startswith("faiss"):
            (tmp_path / "libraries" / path.name).symlink_to(path)
    environment = make_environment(tmp_path / "env", wheel, tmp_path / "libraries")
    small_input(tmp_path, photos=4, recordings=4)
    shortcuts = ["--images", "photos", "--sounds", "sounds", "--out", "runs/x", "engine.kind=local"]
    told = run_in(tmp_path, environment, ["run", *shortcuts])
    assert told.returncode == 2, told.stderr
    assert told.stderr.startswith("sonify: the library faiss is not installed: run `")
    assert len(told.stderr.splitlines()) == 1
    assert f"'{wheel}[cpu]'" in told.stderr
    assert not (tmp_path / "runs/x/pool").exists()
    for words in (["pool", *shortcuts], ["run", *shortcuts, "--dry-run"], ["status", "runs/x"], ["run", "--help"]):
        done = run_in(tmp_path, environment, words)
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("recorded", "wanted"),
    [
        ({"url": "file:///gone/sonify.whl", "archive_info": {}}, None),
        ({"url": "https://host/sonify-1.whl", "archive_info": {}}, "sonify[eval] @ https://host/sonify-1.whl"),
        (
            {"url": "https://host/s.git", "vcs_info": {"vcs": "git", "commit_id": "abc"}},
            "sonify[eval] @ git+https://host/s.git@abc",
        ),
        ({"url": f"file://{ROOT}/my%20place", "dir_info": {}}, None),
    ],
)
def test_what_it_was_installed_from_is_named_as_installers_take_it(monkeypatch, recorded, wanted):
    class Recorded:
        def read_text(self, _name: str) -> str:
            return json.dumps(recorded)

    monkeypatch.setattr(installed, "_distribution", Recorded)
    assert installed._origin("eval") == wanted


# --- doors that nothing in the working folder shadows

SHADOW = "raise SystemExit('the file of the user')"


@pytest.fixture
def shadows(tmp_path):
    for name in ("eval.py", "train/__init__.py", "train/launch.py", "sonify_mine.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(SHADOW)
    return tmp_path


@pytest.mark.parametrize(
    ("start", "words"),
    [
        ("script", ["train", "--help"]),
        ("module", ["train", "--help"]),
        ("module", ["eval", "ast_loudness", "--help"]),
        ("module", ["leakage", "--help"]),
    ],
)
def test_no_file_of_the_user_shadows_a_door(environment, shadows, start, words):
    done = run_in(shadows, environment, words, start)
    assert done.returncode == 0, done.stdout + done.stderr
    name = " ".join(["sonify", *words[:-1]])
    assert done.stdout.startswith(f"usage: {name} ")


def test_nor_where_the_file_is_a_module(environment, tmp_path):
    (tmp_path / "train.py").write_text(SHADOW)
    done = run_in(tmp_path, environment, ["generate", "--model", "x", "--audio", "a", "--out", "b.jpg"], "module")
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("sonify generate: ")
    assert len(done.stderr.splitlines()) == 1


def test_processes_that_training_starts_are_of_the_same_place(environment, shadows):
    """What `launch_processes` runs, in the folder of a user who has an `eval` too."""
    site = next((environment / "lib").glob("*/site-packages"))
    (shadows / "sonify.py").write_text(SHADOW)
    _, *words = child_command(site, "eval.__main__", "sonify train", ["--help"])
    command = [environment / "bin/python", *words]
    done = subprocess.run(command, cwd=shadows, capture_output=True, text=True, check=False)
    assert done.stdout.startswith("usage: sonify train "), done.stderr
    assert done.returncode == 0


def test_a_door_lists_its_studies_without_loading_them(environment, tmp_path):
    listed = run_in(tmp_path, environment, ["eval"])
    assert listed.returncode == 0
    assert "\n  ast_loudness " in listed.stdout
    wrong = run_in(tmp_path, environment, ["eval", "loudnes"])
    assert wrong.returncode == 2
    assert wrong.stderr == "sonify eval: no such command or study: 'loudnes'; did you mean loudness?\n"
