"""A suite's configuration: its kind is read first, what is wrong is one line, and those that come along load."""

from pathlib import Path

import pytest
import yaml

from eval.suites.config import KINDS, SuiteConfig, load_suite_config
from eval.towers.config import Towers
from sonify.config.loader import make_settings
from sonify.errors import InputError

CONFIGS = sorted((Path(__file__).parents[3] / "configs/eval").glob("*.yaml"))


def kind_of(path: Path) -> type | None:
    """Of a file that comes along; None where it is one of towers."""
    raw = yaml.safe_load(path.read_text())
    return None if set(raw) == {"towers"} else KINDS[raw["kind"]]


def written(folder: Path, **raw) -> Path:
    (folder / "sounds").mkdir(exist_ok=True)
    path = folder / "suite.yaml"
    path.write_text(yaml.safe_dump({"kind": "folder", "name": "mine", "path": str(folder / "sounds")} | raw))
    return path


def test_some_come_along():
    assert {"smoke", "folder"} <= {path.stem for path in CONFIGS}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_every_shipped_config_loads_and_refuses_a_misspelt_key(path):
    assert path.read_text().startswith("# ")
    raw = yaml.safe_load(path.read_text())
    kind = kind_of(path)
    if kind is None:
        assert make_settings(raw["towers"], Towers, check_paths=False)
        return
    config = make_settings(raw, kind, check_paths=False)
    assert isinstance(config, SuiteConfig)
    with pytest.raises(InputError, match="pathh: no such key"):
        make_settings(raw | {"pathh": 3}, kind, check_paths=False)


def test_what_comes_along_is_found_by_its_bare_name():
    config = load_suite_config("smoke", ["sounds=6", "heard.windows=all"])
    assert (config.name, getattr(config, "sounds"), config.heard.windows) == ("smoke", 6, "all")  # noqa: B009
    assert config.towers.clip_b32 is not None


def test_defaults_are_the_documented_ones(tmp_path):
    config = load_suite_config(written(tmp_path))
    assert (config.image.side, config.heard.seconds, config.heard.windows) == (512, 5.0, "frame")
    assert (config.others, config.replace_missing, config.seconds, config.pool.kind) == (
        *(None, False, None),
        "other_recordings",
    )


@pytest.mark.parametrize(
    ("raw", "overrides", "message"),
    [
        ({"kind": None}, [], "kind: expected one of vggsound, .*, folder, demo, found null"),
        ({"kind": "vegass"}, [], r"kind: expected one of .*, found 'vegass'; did you mean vegas\?"),
        ({"kind": ["folder"]}, [], "kind: expected one of"),
        ({"per_class": 3}, [], r"per_class \(line 4\): no such key"),
        ({"heard": {"window": "all"}}, [], r"heard.window \(line \d\): no such key; did you mean heard.windows\?"),
        ({"image": {"side": 3}}, [], r"image.side \(line \d\): .* 16, found 3"),
        ({}, ["kind=vegass"], "kind: expected one of"),
        ({}, ["kind=demo"], r"path \(line 3\): no such key"),
        ({}, ["others=-1"], "others: .*found -1"),
        ({}, ["path=s3://bucket/sounds"], "path: expected a path on this machine"),
        ({}, ["path=nowhere.csv"], "path: no such file or folder: .*nowhere.csv"),
        ({}, ["metrics=[fidd]"], r"metrics.0: expected .*found 'fidd'; did you mean fid\?"),
        ({}, ["replace_missing"], "replace_missing"),
        ({}, ["name=a/b"], "name"),
    ],
)
def test_what_is_wrong_is_one_line_that_names_the_key(tmp_path, raw, overrides, message):
    with pytest.raises(InputError, match=message) as refused:
        load_suite_config(written(tmp_path, **raw), overrides)
    assert "\n" not in str(refused.value)


def test_a_file_without_a_kind_says_what_kinds_there_are(tmp_path):
    (tmp_path / "a.yaml").write_text("name: mine\n")
    with pytest.raises(InputError, match=r"kind: missing, must be set to one of vggsound, .*, demo$"):
        load_suite_config(tmp_path / "a.yaml")
    (tmp_path / "a.yaml").write_text("towers: {}\n")
    with pytest.raises(InputError, match="it is a file of towers, and no suite"):
        load_suite_config(tmp_path / "a.yaml")


def test_another_kind_by_override_is_checked_as_that_kind(tmp_path):
    (tmp_path / "a.yaml").write_text("kind: folder\nname: mine\n")
    assert type(load_suite_config(tmp_path / "a.yaml", ["kind=demo"])) is KINDS["demo"]
