"""Listing a run's own files, where nobody but a run puts anything."""

from pathlib import Path

from sonify.io.places import files_below
from tests.builders import refused


def test_a_runs_files_are_listed_without_those_behind_linked_folders(tmp_path: Path) -> None:
    run, elsewhere = tmp_path / "run", tmp_path / "elsewhere"
    for folder in (run / "x", elsewhere):
        folder.mkdir(parents=True)
        (folder / "a").write_bytes(b"a")
    (run / "linked").symlink_to(elsewhere)
    (run / "file").symlink_to(elsewhere / "a")
    assert files_below(run) == ["file", "x/a"]
    assert files_below(run / "no" / "such") == []
    with refused("x/a: cannot be listed: Not a directory"):
        files_below(run / "x" / "a")
