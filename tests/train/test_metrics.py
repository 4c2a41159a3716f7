import json

import pytest

from train.metrics import METRICS, MetricsFile, read_metrics

LINE = {"step": 1, "loss": 0.5}


@pytest.mark.parametrize("damage", [b"\0\0\0}\n", b'{"foo": 1}\n', b"\xff\xfe}\n", b'{"step": 2, "lo', b"[1]\n"])
def test_a_line_that_a_power_cut_damaged_is_left_out(tmp_path, damage):
    (tmp_path / METRICS).write_bytes(json.dumps(LINE).encode() + b"\n" + damage)
    assert read_metrics(tmp_path) == [LINE]
    MetricsFile(tmp_path, first_step=5).write({"step": 6, "loss": 0.25})
    assert read_metrics(tmp_path) == [LINE, {"step": 6, "loss": 0.25}]


def test_lines_of_steps_that_are_done_again_go(tmp_path):
    file = MetricsFile(tmp_path, first_step=0)
    for step in (1, 2, 3):
        file.write({"step": step, "loss": 0.5})
    MetricsFile(tmp_path, first_step=2)
    assert [line["step"] for line in read_metrics(tmp_path)] == [1, 2]
