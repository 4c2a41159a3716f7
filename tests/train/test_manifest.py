"""Manifests: a line is what ends at a line's end."""

import pytest

from tests.builders import picture, refused
from tests.eval.made_built import make_made
from tests.eval.suites_built import make_suite
from train.manifest import MANIFEST, read_manifest


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\x85", "\v", "\x1c"])
def test_a_name_may_hold_what_other_texts_end_lines_with(tmp_path, separator):
    made = make_made(
        make_suite(tmp_path, sounds=1, others=0),
        tmp_path / "made",
        {"s000": [picture(seed, (32, 32), "PNG") for seed in range(2)]},
        model=f"a{separator}model",
    )
    rows = read_manifest(made.folder)
    assert [row.model for row in rows] == [f"a{separator}model"] * 2


def test_an_empty_line_of_a_manifest_is_refused(tmp_path):
    (tmp_path / MANIFEST).write_text("\n")
    with refused("manifest.jsonl, line 1: line: Invalid JSON"):
        read_manifest(tmp_path)
    (tmp_path / MANIFEST).write_text("")
    assert read_manifest(tmp_path) == []
