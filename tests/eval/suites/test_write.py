"""Suites on the disk: whole or not at all, the same bytes however they are made, and every entry accounted for."""

from eval.suites.suite import read_suite
from tests.eval.suites_built import make_suite


def test_a_suite_is_read_as_it_was_written(tmp_path):
    suite = make_suite(tmp_path, sounds=6, others=2)
    assert read_suite(tmp_path / "suite") == suite
    assert [item.id for item in suite.items] == [f"s{n:03d}" for n in range(6)]
    assert len(suite.others) == 2
