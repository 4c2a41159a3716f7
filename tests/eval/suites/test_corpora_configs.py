"""The configurations of the corpora load through their sections, and say what they need."""

from pathlib import Path

import pytest
import yaml

from eval.suites.config import KINDS
from eval.suites.entries import read_lines
from sonify.config.loader import load_settings
from sonify.errors import InputError

CONFIGS = Path(__file__).parents[3] / "configs" / "eval"
NAMES = (
    "vggsound_50x20",
    "vggsound_309x3",
    "vggsound_av",
    "landscapes",
    "landscapes_itw",
    "itw",
    "vegas_1k",
    "greatest_hits",
)


@pytest.mark.parametrize("name", NAMES)
def test_a_configuration_of_a_corpus_loads_and_names_its_command(name):
    path = CONFIGS / f"{name}.yaml"
    kind = yaml.safe_load(path.read_text())["kind"]
    config = load_settings(path, (), KINDS[kind], check_paths=False)
    assert config.name == name
    text = path.read_text()
    assert f"#   python -m eval.prepare --config {name} --out suites/{name}\n" in text
    assert "# Needs: " in text
    assert "# Takes: not measured." in text
    with pytest.raises(InputError, match="per_clas"):
        load_settings(path, ("per_clas=3",), KINDS[kind], check_paths=False)


@pytest.mark.parametrize("name", NAMES)
def test_a_configuration_names_no_place_of_one_machine(name):
    values = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())
    places = [value for value in (*values.values(), *values.get("media", {}).values()) if "/" in str(value)]
    assert places
    assert not any(str(place).startswith("/") for place in places)


def test_the_fifty_classes_are_fifty():
    rows = read_lines(CONFIGS / "classes" / "sound2scene_50.txt", "classes")
    assert len({row.cells for row in rows}) == len(rows) == 50
