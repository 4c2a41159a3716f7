"""The recipes that come along: each is found by its name, says what it needs, and refuses what it does not know."""

import sys
from pathlib import Path

import pytest

from eval.baselines.recipe import (
    CommandRecipe,
    ImagesRecipe,
    ReferencesRecipe,
    ShuffledRecipe,
    load_recipe,
    recipe_digest,
)
from sonify.errors import InputError

FOLDER = Path(__file__).parents[3] / "configs" / "baselines"
SHIPPED = sorted(path.stem for path in FOLDER.glob("*.yaml"))
OUTSIDE = {
    path.stem: [f"interpreter={sys.executable}", "cwd=.", "needs=[]", "commit=null"]
    for path in FOLDER.glob("*.yaml")
    if "{adapters}" in path.read_text()
}
NEEDS = {"generate": ["model=somebody/pipeline"], "images": ["images=."], **OUTSIDE}
NEEDS["in_the_wild"] = [f"captions={Path(__file__)}", "optimise=0"]
KINDS = {"images": ImagesRecipe, "references": ReferencesRecipe, "shuffled": ShuffledRecipe}


@pytest.mark.parametrize("name", SHIPPED)
def test_every_recipe_that_comes_along_loads_and_refuses_a_misspelt_key(name: str) -> None:
    assert isinstance(load_recipe(name, NEEDS.get(name, [])), KINDS.get(name, CommandRecipe))
    with pytest.raises(InputError, match=r"no such key") as error:
        load_recipe(name, [*NEEDS.get(name, []), "namme=x"])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", SHIPPED)
def test_every_recipe_says_what_it_needs_and_how_it_is_run(name: str) -> None:
    head = "".join(
        line for line in (FOLDER / f"{name}.yaml").read_text().splitlines(keepends=True) if line.startswith("#")
    )
    assert f"sonify eval baseline --recipe {name} --suite SUITE" in head
    assert "# Needs: SUITE" in head
    assert "Takes: " in head


def test_the_pipeline_must_be_named() -> None:
    with pytest.raises(InputError, match=r"generate.yaml: model: must be set: the folder or the hub id of a model"):
        load_recipe("generate")
    assert "--model" in load_recipe("generate", ["model=you/name"]).model_dump()["command"]


def test_a_recipe_that_does_not_exist_is_told_from_those_that_do(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=rf"\({', '.join(SHIPPED)}\); did you mean references\?"):
        load_recipe("refrences")


def test_a_folder_that_an_older_version_began_is_gone_on_with() -> None:
    """Its `baseline.json` holds this digest, which keys that came later are no part of."""
    recipe = load_recipe("generate", ["model=you/name"])
    assert recipe_digest(recipe) == "306e586f04f8c7583e51c8e780cb5e95e35b0568a42d39ff6d7799074cec30f7"
