import json

import pytest

from sonify.doctor.findings import Finding, Outcome, as_rows, count_faults, one_line, tell

FINDINGS = [
    Finding(about="gpu", outcome=Outcome.OK, found="one NVIDIA H200", facts={"gpus": 1}, seconds=0.25),
    Finding(about="vllm", outcome=Outcome.FAULT, found="not on PATH", todo="install it", shown=("PATH: /bin",)),
    Finding(about="llava", outcome=Outcome.NOT_TRIED, found="its engine is not here", seconds=0.01),
]


def test_a_report_says_what_was_seen_what_mends_it_and_what_to_look_at():
    assert list(tell(FINDINGS)) == [
        "ok         gpu: one NVIDIA H200 (0.2 s)",
        "fault      vllm: not on PATH",
        "           install it",
        "           PATH: /bin",
        "not tried  llava: its engine is not here",
    ]


def test_no_name_of_a_file_moves_a_terminals_cursor():
    odd = Finding(about="a\x1b[2J", outcome=Outcome.OK, found="b\x07", todo="c\r", shown=("d   e\x1b[1m",))
    assert list(tell([odd])) == ["ok         a: b ", "           c ", "           d   e"]


def test_only_what_would_stop_the_work_counts_as_a_fault():
    assert count_faults(FINDINGS) == 1


def test_findings_are_json():
    rows = json.loads(json.dumps(as_rows(FINDINGS)))
    assert rows[0] == {
        "about": "gpu", "outcome": "ok", "found": "one NVIDIA H200", "todo": "", "shown": [], "facts": {"gpus": 1},
        "seconds": 0.25,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("said", "line"),
    [
        ("two\n  lines\tof it ", "two lines of it"),
        ("\x1b[1;31mred\x1b[0m", "red"),
        ("\x1b]0;a title\x07here\x1b]8;;http://x\x1b\\link", "herelink"),
        ("bell\x07 back\x08\x1b half \x9b31mred \x1b[\n\u202egnirts", "bell back half red [ gnirts"),
        ("é 犬", "é 犬"),
        (ValueError("no"), "no"),
        ("x" * 500, "x" * 397 + "..."),
    ],
)
def test_what_others_say_is_told_in_one_line_that_no_terminal_obeys(said, line):
    assert one_line(said) == line


def test_a_line_is_cut_where_it_is_asked_to_be():
    assert (one_line("abcdef", 6), one_line("abcdefg", 6)) == ("abcdef", "abc...")
