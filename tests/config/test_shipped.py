import re
from pathlib import Path

import pytest
import yaml

from sonify.config import load_config
from sonify.config.shipped import find_config, list_shipped, shipped_names, write_config
from sonify.errors import InputError

CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.mark.parametrize(
    ("name", "family", "path"),
    [
        ("folder", "sonify", "sonify/folder.yaml"),
        ("laptop.yaml", "sonify", "sonify/laptop.yaml"),
        ("laptop.yml", "sonify", "sonify/laptop.yaml"),
        ("sonify/sam", "sonify", "sonify/sam.yaml"),
        ("configs/sonify/demo.yaml", "sonify", "sonify/demo.yaml"),
        ("pixart_xl_512", "train", "train/pixart_xl_512.yaml"),
        ("train/smoke", "train", "train/smoke.yaml"),
        ("smoke", "train", "train/smoke.yaml"),
        ("smoke", "eval", "eval/smoke.yaml"),
        ("eval/folder", "eval", "eval/folder.yaml"),
    ],
)
def test_a_configuration_that_comes_along_is_named_bare_from_anywhere(tmp_path, monkeypatch, name, family, path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()  # a folder is no configuration
    assert find_config(name, family).read_bytes() == (CONFIGS / path).read_bytes()


@pytest.mark.parametrize("name", ["folder", "folder.yaml", "sonify/folder", "configs/sonify/folder.yaml"])
def test_a_file_that_exists_wins(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    Path(name).write_text("seed: 3")
    assert find_config(name, "sonify") == Path(name)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "foldre",
            r"no such file, nor one that comes along \(demo, folder, laptop, qwen, sam, sam_laion\);"
            r" did you mean folder\?",
        ),
        ("mien.yaml", r"no such file, .*; did you mean mine.yaml\?"),
        ("nowhere/mine.yaml", "no such file"),
        (
            "~nobody-of-that-name/mine.yaml",
            "not a path: expected a path, and '~nobody-of-that-name' is nobody's home here",
        ),
        ("x" * 5000, "not a path: File name too long"),
        ("train/smoke", "is one for `.*sonify train`, not `.*sonify run`"),
        ("eval/smoke", "is one for `.*sonify eval prepare`, not `.*sonify run`"),
        ("photos", "is a folder; --config takes a YAML file"),
        ("run", "is a folder; a run's settings are in its run.json"),
        ("../folder", "no such file"),
        ("", "config: expected a file or a name, found nothing"),
        (".", "is a folder; --config takes"),
    ],
)
def test_what_is_no_configuration_says_what_may_have_been_meant(tmp_path, monkeypatch, name, message):
    monkeypatch.chdir(tmp_path)
    for folder in ("photos", "run"):
        (tmp_path / folder).mkdir()
    (tmp_path / "run/run.json").write_text("{}")
    (tmp_path / "mine.yaml").write_text("seed: 3")
    with pytest.raises(InputError, match=message):
        load_config(name)


def test_init_writes_a_file_once_and_says_what_comes_next(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert write_config("folder").endswith("sonify run --config folder.yaml --dry-run")
    assert (tmp_path / "folder.yaml").read_bytes() == (CONFIGS / "sonify/folder.yaml").read_bytes()
    (tmp_path / "folder.yaml").write_text("mine")
    with pytest.raises(InputError, match=r"folder.yaml: is there already and stays as it is"):
        write_config("folder")
    assert (tmp_path / "folder.yaml").read_text() == "mine"
    assert write_config("train/smoke").endswith("sonify train --config smoke.yaml")
    Path("b").mkdir()
    assert write_config("eval/smoke", Path("b")).endswith("sonify eval prepare --out SUITE --config b/smoke.yaml")
    with pytest.raises(InputError, match=r"init latpop: expected one of demo, .*; did you mean laptop\?"):
        write_config("latpop")
    with pytest.raises(InputError, match="init train/laptop: expected one of"):
        write_config("train/laptop")


def test_the_papers_dataset_by_its_own_library_is_sam_but_for_the_encoder():
    """Line for line, what is said of the keys too: who changes `sam.yaml` copies it."""
    sam, laion = ((CONFIGS / "sonify" / f"{name}.yaml").read_text() for name in ("sam", "sam_laion"))
    assert _but_encoder(laion).replace("/data/runs/sam_laion", "/data/runs/sam") == _but_encoder(sam)
    theirs = yaml.safe_load(laion)["retrieval"]["encoder"]
    assert theirs == {
        "kind": "laion_clap",
        "checkpoint": "/models/630k-audioset-best.pt",
        "roberta": "roberta-base",
        "roberta_revision": "e2da8e2f811d1448a5b465c236feacd80ffbac7b",
        "gpus": yaml.safe_load(sam)["retrieval"]["encoder"]["gpus"],
    }


def _but_encoder(text: str) -> str:
    """What stands below the opening comment, without the lines of the encoder's section."""
    body = text[text.index("\nrun_dir:") :]
    start = body.index("\n  encoder:\n") + len("\n  encoder:\n")
    return body[:start] + re.sub(r"\A(?:    .*\n)+", "", body[start:])


def test_the_list_has_a_line_for_each_and_says_what_it_is_for():
    lines = list_shipped()
    assert len(lines) == sum(map(len, shipped_names().values())) == len(list(CONFIGS.rglob("*.yaml")))
    assert lines[1].split("  ")[0] == "folder"
    assert "Your own photos and recordings" in lines[1]
    assert any(line.startswith("train/smoke ") for line in lines)
    assert any(line.startswith("eval/smoke ") and "random networks" in line for line in lines)
