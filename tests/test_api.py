"""What a notebook calls: names of `sonify` itself, loaded when they are asked for."""

import ast
import importlib
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

import sonify
from tests.builders import small_input

ROOT = Path(__file__).parents[1]
PLACES = vars(sonify)["_PLACES"]


def test_importing_sonify_imports_nothing_else():
    code = "import sys; before = set(sys.modules); import sonify; print(*sorted(set(sys.modules) - before))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert [name for name in done.stdout.split() if name.startswith("sonify")] == ["sonify"]
    started = time.perf_counter()
    for _ in range(20):
        importlib.reload(sonify)
    assert time.perf_counter() - started < 0.1  # five milliseconds each


def test_the_stub_says_what_is_there():
    stub = ast.parse((ROOT / "sonify/__init__.pyi").read_text())
    told = {name.name: node.module for node in stub.body if isinstance(node, ast.ImportFrom) for name in node.names}
    assert told == PLACES
    for name, module in PLACES.items():
        assert getattr(sonify, name) is getattr(importlib.import_module(module), name)
        assert name in dir(sonify)
    with pytest.raises(AttributeError, match="has no attribute 'rnu'"):
        getattr(sonify, "rnu")  # noqa: B009 - pyright would see what is tested here


def test_no_documented_name_is_a_modules_name():
    """Whoever imports a submodule would find it in the place of the function."""
    for name in PLACES:
        assert not (ROOT / "sonify" / name).exists()
        assert not (ROOT / "sonify" / f"{name}.py").exists()


def test_the_notebook_of_the_documentation_runs(tmp_path, monkeypatch, capsys):
    small_input(tmp_path)
    (tmp_path / "photos").rename(tmp_path / "PHOTOS")
    (tmp_path / "sounds").rename(tmp_path / "SOUNDS")
    monkeypatch.chdir(tmp_path)
    text = (ROOT / "docs/api.md").read_text()
    example = "\n".join(re.findall(r"^    (.*)$", text.partition("## ")[0], re.M))
    assert "sonify.load_config(" in example
    assert "sonify.run(" in example
    importlib.import_module("sonify.running")
    names: dict = {}
    exec(compile(example, "docs/api.md", "exec"), names)
    assert names["counts"]["pair"].rows_out == 24
    assert (tmp_path / "runs/mine/gallery/index.html").is_file()
    assert names["status"].stages[-1].units_to_do == 0
    assert {sample.metadata["split"] for sample in names["samples"]} == {"train"}
