import json
import shutil
from pathlib import Path

import pytest
import yaml

from sonify.doctor.examine import examine, make_document, summarise
from sonify.doctor.findings import Finding, Outcome, count_faults
from sonify.doctor.record import read_examination
from sonify.errors import InputError
from sonify.installed import ROOT
from tests.builders import small_config, small_input
from tests.processes import run_python


def write(path: Path, raw: dict) -> Path:
    path.write_text(yaml.safe_dump(raw))
    return path


@pytest.fixture
def config_file(tmp_path, monkeypatch) -> Path:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    small_input(tmp_path, photos=4)
    return write(tmp_path / "config.yaml", small_config(tmp_path).model_dump(mode="json"))


def abouts(findings: list[Finding]) -> list[str]:
    return [finding.about.partition(" /")[0] for finding in findings]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({}, "expected --config F, --jobs DIR or both"),
        ({"overrides": ["seed=1"], "jobs": Path("tests")}, "seed=1 overrides a configuration, and there is none"),
        ({"jobs": Path("nowhere")}, "--jobs nowhere: no such folder"),
        ({"config": "nowhere"}, "config nowhere: no such file, nor one that comes along"),
        ({"config": "folder", "overrides": ["mixx=1"]}, "mixx: no such key"),
        ({"config": "pixart_xl_512", "overrides": ["images.path=x"]}, "images: no such key"),
    ],
)
def test_what_cannot_be_read_ends_it_before_anything_is_tried(arguments, words):
    with pytest.raises(InputError, match=words):
        next(examine(**arguments))


def test_a_run_that_lacks_nothing_has_no_fault(config_file, tmp_path):
    before = sorted(path.name for path in tmp_path.iterdir())
    findings = list(examine(config_file))
    assert count_faults(findings) == 0, findings
    assert abouts(findings)[:4] == ["input", "gpu", "faiss", "run_dir"]
    assert all(finding.seconds is not None for finding in findings)
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_each_place_that_is_not_there_is_a_fault_of_its_own_and_the_rest_is_tried(config_file, tmp_path):
    missing = ["images.path=photoz", "audio.exclude=gone.txt", "concepts.extractors.0.file=captions.csv"]
    findings = list(examine(config_file, missing))
    assert abouts(findings)[:4] == ["images.path", "audio.exclude", "concepts.extractors.0.file", "gpu"]
    assert [finding.outcome for finding in findings[:3]] == [Outcome.FAULT] * 3
    assert findings[1].found == f"no such file or folder: {Path.cwd() / 'gone.txt'}"
    assert "estimate" in abouts(findings)


def test_a_run_directory_in_the_input_and_a_folder_in_a_files_place_are_faults(config_file, tmp_path):
    findings = list(examine(config_file, [f"run_dir={tmp_path}/photos/run", f"images.exclude={tmp_path}/sounds"]))
    faults = {finding.about: finding.found for finding in findings if finding.outcome is Outcome.FAULT}
    assert "lies inside images.path" in faults["run_dir"]
    assert faults["images.exclude"].startswith("no such file")


def test_a_training_is_told_by_its_name(monkeypatch):
    findings = list(examine("smoke", ["data.runs.0=nowhere", "run_dir=runs/nowhere"]))
    assert abouts(findings)[:2] == ["data.runs.0", "run_dir"]
    assert findings[0].outcome is Outcome.FAULT
    assert "data" in abouts(findings)  # of train.doctor, which went on


def test_a_training_is_told_by_what_a_file_holds(tmp_path):
    file = tmp_path / "folder.yaml"
    shutil.copy(ROOT / "configs" / "train" / "smoke.yaml", file)
    findings = list(examine(file, ["data.runs.0=nowhere", f"run_dir={tmp_path}/run"]))
    assert abouts(findings)[0] == "data.runs.0"
    assert not (tmp_path / "run").exists()


WITHOUT = """
import sys

class Finder:  # of all but torch, as where the extra is not installed
    def __init__(self, finder):
        self._finder = finder
    def find_spec(self, name, *rest):
        return None if name.partition(".")[0] == "torch" else self._finder.find_spec(name, *rest)

sys.meta_path[:] = [Finder(finder) for finder in sys.meta_path]
from sonify.doctor.examine import examine
for finding in examine("smoke", ["data.runs.0=nowhere"]):
    print(finding.outcome, finding.about, finding.found)
"""


def test_a_training_without_its_libraries_is_one_fault_that_says_how_to_install_them():
    said = run_python(WITHOUT, cwd=ROOT).stdout.splitlines()
    assert said[-1].startswith("fault training the library torch is not installed: run `")
    assert "train" in said[-1].partition("run `")[2]


def test_a_document_is_what_a_recording_is_read_from(config_file, tmp_path):
    findings = list(examine(config_file))
    document = make_document(findings, 1.25)
    (tmp_path / "record.json").write_text(json.dumps(document))
    recording = read_examination(tmp_path / "record.json")
    assert list(recording.findings) == [
        Finding(**{**row, "outcome": Outcome(row["outcome"]), "shown": tuple(row["shown"])})
        for row in json.loads(json.dumps(document))["findings"]
    ]
    assert recording.versions["python"].startswith("3.")
    assert {"sonify", "numpy", "ray"} <= recording.versions.keys()
    assert document["seconds"] == 1.25
    assert document["machine"]["cpus"] >= 1
    assert document["machine"]["memory_bytes"] > 1 << 28


def test_what_differs_from_a_recording_is_found_at_the_end(config_file, tmp_path):
    row = {"about": "llava", "outcome": "ok", "found": "", "todo": "", "shown": [], "facts": {"model": "a/b"}}
    document = make_document([], 0.0) | {"findings": [row | {"seconds": None}]}
    (tmp_path / "record.json").write_text(json.dumps(document))
    *others, last = examine(config_file, compare=tmp_path / "record.json")
    assert count_faults(others) == 0
    assert (last.outcome, last.found) == (Outcome.FAULT, 'llava: it was "ok", and is not there')
    with pytest.raises(InputError, match="cannot be read"):
        next(examine(config_file, compare=tmp_path / "nowhere.json"))


def test_all_is_summed_up_in_one_line():
    rows = [Outcome.OK, Outcome.OK, Outcome.FAULT, Outcome.NOT_TRIED]
    findings = [Finding(about="x", outcome=outcome, found="") for outcome in rows]
    assert summarise(findings, 2.04) == "2 ok, 0 notes, 1 fault, 1 not tried; 2.0 s"
