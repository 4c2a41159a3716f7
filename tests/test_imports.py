import json
import pkgutil
import subprocess
import sys
from pathlib import Path

import sonify

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


def test_importing_any_module_writes_nothing_and_starts_nothing(tmp_path):
    assert len(modules()) > 40
    import_in(tmp_path, modules())
    assert list(tmp_path.iterdir()) == []


def test_only_the_ray_executor_imports_ray(tmp_path):
    others = [name for name in modules() if name != "sonify.engine.on_ray"]
    assert import_in(tmp_path, others) == []
