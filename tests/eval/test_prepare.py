"""`python -m eval.prepare`: from a configuration to a suite, and what it says."""

import pytest
import yaml

from eval.__main__ import main as eval_main
from eval.prepare import main
from eval.suites.suite import read_suite
from tests.eval.suites_built import make_entries


@pytest.fixture
def config(tmp_path):
    make_entries(tmp_path / "media", 3)
    raw = {"kind": "folder", "name": "mine", "path": str(tmp_path / "media"), "image": {"side": 32}}
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(raw))
    return str(tmp_path / "c.yaml")


def test_the_command_prepares_and_says_what_it_found(tmp_path, config, capsys):
    (tmp_path / "media/s001.flac").write_bytes(b"")
    assert main(["--config", config, "--out", str(tmp_path / "suite"), "--workers", "1", "name=ours"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out == [
        f"{tmp_path / 'suite/sounds.csv'}: 2 items of 3 wanted",
        "1 of 3 missing: 1 unreadable (see missing.csv)",
        "0 other real pictures, for the floor of the distances",
    ]
    suite = read_suite(tmp_path / "suite")
    assert (suite.name, suite.settings["name"]) == ("ours", "ours")


def test_it_is_a_command_of_eval(tmp_path, config):
    assert eval_main(["prepare", "--config", config, "--out", str(tmp_path / "suite"), "--workers", "1"]) == 0
    assert len(read_suite(tmp_path / "suite").items) == 3


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--workers", "0"], "--workers: expected at least 1, found 0"),
        (["kinds=demo"], "kinds: no such key"),
        (["others"], "a key and its value are joined by =: others="),
        (["--other=1"], "no such option: --other"),
        (["--out", "o\udcff"], "o\\udcff': expected a path in UTF-8"),
    ],
)
def test_what_is_wrong_is_one_line_and_exit_2(tmp_path, config, capsys, words, says):
    try:
        code = main(["--config", config, "--out", str(tmp_path / "suite"), *words])
    except SystemExit as end:
        code = end.code
    err = capsys.readouterr().err
    assert code == 2
    assert says in err
    assert len(err.splitlines()) == 1
    assert not (tmp_path / "suite").exists()


def test_a_corpus_in_a_folder_that_no_list_can_name_is_refused_before_any_work(tmp_path, capsys, monkeypatch):
    make_entries(tmp_path / "media", 1)
    (tmp_path / "media").rename(tmp_path / "m\udcff")
    monkeypatch.chdir(tmp_path / "m\udcff")
    assert main(["--config", "folder", "--out", str(tmp_path / "suite"), "--workers", "1", "path=.", "name=ours"]) == 2
    assert capsys.readouterr().err == (
        "eval.prepare: ours: a path to its corpus is not UTF-8; give the folder another name\n"
    )
    assert not (tmp_path / "suite").exists()


def test_a_shipped_suite_whose_corpus_is_not_here_says_which_path(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["--config", "folder", "--out", "suite"]) == 2
    assert "path (line" in capsys.readouterr().err
