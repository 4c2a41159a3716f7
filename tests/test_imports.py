import json
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import eval as studies
import sonify
import train

SCRIPT = """
import importlib, json, sys
for name in sys.argv[1:]:
    importlib.import_module(name)
print(json.dumps([name for name in ("ray", "torch", "accelerate") if name in sys.modules]))
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
    assert len(all_modules()) > 130
    import_in(tmp_path, all_modules())
    assert list(tmp_path.iterdir()) == []


# Loaded by those who need them, and only then: the light install has no torch.
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
    "sonify.features.vae",
}


def test_only_the_modules_that_need_ray_or_torch_import_them(tmp_path):
    assert set(modules()) >= HEAVY
    assert import_in(tmp_path, ["train.config", *(name for name in modules() if name not in HEAVY)]) == []


def test_the_toolkit_imports_nothing_of_training_or_its_studies():
    files = Path(str(sonify.__file__)).parent.rglob("*.py")
    imports = re.compile(r"^\s*(from|import) (train|eval)\b", re.MULTILINE)
    assert [file.name for file in files if imports.search(file.read_text())] == []
