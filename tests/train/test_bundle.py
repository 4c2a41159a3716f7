"""What a release holds as its code: the lines of our modules that its class needs, and no others."""

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.builders import refused
from train import bundle as code
from train.bundle import bundle

DOC = '"""What it is."""\n\nimport math\nfrom pathlib import Path\n'
CODE = """\
def whole() -> Path:
    return Path(str(half() + TEN))


@staticmethod
def half():
    return math.floor(5.5)
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A package of ours with nothing in it yet."""
    monkeypatch.setattr(code, "ROOT", tmp_path)
    code.read_module.cache_clear()
    (tmp_path / "train").mkdir()
    yield tmp_path / "train"
    code.read_module.cache_clear()


def run(source: bytes) -> dict[str, Any]:
    names: dict[str, Any] = {}
    exec(compile(source, "bundle", "exec"), names)
    return names


def test_what_is_reached_is_taken_and_nothing_else(package: Path) -> None:
    (package / "deep.py").write_text("import json\n\n# why it is ten\nTEN, TWO = 10, 2\n\n\ndef unused():\n    ten()\n")
    (package / "top.py").write_text(f'{DOC}from train.deep import TEN\n\nprint("not run")\n\n\n{CODE}')

    source = bundle("train.top", "whole")

    assert source.decode() == f"{DOC}\n\n# why it is ten\nTEN, TWO = 10, 2\n\n\n{CODE}"
    assert run(source)["whole"]() == Path("15")


def test_a_module_comes_behind_those_that_it_imports(package: Path) -> None:
    (package / "one.py").write_text("BASE = 1\n")
    (package / "two.py").write_text("from train.one import BASE\n\nNEXT = BASE + 1\n")
    (package / "top.py").write_text(
        "from train.two import NEXT\nfrom train.one import BASE\n\nSUM = NEXT + BASE\n\n\ndef get():\n    return SUM\n"
    )

    assert run(bundle("train.top", "get"))["get"]() == 3


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ("from train.b import take\n\nLIMIT = 1\n", "LIMIT of train.b is another thing elsewhere"),
        ("from math import pi as LIMIT\nfrom train.b import take\n", "LIMIT of train.b is another thing elsewhere"),
        ("from train.b import take as given\n", "train.a: imports take as given, which is not followed"),
        ("import train.b\n", "train.a: imports train.b as a whole, which is not followed"),
    ],
)
def test_a_name_of_two_things_is_refused(other: str, message: str, package: Path) -> None:
    (package / "b.py").write_text("LIMIT = 2\n\n\ndef take():\n    return LIMIT\n")
    (package / "a.py").write_text(f"{other}\n\ndef get():\n    return LIMIT, take()\n")

    with refused(message, ValueError):
        bundle("train.a", "get")


@pytest.mark.parametrize(
    ("module", "name"), [("train.pipeline", "AudioPixArtPipeline"), ("train.embedder", "Embedder")]
)
def test_the_code_of_a_release_defines_every_name_once(module: str, name: str) -> None:
    tree = ast.parse(bundle(module, name))

    defined = [node.name for node in tree.body if isinstance(node, ast.ClassDef | ast.FunctionDef)]
    for node in tree.body:
        targets = node.targets if isinstance(node, ast.Assign) else []
        defined += [part.id for target in targets for part in ast.walk(target) if isinstance(part, ast.Name)]
    assert name in defined
    assert len(defined) == len({*defined})
    imported = [
        alias.name for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom) for alias in node.names
    ]
    assert not {*defined} & {*imported}
