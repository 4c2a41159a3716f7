"""Engines by what their programs really say: scripts in a folder of PATH."""

import os
import time
from pathlib import Path

import pytest

from sonify.config import make_config
from sonify.doctor import engines
from sonify.doctor.engines import EngineProgram, examine_program, programs_of
from sonify.doctor.findings import Outcome


def script(folder: Path, name: str, code: str) -> Path:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{code}\n")
    path.chmod(0o755)
    return path


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}/bin{os.pathsep}/usr/bin")
    return tmp_path


def asked(program: str, **fields) -> EngineProgram:
    return EngineProgram(name="eye", program=program, words=("--version",), **{"is_known": True, **fields})


def test_an_engine_is_found_and_says_its_version_behind_its_warnings(folder):
    path = script(folder, "vllm", 'echo "WARNING: no GPU" >&2; [ "$1" = --version ] && echo 0.11.2; echo bye')
    finding = examine_program(asked("vllm"))
    assert (finding.outcome, finding.found) == (Outcome.OK, f"{path}: 0.11.2")
    assert finding.facts == {"program": str(path), "version": "0.11.2", "exit_code": 0}


def test_an_engine_that_is_not_on_path_is_a_fault_but_where_workers_are_elsewhere(folder):
    assert examine_program(asked("vllm")).outcome is Outcome.FAULT
    assert examine_program(asked("vllm"), elsewhere=True).outcome is Outcome.NOTE


def test_a_broken_engine_is_a_fault_and_somebodys_own_command_a_note(folder):
    script(folder, "vllm", "echo vllm 0.11.2; echo 'ImportError: libcudart.so.12: cannot open' >&2; exit 1")
    finding = examine_program(asked("vllm"))
    assert finding.outcome is Outcome.FAULT
    assert finding.found.endswith("ends with exit status 1: ImportError: libcudart.so.12: cannot open")
    assert examine_program(asked("vllm", is_known=False)).outcome is Outcome.NOTE


def test_what_does_not_answer_is_ended_with_all_that_it_started(folder, monkeypatch):
    monkeypatch.setattr(engines, "VERSION_SECONDS", 1.0)
    pids = folder / "pids"
    script(folder, "vllm", f"sleep 30 & echo $! > {pids}; sleep 10")
    started = time.monotonic()
    finding = examine_program(asked("vllm"))
    assert time.monotonic() - started < 8
    assert finding.outcome is Outcome.FAULT
    assert "does not say its version in 1 s" in finding.found
    child = Path(f"/proc/{pids.read_text().strip()}/stat")
    until = time.monotonic() + 5
    while child.exists() and child.read_text().split()[2] != "Z" and time.monotonic() < until:
        time.sleep(0.05)
    assert not child.exists() or child.read_text().split()[2] == "Z"


def test_a_file_that_no_kernel_runs_is_a_fault(folder):
    (folder / "vllm").write_bytes(b"\x7fELF" + bytes(40))
    (folder / "vllm").chmod(0o755)
    assert examine_program(asked("vllm")).outcome is Outcome.FAULT


def test_an_engine_sees_what_it_would_see_at_work_and_no_secret_of_ours(folder, monkeypatch):
    monkeypatch.setenv("MY_SECRET", "s3cret")
    script(folder, "vllm", 'echo "1.0 [$MY_SECRET] [$HF_TOKEN]"')
    assert examine_program(asked("vllm", environment={"HF_TOKEN": "given"})).found.endswith(": 1.0 [] [given]")


def test_each_program_is_asked_once_and_in_its_own_way(tmp_path):
    def engine(name, command, **fields):
        return {"kind": "vlm", "name": name, "backend": "server", "model": "a/b", "command": command, **fields}

    own = ["/opt/serve", "{model}", "--port", "{port}"]
    extractors = [
        engine("a", "vllm"),
        engine("b", "vllm"),
        engine("c", "sglang"),
        engine("d", own),
        engine("e", "vllm", environment={"PATH": "/opt/other"}),
        {"kind": "captions"},
    ]
    raw = {
        "run_dir": "run",
        "images": {"kind": "folder", "path": "photos"},
        "audio": {"sources": [{"kind": "folder", "path": "sounds"}]},
        "concepts": {"extractors": extractors, "check": True, "checker": engine("f", "transformers")},
    }
    found = [
        (each.name, each.program, each.words, each.is_known)
        for each in programs_of(make_config(raw, check_paths=False))
    ]
    assert found == [
        ("a", "vllm", ("--version",), True),
        ("c", "sglang", ("version",), True),
        ("d", "/opt/serve", ("--version",), False),
        ("e", "vllm", ("--version",), True),
        ("f", "transformers", ("version",), True),
    ]


def test_the_engine_that_is_installed_here_says_its_version_as_it_is_asked():
    finding = examine_program(EngineProgram(name="t", program="transformers", words=("version",), is_known=True))
    assert finding.outcome is Outcome.OK, finding
    assert finding.facts["version"][0].isdigit()
