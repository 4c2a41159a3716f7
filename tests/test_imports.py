import json
import pkgutil
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import eval as studies
import sonify
import train

SCRIPT = """
import importlib, json, sys
for name in sys.argv[1:]:
    importlib.import_module(name)
print(json.dumps([name for name in ("ray", "torch", "accelerate", "webdataset", "faiss") if name in sys.modules]))
"""


def modules() -> list[str]:
    found = pkgutil.walk_packages([str(Path(sonify.__file__).parent)], "sonify.")
    return sorted(module.name for module in found if not module.name.endswith("__main__"))


def import_in(folder: Path, names: list[str]) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-B", "-c", SCRIPT, *names], cwd=folder, capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout)


def all_modules() -> list[str]:
    packages = (train, studies)
    found = [module for one in packages for module in pkgutil.walk_packages(one.__path__, f"{one.__name__}.")]
    return [*modules(), *sorted(module.name for module in found)]


def test_importing_any_module_writes_nothing_and_starts_nothing(tmp_path):
    assert len(all_modules()) > 100
    import_in(tmp_path, all_modules())
    assert list(tmp_path.iterdir()) == []


# Loaded by those who need them, and only then: the light install has no torch, which webdataset loads where it is, and
# FAISS comes by an extra that may be missing.
HEAVY = {
    "sonify.engine.on_ray",
    "sonify.engine.cluster",
    "sonify.models.loading",
    "sonify.vlm.in_process",
    "sonify.retrieval.clap",
    "sonify.retrieval.laion",
    "sonify.retrieval.logmel",
    "sonify.features.ast",
    "sonify.features.batches",
    "sonify.features.beats",
    "sonify.features.kaldi",
    "sonify.features.vae",
}


def test_only_the_modules_that_need_ray_or_torch_import_them_and_none_a_faiss(tmp_path):
    assert set(modules()) >= HEAVY
    light = ["train.config", "eval.leakage", *(name for name in modules() if name not in HEAVY)]
    assert import_in(tmp_path, light) == []


def test_every_room_of_the_toolkit_has_a_floor():
    """`make check` sees that imports run down the floors of pyproject.toml; a new room must be among them."""
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())
    layers = project["tool"]["importlinter"]["contracts"][0]["layers"]
    named = {room for layer in layers for room in re.split(r" [|:] ", layer)}
    floorless = [name for name in modules() if not any(f"{name}.".startswith(f"{room}.") for room in named)]
    assert floorless == ["sonify.dataset"]  # whose modules lie on two floors
