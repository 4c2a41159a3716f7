import json

from sonify.doctor.findings import Finding, Outcome, as_rows, count_faults, tell

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


def test_only_what_would_stop_the_work_counts_as_a_fault():
    assert count_faults(FINDINGS) == 1


def test_findings_are_json():
    rows = json.loads(json.dumps(as_rows(FINDINGS)))
    assert rows[0] == {
        "about": "gpu", "outcome": "ok", "found": "one NVIDIA H200", "todo": "", "shown": [], "facts": {"gpus": 1},
        "seconds": 0.25,
    }  # fmt: skip
