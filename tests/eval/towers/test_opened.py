import sys
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import get_args

import pytest
import torch
import yaml
from safetensors.torch import save_file

from eval.towers.config import Random, Towers, Wav2Clip
from eval.towers.opened import LIBRARIES, libraries_of, load_towers, open_judges
from eval.towers.wav2clip import wav2clip_shapes
from sonify.config.inputs import Section
from sonify.io.write import sha256_of
from tests.builders import refused
from tests.processes import run_python
from tests.tiny_networks import tiny_clap


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_every_role_can_be_a_random_tower():
    roles = list(Towers.model_fields)
    judges = open_judges(Towers(**dict.fromkeys(roles, Random(kind="random"))))
    for role in roles:
        tower = getattr(judges, role)
        assert tower.name.startswith("random projection (no judge)")
        assert bool(tower.logits) == (role == "inception")


def test_a_tower_that_is_null_is_left_out():
    judges = open_judges(Towers(clip_b32=Random(kind="random")))
    assert judges.clip_b32 is not None
    assert judges.inception is judges.wav2clip is judges.peav is None


def test_every_kind_of_the_configuration_has_an_opener():
    sections = [section for section in Section.__subclasses__() if section.__module__ == "eval.towers.config"]
    kinds = {kind for section in sections for kind in get_args(section.__annotations__.get("kind"))}
    assert kinds == {"random", *LIBRARIES}
    for kind in LIBRARIES:
        assert callable(getattr(import_module(f"eval.towers.{kind}"), f"open_{kind}"))


def test_the_towers_of_a_file_are_opened_by_their_kinds(tmp_path):
    shapes = wav2clip_shapes()
    save_file({name: torch.ones(shape) for name, shape in shapes.items()}, tmp_path / "w.safetensors")
    clap = tiny_clap(tmp_path / "clap")
    wav2clip = {"kind": "wav2clip", "weights": str(tmp_path / "w.safetensors")}
    text = yaml.safe_dump({"towers": {"wav2clip": wav2clip, "clap": {"kind": "clap", "model": str(clap)}}})
    judges = open_judges(load_towers(write(tmp_path / "t.yaml", text)))
    assert judges.wav2clip is not None
    assert judges.clap is not None
    assert (judges.wav2clip.name, judges.clap.name) == ("Wav2CLIP", "CLAP")
    assert judges.wav2clip.sha256 == sha256_of(tmp_path / "w.safetensors")


def test_weights_that_are_not_there_are_named_by_their_tower(tmp_path):
    section = Wav2Clip(kind="wav2clip", weights=tmp_path / "none.safetensors")
    with refused(r"^towers.wav2clip: \S*none.safetensors: expected a file of weights on this machine, found none"):
        open_judges(Towers(wav2clip=section))


def test_two_towers_that_are_held_against_each_other_have_one_width():
    sections = {"clip_b32": Random(kind="random"), "wav2clip": Wav2Clip(kind="wav2clip", weights=Path("none"))}
    with refused(
        "expected vectors of one width, found towers.clip_b32 of 64 and towers.wav2clip of 512: they share no"
    ):
        open_judges(Towers(**sections))
    with refused("towers.wav2clip: .*none: expected a file"):
        open_judges(Towers(**sections | {"clip_b32": Random(kind="random", width=512)}))


def test_the_libraries_are_those_of_the_towers_that_were_opened(tmp_path):
    save_file({name: torch.ones(shape) for name, shape in wav2clip_shapes().items()}, tmp_path / "w.safetensors")
    weights = {"kind": "wav2clip", "weights": str(tmp_path / "w.safetensors")}
    towers = Towers.model_validate({"wav2clip": weights, "clap": {"kind": "clap"}, "dinov2": {"kind": "random"}})
    judges = open_judges(towers, ["wav2clip", "dinov2"])
    found = libraries_of(judges, towers)
    assert set(found) == {"numpy", "pillow", "safetensors", "scipy", "soxr", "torch", "torchvision"}
    assert torch.__version__.startswith(found["torch"])
    assert set(libraries_of(judges, None)) == {"numpy", "pillow", "scipy", "soxr"}


def test_every_library_has_a_version():
    assert all(version(name) for names in LIBRARIES.values() for name in names)


def test_a_file_of_towers_is_read_and_overridden(tmp_path):
    path = write(tmp_path / "t.yaml", "towers:\n  clip_b32: {kind: random, width: 8}\n  dinov2: {kind: random}\n")
    towers = load_towers(path, ["towers.dinov2=null", "towers.clip_b32.seed=3"])
    assert towers == Towers(clip_b32=Random(kind="random", width=8, seed=3))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("towers: {clap_b32: {kind: random}}", "towers.clap_b32"),
        ("towers: {clip_b32: {kind: inception}}", "towers.clip_b32"),
        ("towers: {wav2clip: {kind: wav2clip}}", "towers.wav2clip"),
        ("towers: {wav2clip: {kind: wav2clip, weights: a, sha256: abc}}", "sha256"),
        ("towers: {clip_b32: {kind: random, width: 1}}", "width"),
        ("tower: {}", "tower"),
        ("", "is empty"),
    ],
)
def test_what_is_wrong_in_a_file_of_towers_is_one_line(tmp_path, text, message):
    with refused(message) as caught:
        load_towers(write(tmp_path / "t.yaml", text))
    assert "\n" not in str(caught.value)


def test_the_file_that_comes_along_has_every_tower_and_says_what_each_is():
    path = Path(__file__).parents[3] / "configs/eval/towers.yaml"
    towers = load_towers(path)
    assert all(getattr(towers, role) is not None for role in Towers.model_fields)
    assert all(getattr(towers, role).kind != "random" for role in Towers.model_fields)
    for section in yaml.safe_load(path.read_text())["towers"].values():
        hub = [key for key in ("model", "text") if key in section]
        pins = [section.get("text_revision" if key == "text" else "revision") for key in hub]
        assert all(len(pin) == 40 for pin in pins), section
        assert hub or section["weights"].startswith("weights/")


def test_what_needs_no_network_does_not_import_torch():
    code = """
import sys
from eval.towers.cache import Vectors
from eval.towers.config import Random, Towers
from eval.towers.opened import open_judges
judges = open_judges(Towers(clip_b32=Random(kind="random")))
Vectors(None).embed_texts(judges.clip_b32, ["a dog"])
assert "torch" not in sys.modules, "torch was imported"
"""
    run_python(code, python=sys.executable)
